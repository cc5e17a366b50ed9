"""``python -m lmdvid``: the same command where no script of that name is on the PATH."""

import sys

from lmdvid.cli import main

if __name__ == "__main__":
    sys.exit(main())
