"""The search page: `pplx-search serve`."""
