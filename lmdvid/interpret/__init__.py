"""What motion directions do, measured: optical flow, statistics, ground truth, a report."""


class InterpretationError(ValueError):
    """What was asked for cannot be measured on this network or this data."""
