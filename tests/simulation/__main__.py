"""Play worlds from the command line: see `simulation.cli`."""

import sys

from simulation.cli import main

if __name__ == "__main__":  # not in the processes that are started from here
    sys.exit(main())
