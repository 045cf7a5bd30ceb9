"""`python -m trainsys` is the `trainsys` command."""

import sys

from trainsys.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
