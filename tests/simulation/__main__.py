"""Play worlds from the command line: ``python -m simulation --seeds A..B``, both included."""

import sys
from simulation.cli import main
sys.exit(main(sys.argv[1:]))
