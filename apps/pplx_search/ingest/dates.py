"""Convert dates in files to ISO 8601."""

import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

_ISO = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?)?)?\s*(Z|[+-]\d\d:?\d\d)?")
_PDF = re.compile(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([+-])(\d\d)'?(\d\d)?|Z)?")


def iso(text: str) -> str:
    """Return the date if it is valid ISO 8601, otherwise an empty string."""
    text = text.strip()
    try:
        return datetime.fromisoformat(text).isoformat() if len(text) > 10 else _valid_day(text)
    except ValueError:
        return ""


def from_mail(text: str) -> str:
    """Return the date of a mail header, or an empty string if it is invalid."""
    try:
        return parsedate_to_datetime(text).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return ""


def from_pdf(text: str) -> str:
    """Return a PDF date such as `D:20260131120000+01'00'` as ISO 8601, or an empty string if it is invalid."""
    match = _PDF.match(text.strip())
    if not match:
        return ""
    year, month, day, hour, minute, second, sign, offset_hours, offset_minutes = match.groups()
    zone = None
    if sign:
        offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
    elif text.strip().endswith("Z"):
        zone = UTC
    try:
        parts = (int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0))
        return datetime(*parts, tzinfo=zone).isoformat()
    except ValueError:
        return ""


def _valid_day(text: str) -> str:
    return text if _ISO.fullmatch(text) else ""
