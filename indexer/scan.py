"""The byte scanner: does any file of a collection hold something of a text, or an id, that no kept note holds.

A trace is a window of 24 bytes (UTF-8) of the text, or a whole id. It looks at raw bytes, whatever the file's format,
so it needs to trust nothing that it scans. An id of fewer than 8 bytes stands by chance in any large file: it is looked
for as a whole value instead, in the lists of derived files here and in the tables by `indexer.store.kept`. Windows are
compared by a 64-bit hash over three words, many at once, and then byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from indexer.store.distinct import distinct
from indexer.store.folders import files_under
from indexer.store.sqlite import raw_bytes

WINDOW = 24
SHORTEST_ID = 8
"""The bytes from which on an id is looked for in every byte; a shorter one as a whole value, where values are kept."""

LISTS = "texts.json"
"""The derived file that lists values as they are: ids, patients, kinds."""

_DATABASE = ".sqlite"
"""In the names of databases and of the files beside them, which this process may have open."""
_WORD = 8
_BLOCK = 1 << 23
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Trace:
    """Something that was found: the file, how many places in it, and the first one. Says nothing of the content."""

    where: str
    kind: str
    places: int
    first_byte: int


def traces(folder: Path, texts: Sequence[bytes], ids: Sequence[str], kept: Iterable[str]) -> list[Trace]:
    """Return which files under a folder hold windows of the texts, or ids, that no kept string holds.

    ``kept`` is gone through again where something was found: what was stored meanwhile may be what explains it.
    """
    windows, words, values = _Windows(texts), _Words(ids), _Values(ids)
    found: list[Trace] = []
    left = -1
    while True:
        for raw in _joined(values.leaving_out(kept)):
            windows.leave_out(raw)
            words.leave_out(raw)
        windows.settle()
        before, left = left, len(windows) + len(words.left) + len(values.left)
        if left == before:
            return found
        found = _looked(folder, windows, words, values)
        if not found:
            return []


def _looked(folder: Path, windows: _Windows, words: _Words, values: _Values) -> list[Trace]:
    found: list[Trace] = []
    for path in files_under(folder):
        for kind, needles in (("text", windows), ("id", words)):
            places = needles.places(path)
            if places:
                found.append(Trace(str(path), kind, len(places), min(places)))
        if path.name == LISTS and (count := values.count(path)):
            found.append(Trace(str(path), "id", count, 0))
    return found


class _Windows:
    """All windows of some texts, by hash: where each begins in them, and whether it is still looked for."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        raw = b"\0".join(texts)
        self._words = _words(raw)
        every = window_hashes(raw)
        # No note holds a NUL, and every database holds rows of them. No window crosses from a text into the next.
        sought = np.ones(len(every), np.bool_)
        nuls = np.flatnonzero(np.frombuffer(raw, np.uint8) == 0)
        for before in range(WINDOW):
            at = nuls - before
            sought[at[(at >= 0) & (at < len(every))]] = False
        at = np.flatnonzero(sought)
        hashes = every[at]
        del every
        order = np.argsort(hashes)
        at, hashes = at[order], hashes[order]
        del order
        again = np.zeros(len(at), np.bool_)
        again[1:] = (hashes[1:] == hashes[:-1]) & self._same(at[1:], self._words, at[:-1])
        self._at, self._hashes = at[~again], hashes[~again]
        self._left = np.ones(len(self._at), np.bool_)

    def __len__(self) -> int:
        """Return how many are looked for; `settle` was called."""
        return len(self._at)

    def leave_out(self, raw: bytes) -> None:
        """Forget the windows that a kept string holds."""
        for _, numbers in self._found(raw):
            self._left[numbers] = False

    def settle(self) -> None:
        """Look only for what is left from now on."""
        self._at, self._hashes = self._at[self._left], self._hashes[self._left]
        self._left = self._left[self._left]

    def places(self, path: Path) -> list[int]:
        """Return at which bytes of a file a window is that is left; `settle` was called."""
        if not len(self._at):
            return []
        return [
            start + place
            for start, raw in _blocks(path, WINDOW)
            for places, _ in self._found(raw)
            for place in places.tolist()
        ]

    def _found(self, raw: bytes) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the bytes at which windows begin in ``raw``, and which windows they are."""
        words, hashes = _words(raw), window_hashes(raw)
        places = _members(hashes, self._hashes)
        hashes = hashes[places]
        numbers = np.searchsorted(self._hashes, hashes)
        while len(places):
            same = self._same(self._at[numbers], words, places)
            yield places[same], numbers[same]
            # Other windows with the same hash, of which there are hardly ever any, stand beside.
            numbers = numbers + 1
            more = np.flatnonzero(numbers < len(self._hashes))
            more = more[self._hashes[numbers[more]] == hashes[more]]
            places, numbers, hashes = places[more], numbers[more], hashes[more]

    def _same(self, at: NDArray[np.intp], words: Hashes, places: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return whether the windows that begin ``at`` are those at places of other bytes, given as words."""
        same: NDArray[np.bool_] = self._words[at] == words[places]
        for further in range(_WORD, WINDOW, _WORD):
            same &= self._words[at + further] == words[places + further]
        return same


class _Words:
    """Ids, found by their first eight bytes."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.left = {raw for one in ids if len(raw := one.encode()) >= SHORTEST_ID}
        self._sorted = distinct(np.frombuffer(b"".join(raw[:_WORD] for raw in self.left), "<u8").astype(np.uint64))
        self._lengths = sorted({len(raw) for raw in self.left})

    def leave_out(self, raw: bytes) -> None:
        """Forget the ids that a kept string holds."""
        self.left.difference_update([one for _, one in self._in(raw)])

    def places(self, path: Path) -> list[int]:
        """Return at which bytes of a file an id is that is left."""
        if not self.left:
            return []
        # A short one at the end of a block is at the beginning of the next one too.
        return sorted({start + n for start, raw in _blocks(path, self._lengths[-1]) for n, _ in self._in(raw)})

    def _in(self, raw: bytes) -> Iterator[tuple[int, bytes]]:
        for n in _members(_words(raw), self._sorted).tolist():
            for length in self._lengths:
                if (one := raw[n : n + length]) in self.left:
                    yield n, one


class _Values:
    """Ids that are too short for raw bytes, found where they are a whole value of a list."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.left = {one for one in ids if len(one.encode()) < SHORTEST_ID}

    def leaving_out(self, kept: Iterable[str]) -> Iterator[str]:
        """Yield the kept strings, and forget the ids that are one of them."""
        for string in kept:
            self.left.discard(string)
            yield string

    def count(self, path: Path) -> int:
        """Return how many values of a JSON file are an id that is left; a sealed file holds none in clear."""
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0
        return sum(value in self.left for value in _strings(content))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _joined(strings: Iterable[str]) -> Iterator[bytes]:
    """Yield the strings in large blocks, with a NUL between two: no window crosses one."""
    block: list[bytes] = []
    size = 0
    for string in strings:
        block.append(string.encode())
        size += len(block[-1])
        if size >= _BLOCK:
            yield b"\0".join(block)
            block, size = [], 0
    yield b"\0".join(block)


def window_hashes(raw: bytes) -> Hashes:
    """Return a hash for the window that begins at each byte; fewer than 24 bytes have none."""
    words = _words(raw)
    if len(raw) < WINDOW:
        return words[:0]
    first, second, third = (np.uint64(factor) for factor in _FACTORS)
    last = len(raw) - WINDOW + 1
    mixed: Hashes = words[:last] * first
    mixed += words[_WORD : _WORD + last] * second
    mixed += words[2 * _WORD :] * third
    return mixed


def _words(raw: bytes) -> Hashes:
    """Return the eight bytes that begin at each byte as a number."""
    count = max(0, len(raw) - _WORD + 1)
    words = np.empty(count, np.uint64)
    for shift in range(min(_WORD, count)):
        part = np.frombuffer(raw, "<u8", count=(len(raw) - shift) // _WORD, offset=shift)
        words[shift::_WORD] = part
    return words


def _members(hashes: Hashes, wanted: Hashes) -> NDArray[np.intp]:
    if not len(wanted) or not len(hashes):
        return np.empty(0, np.intp)
    # A table over the top bits lets most windows go at one look; only the rest is searched for.
    table = np.zeros(1 << 20, np.bool_)
    shift = np.uint64(44)
    table[wanted >> shift] = True
    maybe = np.flatnonzero(table[hashes >> shift])
    at = np.minimum(np.searchsorted(wanted, hashes[maybe]), len(wanted) - 1)
    same: NDArray[np.intp] = maybe[wanted[at] == hashes[maybe]]
    return same


def _opened(path: Path) -> AbstractContextManager[IO[bytes]]:
    return raw_bytes(path) if _DATABASE in path.name else path.open("rb")


def _blocks(path: Path, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield the file in blocks with where they begin; a place that crosses two is in the second one alone."""
    start, tail = 0, b""
    try:
        with _opened(path) as stream:
            while block := stream.read(_BLOCK):
                raw = tail + block
                yield start, raw
                keep = min(len(raw), overlap - 1)
                start += len(raw) - keep
                tail = raw[len(raw) - keep :]
    except FileNotFoundError:
        return  # a log that ended, or a snapshot that was replaced while the scan went on
