"""Run pplx-edge as `python -m pplx_cli`."""

import sys

from pplx_cli import main

if __name__ == "__main__":
    sys.exit(main())
