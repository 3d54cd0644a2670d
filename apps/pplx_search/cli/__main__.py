"""`python -m pplx_search.cli` is the command `pplx-search`."""

import sys

from pplx_search.cli import main

if __name__ == "__main__":
    sys.exit(main())
