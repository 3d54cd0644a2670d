"""Speed, memory and quality of pplx-edge, beside its peers, in one run."""
