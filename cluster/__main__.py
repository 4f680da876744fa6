"""`python -m cluster train ...`, as `ray job submit` starts it."""

import sys

from cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
