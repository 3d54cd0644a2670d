"""Errors of the trainer, a branch of the library's error tree.

EdgeError
└── TrainError
    ├── DataError        a data file is missing, malformed or has too many bad rows
    ├── ConfigError      an option is unknown, of the wrong type or out of range
    └── DivergedError    the loss is no longer finite
"""

from pplx_edge.errors import EdgeError


class TrainError(EdgeError):
    """Base of all errors that the trainer raises on purpose."""


class DataError(TrainError):
    """A data file is missing, malformed or has too many bad rows."""


class ConfigError(TrainError):
    """An option is unknown, of the wrong type or out of range."""


class DivergedError(TrainError):
    """The loss is no longer finite."""
