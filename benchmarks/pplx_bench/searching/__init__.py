"""Parts of `pplx-edge bench search`."""
