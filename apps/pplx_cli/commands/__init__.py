"""One module for each command of pplx-edge."""
