"""JSON without the readings that differ between parsers: no duplicate keys, no NaN, UTF-8 only."""

from __future__ import annotations

import json
from typing import NoReturn

from indexer.readers.record import RecordError


def load(data: bytes) -> object:
    """Return the value of one JSON text in UTF-8 (a byte order mark before it is not part of it).

    Raises:
        RecordError: the bytes are not UTF-8 or not JSON, or an object names a key twice; ``field`` is that key or "".
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("", f"is not UTF-8 (byte {error.start})") from None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise RecordError("", f"is not JSON (line {error.lineno}, column {error.colno} of the record)") from None
    except RecursionError:
        raise RecordError("", "is nested too deep") from None
    except RecordError:
        raise
    except ValueError:
        # Python refuses to read a whole number of thousands of digits.
        raise RecordError("", "holds a number that cannot be read") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RecordError(key, "is given twice")
            seen.add(key)
    return found


def _refuse(_constant: str) -> NoReturn:
    raise RecordError("", "holds NaN or Infinity, which JSON does not have")
