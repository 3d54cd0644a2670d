"""`python -m pplx_quant`."""

import sys

from pplx_quant.commands import main

sys.exit(main())
