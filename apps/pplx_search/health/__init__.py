"""The parts of `pplx-search doctor`: checks of the installation and of the index."""
