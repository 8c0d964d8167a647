"""Statements that are put together once, and what their rows' checksums cover."""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Select

from indexer.store import truth
from indexer.store.sqlite import text_of

Check = tuple[str, Sequence[str], str]
"""A table's name, the fields that its checksum covers, and how its columns are labelled."""


class Checked:
    """A statement that is asked of the driver, and where its rows have the columns that checksums cover. Thread safe.

    A row has its columns as attributes and, as a row of SQLAlchemy has, all of them by name in ``_mapping``.
    """

    def __init__(self, statement: Select[Any], checks: Sequence[Check] = ()) -> None:
        """Take the statement, its parameters written as ``:name``, and what is to be checked of its rows."""
        self._whole = text_of(statement)
        place = {name: at for at, name in enumerate(statement.selected_columns.keys())}
        self._checks = [
            (table, itemgetter(*(place[prefix + name] for name in fields)), place[prefix + "checksum"])
            for table, fields, prefix in checks
        ]
        fields: Any = namedtuple("Fields", place)  # type: ignore[misc]
        row: Any = type("Row", (fields,), {"__slots__": (), "_mapping": property(fields._asdict)})
        self._made = row._make

    def each(self, cursor: sqlite3.Cursor, **parameters: int) -> Iterator[Any]:
        """Yield the rows. Raises `DamagedError` where one does not match its checksums."""
        for row in map(self._made, cursor.execute(self._whole, parameters)):
            self._check(row)
            yield row

    def _check(self, row: Any) -> None:
        for table, fields, at in self._checks:
            values = fields(row)
            if truth.checksum(*values) != row[at]:
                raise truth.damaged(table, values[0])


class CheckedByKey(Checked):
    """A statement without parameters of its own, asked for rows that hold some keys. Thread safe."""

    def __init__(self, statement: Select[Any], key: Column[Any], checks: Sequence[Check] = ()) -> None:
        """Take the statement (without a condition), the column of the keys and what is to be checked."""
        super().__init__(statement, checks)
        self._start = f"{self._whole} WHERE {key} IN "
        self._texts: dict[int, str] = {}

    def rows(self, cursor: sqlite3.Cursor, keys: Iterable[Any]) -> list[Any]:
        """Return the rows in no order. Raises `DamagedError` where one does not match its checksums."""
        found: list[Any] = []
        for part in truth.parts(keys):
            # A key that is asked for twice is found once: so a few texts serve for lists of every length.
            n_marks = 1 << (len(part) - 1).bit_length()
            asked = (*part, *part[-1:] * (n_marks - len(part)))
            found += map(self._made, cursor.execute(self._text(n_marks), asked).fetchall())
        for row in found:
            self._check(row)
        return found

    def _text(self, n_marks: int) -> str:
        text = self._texts.get(n_marks)
        if text is None:
            text = self._texts[n_marks] = f"{self._start}({', '.join('?' * n_marks)})"
        return text
