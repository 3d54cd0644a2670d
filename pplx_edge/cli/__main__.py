"""`python -m pplx_edge.cli`: the command without its console script."""

import sys

from pplx_edge.cli import main

sys.exit(main())
