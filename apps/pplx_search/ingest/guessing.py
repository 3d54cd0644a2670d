"""Guess the legacy encoding of bytes that are not UTF-8.

On a few lines, charset-normalizer cannot distinguish similar encodings such as windows-1252 and windows-1250. European
languages and Japanese are therefore recognized here by their letters.
"""

DEFAULT = "cp1252"

_COMMON = frozenset("„“”‘’‚‹›«»–—…•€£§°·©®™²³½¼µ\xa0")


def _alphabets(*languages: str) -> tuple[frozenset[str], ...]:
    return tuple(_COMMON | frozenset(letters + letters.upper()) for letters in languages)


_WESTERN = _alphabets(
    "äöüßéàè",  # German
    "éèêëàâçîïôùûüœæñ",  # French
    "áéíóúñü¿¡çªº",  # Spanish
    "áâãàéêíóôõúçüªº",  # Portuguese
    "àèéìíîòóùú",  # Italian
    "åäöæøéèü",  # Danish, Norwegian, Swedish, Finnish
    "áéëïíóöüúèê",  # Dutch
    "áðéíóúýþæö",  # Icelandic
)
_CENTRAL = _alphabets(
    "ąćęłńóśźż",  # Polish
    "áčďéěíňóřšťúůýžľĺŕôä",  # Czech, Slovak
    "áéíóöőúüű",  # Hungarian
    "ăâîșțşţ",  # Romanian
    "čćđšž",  # Croatian, Slovene
)
_TURKISH = _alphabets("çğıİöşüâî")
# in order of preference
_EUROPEAN = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "iso8859_2": _CENTRAL,
    "cp1254": _TURKISH,
    "mac_roman": _WESTERN,
    "mac_latin2": _CENTRAL,
}
_FOREIGN_SHARE = 0.1  # tolerated share of foreign letters, from names and loan words
_JAPANESE = ("cp932", "euc_jp")
_KANA_SHARE = 0.2


def guess(sample: bytes) -> str:
    """Return the most likely codec of lines with non-ASCII bytes."""
    for name in _JAPANESE:
        if _is_japanese(sample, name):
            return name
    for name, alphabets in _EUROPEAN.items():
        if _is_written_in(sample, name, alphabets):
            return name
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best else DEFAULT


def _is_japanese(sample: bytes, name: str) -> bool:
    text = sample.decode(name, "replace")
    beyond = [char for char in text if char > "\x7f"]
    n_broken = text.count("\ufffd")
    n_kana = sum("\u3040" <= char <= "\u30ff" for char in beyond)
    return n_broken <= 1 and n_kana >= max(1, _KANA_SHARE * len(beyond))  # the sample may end inside a character


def _is_written_in(sample: bytes, name: str, alphabets: tuple[frozenset[str], ...]) -> bool:
    beyond = [char for char in sample.decode(name, "replace") if char > "\x7f"]
    allowed = _FOREIGN_SHARE * len(beyond)
    return any(sum(char not in letters for char in beyond) <= allowed for letters in alphabets)
