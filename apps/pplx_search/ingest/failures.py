"""Why a file could not be read: stable codes, and the exception by which parsers say so."""

CODES = {
    "unreadable": "the file cannot be opened or read",
    "unsupported": "there is no reader for what the file is",
    "binary": "the file holds no text",
    "no-text": "the pages are images without a text layer",
    "encrypted": "a password is needed",
    "damaged": "the file is cut short or not what its name says",
    "unsafe": "an archive names entries outside itself",
    "zip-bomb": "an archive would unpack to far more than it should",
    "too-deep": "elements are nested deeper than any real document has them",
    "too-large": "the file, or the text in it, is over the limit",
    "timeout": "reading took longer than the limit",
    "memory": "reading took more memory than the limit",
    "crashed": "the parser ended or failed in a way that it should not",
}


class ParseFailed(Exception):
    """A parser's refusal: one of CODES, and what was found in words."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message
