"""Containers that only grow, so that every earlier moment of a collection stays true while later ones are added."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

NOTHING = -1
"""The code of an absent value."""


class Growing:
    """An array with room behind its end. Views that were given out keep their length and their values."""

    def __init__(self, dtype: DTypeLike, values: NDArray[Any] | None = None) -> None:
        """Start with these values, which are kept and not copied."""
        self._buffer = np.empty(0, dtype) if values is None else np.asarray(values, dtype)
        self._length = len(self._buffer)

    def extend(self, values: NDArray[Any]) -> NDArray[Any]:
        """Add values behind the end and return the view of all."""
        if not len(values):
            return self.view()
        end = self._length + len(values)
        if end > len(self._buffer):
            larger = np.empty(max(end, 1024, len(self._buffer) * 3 // 2), self._buffer.dtype)
            larger[: self._length] = self._buffer[: self._length]
            self._buffer = larger
        self._buffer[self._length : end] = values
        self._length = end
        return self.view()

    def after(self, n: int, values: NDArray[Any]) -> Growing:
        """Return what has values behind the first ``n``: this, or a copy where others were added behind them before."""
        growing = self if n == self._length else Growing(self._buffer.dtype, self._buffer[:n].copy())
        growing.extend(values)
        return growing

    def changed(self, where: NDArray[Any], values: Any) -> Growing:
        """Return a copy that has other values at some positions; views of this one stay as they are."""
        copy = self._buffer[: self._length].copy()
        copy[where] = values
        return Growing(copy.dtype, copy)

    def view(self) -> NDArray[Any]:
        """Return what is there now, not to be written to."""
        view = self._buffer[: self._length]
        view.flags.writeable = False
        return view


class Codes:
    """Numbers for texts, in the order they were first seen."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Start with these."""
        self.texts = list(texts)
        self._numbers: dict[str | None, int] = {text: number for number, text in enumerate(self.texts)}

    def numbers(self, texts: Iterable[str | None]) -> list[int]:
        """Return the number of each text, given now to those that are new; that of ``None`` is `NOTHING`."""
        asked = list(texts)
        found = [*map(self._numbers.get, asked)]
        if None in found:
            found = [NOTHING if text is None else self._added(text) for text in asked]
        return cast("list[int]", found)

    def _added(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return number

    def of(self, texts: Iterable[str]) -> list[int]:
        """Return the numbers of those texts that have one."""
        return [self._numbers[text] for text in texts if text in self._numbers]

    def text(self, number: int) -> str | None:
        """Return the text of a number."""
        return None if number == NOTHING else self.texts[number]
