"""``python -m noetherflow`` is the command line ``noetherflow``."""

import sys

from noetherflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
