"""Times as HL7 writes them (v2 and CDA) to ISO 8601 of the same precision."""

from __future__ import annotations

import re

_TIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\.\d{1,6})?([+-]\d{4})?\Z")


def from_hl7(text: str) -> str | None:
    """Return a timestamp such as ``20230405101500+0200`` in ISO 8601; ``None`` for a blank one or HL7's null.

    An hour without minutes is given as its day, since ISO 8601 here has no such precision.

    >>> from_hl7("20230405101500+0200"), from_hl7("202304")
    ('2023-04-05T10:15:00+02:00', '2023-04')

    Raises:
        ValueError: the text has another form.
    """
    text = text.strip()
    if text in ("", '""'):
        return None
    match = _TIME.match(text)
    if not match:
        raise ValueError("is not an HL7 timestamp (YYYY[MM[DD[HHMM[SS]]]][+-ZZZZ])")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    date = "-".join(part for part in (year, month, day) if part)
    if minute is None:
        return date
    clock = f"{hour}:{minute}" + (f":{second}{fraction or ''}" if second else "")
    return f"{date}T{clock}" + (f"{offset[:3]}:{offset[3:]}" if offset else "")
