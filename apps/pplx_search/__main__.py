"""Run pplx-search as `python -m pplx_search`."""

import sys

from pplx_search.program import main

if __name__ == "__main__":
    sys.exit(main())
