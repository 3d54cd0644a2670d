"""All errors that pplx-edge raises. Each message states the problem, the limit if there is one, and what to do next.

EdgeError
├── InputError (also ValueError)      an argument is invalid: fix the call
│   └── TextTooLong                   an input or document has more tokens than the model can read
├── ModelError                        the model files cannot be used
│   ├── ModelNotFound                 no such name, directory or hub repository
│   ├── UnsupportedModel              config.json requires a feature that is not implemented
│   ├── CheckpointError               weights or tokenizer files are missing, corrupt or of the wrong shape
│   └── ArtifactError                 a converted model is incomplete, outdated or modified
├── ConversionError                   a conversion failed; no partial output is left
│   └── ParityError                   the converted model differs too much from the reference
├── NumericalError                    a model produced NaN or infinity
├── OfflineError                      network access is needed but forbidden or unavailable
├── StorageError                      the disk is full or not writable
└── MissingExtra (also ImportError)   an optional package is not installed
"""


class EdgeError(Exception):
    """Base class of all errors that pplx-edge raises."""


class InputError(EdgeError, ValueError):
    """An argument is invalid."""


class TextTooLong(InputError):
    """An input has more tokens than the model can read.

    `index` is its index in the list of inputs, `n_tokens` its length and `limit` the maximum length, in tokens.
    """

    def __init__(self, message: str, *, index: int, n_tokens: int, limit: int):
        super().__init__(message)
        self.index, self.n_tokens, self.limit = index, n_tokens, limit


class ModelError(EdgeError):
    """The files of a model cannot be used."""


class ModelNotFound(ModelError):
    """No built-in model, directory or hub repository has that name."""


class UnsupportedModel(ModelError):
    """config.json contains a setting that this runtime does not implement."""


class CheckpointError(ModelError):
    """Weights or tokenizer files are missing, truncated, corrupt or of the wrong shape."""


class ArtifactError(ModelError):
    """A converted model is incomplete, modified or written in a different format version."""


class ConversionError(EdgeError):
    """A conversion failed; no partial output is left."""


class ParityError(ConversionError):
    """The converted model differs from the reference by more than the limits allow."""


class NumericalError(EdgeError):
    """A model produced NaN or infinity."""


class OfflineError(EdgeError):
    """A download is needed, but network access is forbidden or unavailable."""


class StorageError(EdgeError):
    """A file could not be written: the disk is full or not writable."""


class MissingExtra(EdgeError, ImportError):
    """An optional package is missing or incomplete; the message gives the command that installs it."""

    def __init__(self, feature: str, extra: str, problem: str = ""):
        super().__init__(f"{feature} {problem or 'needs'}: pip install 'pplx-edge[{extra}]'")
