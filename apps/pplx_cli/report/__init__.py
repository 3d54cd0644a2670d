"""`pplx-edge doctor --report`: everything about this machine that we cannot find out on another one, in one file."""
