"""`python -m pplx_cli`: the command without its console script."""

import sys

from pplx_cli import main

sys.exit(main())
