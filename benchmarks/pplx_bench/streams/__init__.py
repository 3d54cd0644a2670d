"""Parts of `pplx-edge bench stream`."""
