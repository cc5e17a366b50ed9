"""Plots and pictures of a report, as data URIs."""

import base64
import io
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lmdvid.interpret import InterpretationError
from lmdvid.video import write_video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _FAINT, _ACCENT = "#1f2933", "#9aa5b1", "#2563a8"


def check(flow: bool) -> None:
    """Say at once what is missing, and not after minutes of work.

    Raises:
        InterpretationError: Without matplotlib, or, where `flow` is to be computed, OpenCV.
    """
    for module, needed in (("matplotlib", True), ("cv2", flow)):
        if needed and find_spec(module) is None:
            raise InterpretationError(
                f"a report needs {module}: pip install 'lmdvid[interpret]'"
                + " (or give flow fields that another program computed)" * (module == "cv2")
            )


def _figure(width: float, height: float, **kw: Any) -> tuple["Figure", Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure((width, height), layout="constrained")
        return figure, figure.subplots(**kw)


def svg(figure: "Figure") -> str:
    """A figure as a data URI."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The same figure gives the same text.
    with rc_context({"svg.hashsalt": "lmdvid", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return _uri("image/svg+xml", text[text.index("<svg") :].encode())


def png(frame: np.ndarray) -> str:
    """A picture uint8 (H, W, 3) as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer.getvalue())


def mp4(frames: np.ndarray, fps: float) -> str:
    """A video uint8 (T, H, W, 3) as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video(path, frames, fps, crf=23)
        return _uri("video/mp4", path.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def flow_colours(flow: np.ndarray, largest: float) -> np.ndarray:
    """Flow (..., 2) as colours, uint8 (..., 3): the hue is the angle, white stands still.

    Red moves right, yellow-green up, cyan left, violet down.
    """
    from matplotlib.colors import hsv_to_rgb

    hue = np.arctan2(-flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    strength = (np.linalg.norm(flow, axis=-1) / max(largest, 1e-9)).clip(0, 1)
    value = 1 - 0.15 * strength
    colours = hsv_to_rgb(np.stack([hue, strength, value], axis=-1))
    return (255 * colours).round().astype(np.uint8)


def flow_wheel(size: int = 64) -> np.ndarray:
    """The key to `flow_colours`, uint8 (size, size, 3)."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    wheel = flow_colours(np.stack([x, y], axis=-1), 1.0)
    wheel[np.hypot(x, y) > 1] = 255
    return wheel


def rose_plot(shares: np.ndarray) -> str:
    """Share of the flow by angle, (bins,), as petals."""
    from matplotlib.colors import hsv_to_rgb

    figure, axes = _figure(1.7, 1.7, subplot_kw={"projection": "polar"})
    angles = 2 * np.pi * np.arange(len(shares)) / len(shares)
    colours = [hsv_to_rgb((a / (2 * np.pi), 0.75, 0.85)) for a in angles]
    axes.bar(angles, shares, width=0.92 * 2 * np.pi / len(shares), color=colours)
    axes.set_xticks(np.pi / 2 * np.arange(4), ["right", "up", "left", "down"], fontsize=7)
    axes.tick_params(pad=-3)
    axes.set_yticks([])
    axes.spines["polar"].set_color(_FAINT)
    axes.grid(color="#e4e7eb")
    axes.set_ylim(0, max(shares.max(), 1e-6))
    return svg(figure)


def mean_flow_plot(flow: np.ndarray, picture: np.ndarray) -> str:
    """The mean flow (H, W, 2) as arrows over a faint picture uint8 (H, W, 3)."""
    figure, axes = _figure(1.7, 1.7)
    height, width = flow.shape[:2]
    axes.imshow(255 - (255 - picture) // 3, interpolation="bilinear")
    step = max(1, height // 14)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    u, v = flow[y, x, 0], flow[y, x, 1]
    largest = max(np.hypot(u, v).max(), 1e-9)
    colours = flow_colours(np.stack([u, v], axis=-1), largest).reshape(-1, 3) / 255
    axes.quiver(
        x, y, u, v, color=colours * 0.85, angles="xy", scale_units="xy",
        scale=largest / (1.6 * step), width=0.012, pivot="mid",
    )  # fmt: skip
    axes.set_axis_off()
    return svg(figure)


def spectrum_plot(spectrum: np.ndarray, effective: float) -> str:
    """Share of the variance along each axis, and their sum."""
    figure, axes = _figure(3.6, 2.5)
    shares = spectrum / max(spectrum.sum(), 1e-30)
    numbers = np.arange(1, len(shares) + 1)
    axes.bar(numbers, shares, color=_ACCENT)
    axes.plot(numbers, shares.cumsum(), color=_INK, lw=1, marker=".", ms=4)
    axes.axvline(effective, color="#c2410c", lw=1, ls="--")
    axes.text(effective, 1.02, f" effective: {effective:.1f}", color="#c2410c", fontsize=8)
    axes.set(xlabel="axis", ylabel="share of variance", ylim=(0, 1.12))
    return svg(figure)


def matrix_plot(
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    signed: bool = False,
    size: tuple[float, float] | None = None,
    numbers: bool = False,
) -> str:
    """A matrix from 0 to 1, or from -1 to 1, as colours."""
    width, height = size or (1.2 + 0.34 * len(columns), 1.1 + 0.27 * len(rows))
    figure, axes = _figure(width, height)
    low, colours = (-1, "RdBu_r") if signed else (0, "Blues")
    axes.imshow(matrix, vmin=low, vmax=1, cmap=colours, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if numbers:
        for (i, j), value in np.ndenumerate(matrix):
            if abs(value) >= 0.095:
                ink = "white" if abs(value) > 0.6 else _INK
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color=ink)
    return svg(figure)


def activity_plot(activity: np.ndarray, names: Sequence[str], unit: np.ndarray) -> str:
    """Mean change (T, N) per frame over time, in standard deviations (N,)."""
    figure, axes = _figure(5.2, 2.5)
    scaled = (activity / np.where(unit > 0, unit, np.inf)).T
    image = axes.imshow(scaled, aspect="auto", cmap="magma_r", vmin=0)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="frame")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="std per frame", pad=0.01)
    return svg(figure)


def trajectory_plot(places: np.ndarray, directions: Sequence[int]) -> str:
    """Walks (K, T, len(directions)) along directions, one panel for each."""
    figure, axes = _figure(1.9 * len(directions), 1.9, ncols=len(directions), squeeze=False)
    for panel, direction, path in zip(axes[0], directions, np.moveaxis(places, 2, 0), strict=True):
        panel.plot(path.T, lw=0.9, alpha=0.7)
        panel.axhline(0, color=_FAINT, lw=0.6)
        panel.set_title(f"d{direction}", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlabel("frame", fontsize=8)
    return svg(figure)
