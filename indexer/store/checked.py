"""Statements that are put together once, and what their rows' checksums cover.

A search reads a few rows from three statements. To put these together, and to look columns up by name, took longer
than SQLite takes to run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Connection, Row, Select

from indexer.store import truth

Check = tuple[str, Sequence[str], str]
"""A table's name, the fields that its checksum covers, and how its columns are labelled."""


class Checked:
    """A statement, and where in its rows the columns lie that checksums cover."""

    def __init__(self, statement: Select[Any], checks: Sequence[Check]) -> None:
        """Take the statement and what is to be checked of its rows."""
        self.statement = statement
        place = {name: at for at, name in enumerate(statement.selected_columns.keys())}
        self._checks = [
            (table, itemgetter(*(place[prefix + name] for name in fields)), place[prefix + "checksum"])
            for table, fields, prefix in checks
        ]

    def check(self, row: Row[Any]) -> None:
        """Raise `DamagedError` where a row does not match its checksums."""
        for table, fields, at in self._checks:
            values = fields(row)
            if truth.checksum(*values) != row[at]:
                raise truth.damaged(table, values[0])


class CheckedByKey(Checked):
    """A statement without parameters of its own, asked for the rows that hold one of some keys. Thread safe."""

    def __init__(self, statement: Select[Any], key: Column[Any], checks: Sequence[Check] = ()) -> None:
        """Take the statement (without a condition), the column of the keys and what is to be checked."""
        super().__init__(statement, checks)
        self._key = key
        self._texts: dict[int, str] = {}

    def rows(self, connection: Connection, keys: Iterable[Any]) -> list[Row[Any]]:
        """Return the rows, unchecked, in no order."""
        found: list[Row[Any]] = []
        for part in truth.parts(keys):
            # A key that is asked for twice is found once: so a few texts serve for lists of every length.
            n_marks = 1 << (len(part) - 1).bit_length()
            asked = (*part, *part[-1:] * (n_marks - len(part)))
            found += connection.exec_driver_sql(self._text(connection, n_marks), asked).all()
        return found

    def _text(self, connection: Connection, n_marks: int) -> str:
        text = self._texts.get(n_marks)
        if text is None:
            whole = str(self.statement.compile(connection, compile_kwargs={"literal_binds": True}))
            text = f"{whole} WHERE {self._key} IN ({', '.join('?' * n_marks)})"
            self._texts[n_marks] = text
        return text
