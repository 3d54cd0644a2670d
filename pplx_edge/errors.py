"""Every error that leaves pplx-edge, as one tree. The message says what was found, the limit and the next move.

EdgeError
├── InputError (also ValueError)      what was asked cannot be done: fix the call
│   └── TextTooLong                   a text or document has more tokens than the model reads
├── ModelError                        the model's files cannot be used
│   ├── ModelNotFound                 no such name, directory or hub repository
│   ├── UnsupportedModel              config.json asks for something that is not implemented
│   ├── CheckpointError               weights or tokenizer files are missing, corrupt or of another shape
│   └── ArtifactError                 a converted model is incomplete, stale or altered
├── ConversionError                   a conversion could not be finished; nothing was left behind
│   └── ParityError                   the converted model strays too far from the reference
├── NumericalError                    a model produced NaN or infinity
├── OfflineError                      the network is needed and is not allowed or not there
├── StorageError                      the disk is full or refuses the write
└── MissingExtra (also ImportError)   an optional package is not installed
"""


class EdgeError(Exception):
    """Base of all errors that pplx-edge raises on purpose."""


class InputError(EdgeError, ValueError):
    """The arguments cannot be served as they are."""


class TextTooLong(InputError):
    """A text has more tokens than the model reads. `index` is its place in the input, `n_tokens` its length."""

    def __init__(self, message: str, *, index: int, n_tokens: int, limit: int):
        super().__init__(message)
        self.index, self.n_tokens, self.limit = index, n_tokens, limit


class ModelError(EdgeError):
    """A model's files cannot be used."""


class ModelNotFound(ModelError):
    """No built-in model, directory or hub repository goes by that name."""


class UnsupportedModel(ModelError):
    """config.json names a switch or value that this runtime does not implement."""


class CheckpointError(ModelError):
    """Weights or tokenizer files are missing, truncated, corrupt or of another shape."""


class ArtifactError(ModelError):
    """A converted model is incomplete, altered or written by another format version."""


class ConversionError(EdgeError):
    """A conversion could not be finished; nothing was left behind."""


class ParityError(ConversionError):
    """The converted model strays further from the reference than its limits allow."""


class NumericalError(EdgeError):
    """A model produced a non-finite value."""


class OfflineError(EdgeError):
    """Something has to be fetched and the network is switched off or not there."""


class StorageError(EdgeError):
    """A file could not be written: the disk is full or not writable."""


class MissingExtra(EdgeError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""

    def __init__(self, feature: str, extra: str):
        super().__init__(f"{feature} needs: pip install 'pplx-edge[{extra}]'")
