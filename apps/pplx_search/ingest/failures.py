"""Reasons why a file could not be read: stable codes, and the exception that parsers raise."""

CODES = {
    "unreadable": "the file cannot be opened or read",
    "unsupported": "there is no reader for this file type",
    "binary": "the file contains no text",
    "no-text": "the pages are images without a text layer",
    "encrypted": "a password is needed",
    "damaged": "the file is truncated, or not of the type that its name suggests",
    "unsafe": "an archive names entries outside itself",
    "zip-bomb": "an archive would unpack to far more than its size justifies",
    "too-deep": "elements are nested deeper than in any real document",
    "too-large": "the file, or the text in it, exceeds the size limit",
    "timeout": "reading took longer than the limit",
    "memory": "reading took more memory than the limit",
    "crashed": "the parser crashed or failed unexpectedly",
}


class ParseFailed(Exception):
    """A file that a parser cannot read: one of CODES, and a message."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message
