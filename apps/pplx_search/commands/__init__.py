"""The commands of pplx-search, one module each."""
