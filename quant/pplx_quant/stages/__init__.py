"""Training stages, one script each over the shared parts of `pplx_quant`."""
