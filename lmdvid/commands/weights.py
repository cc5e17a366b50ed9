"""``lmdvid weights``."""

import argparse

HELP = "list the published weight files that losses and scores use, and which are here"
EPILOG = (
    "Files are looked for in the folder named by the environment variable LMDVID_WEIGHTS. Exit "
    "code 1 if one that is there is not the published one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Ask whether to read the files."""
    parser.add_argument("--check", action="store_true", help="read those that are here: hash, size")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """List them."""
    from lmdvid.networks import WeightsError
    from lmdvid.networks.features.published import PUBLISHED

    wrong = 0
    for entry in PUBLISHED:
        try:
            path = entry.find()
        except WeightsError:
            state = "absent"
        else:
            state = f"here: {path}"
            if options.check:
                try:
                    state += f"\n  intact, SHA-256 {entry.check(path)}"
                except WeightsError as error:
                    wrong += 1
                    reason, _, _ = str(error).partition("\n")
                    state += f"\n  WRONG: {reason}"
        known = entry.sha256 + ("..." if 0 < len(entry.sha256) < 64 else "")
        known = f"SHA-256 {known}" if known else "SHA-256 not documented"
        known += f"; Git blob {entry.blob}" if entry.blob else ""
        size = f", {entry.size:,} bytes" if entry.size else ""
        print(
            f"{entry.file}{size}\n  for {entry.use}\n  from {entry.source}\n"
            f"  licence: {entry.licence}\n  {known}\n  {state}"
        )
    return int(wrong > 0)
