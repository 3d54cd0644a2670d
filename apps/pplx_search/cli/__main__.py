"""Run the command `pplx-search` with `python -m pplx_search.cli`."""

import sys

from pplx_search.cli import main

if __name__ == "__main__":
    sys.exit(main())
