"""Errors of the trainer, a branch of the runtime's tree.

EdgeError
└── TrainError
    ├── DataError        a data file is missing, malformed or too dirty to train on
    ├── ConfigError      an option is unknown, of the wrong type or out of its range
    └── DivergedError    the loss is no longer finite
"""

from pplx_edge.errors import EdgeError


class TrainError(EdgeError):
    """Base of everything the trainer raises on purpose."""


class DataError(TrainError):
    """A data file is missing, malformed or too dirty to train on."""


class ConfigError(TrainError):
    """An option is unknown, of the wrong type or out of its range."""


class DivergedError(TrainError):
    """The loss is no longer finite."""
