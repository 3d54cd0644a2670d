"""Adds `export pplx-edge` to `optimum-cli`, which imports every file in this namespace."""

from pplx_edge.integrations.optimum_command import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
