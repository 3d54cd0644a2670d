"""The index of pplx-search at scale on synthetic vectors, and the whole program on real files."""
