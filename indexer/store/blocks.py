"""Checksums of a file's blocks, so that a mapped file is verified where it is touched and not as a whole.

CRC-32 over 64 KiB: it runs at memory speed where a cryptographic digest takes longer than the disk. It finds every
flipped bit and every burst of up to 32; of other damage to a block it misses one case in four thousand million.
"""

from __future__ import annotations

import mmap
import zlib
from typing import IO

import numpy as np
from numpy.typing import NDArray

from indexer.store.distinct import distinct

BLOCK_BYTES = 1 << 16

Positions = NDArray[np.intp]
Sums = NDArray[np.uint32]


class Unsound(Exception):
    """A derived file is not what its manifest says; carries its name. Mended by making it again."""


def sums_of_stream(stream: IO[bytes]) -> Sums:
    """Return the checksum of each block of a stream, the last one shorter."""
    return np.array([zlib.crc32(block) for block in iter(lambda: stream.read(BLOCK_BYTES), b"")], np.uint32)


def sums_of_bytes(content: bytes) -> Sums:
    """Return the checksum of each block of a file's content."""
    view = memoryview(content)
    starts = range(0, len(content), BLOCK_BYTES)
    return np.array([zlib.crc32(view[at : at + BLOCK_BYTES]) for at in starts], np.uint32)


def sums_as_text(sums: Sums) -> str:
    """Return checksums as they stand in a manifest: eight hexadecimal digits each."""
    return sums.astype(">u4").tobytes().hex()


def sums_from_text(text: str) -> Sums:
    """Return the checksums that `sums_as_text` wrote. Raises ``ValueError``."""
    return np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32)


class CheckedRows:
    """The rows of a mapped matrix; a block is held against its checksum before anything of it is used. Thread safe.

    What was verified once is not read again for it: a block that goes bad on disk afterwards is found by whoever opens
    the file next, and by ``verify``.
    """

    def __init__(
        self, name: str, rows: NDArray[np.float16], sums: Sums | None, mapped: mmap.mmap | None = None
    ) -> None:
        """Know the checksums of the file ``name``, of which ``rows``, ``(n, dim)``, are the whole content.

        Without checksums the rows were verified before, as they were read into memory. ``mapped`` is what the rows are
        mapped by: the disk then reads the blocks that are asked for, and not megabytes around each.

        Raises:
            Unsound: there are not as many checksums as blocks.
        """
        self.rows = rows
        self._name = name
        self._sums = np.empty(0, np.uint32) if sums is None else sums
        self._row_bytes = rows.shape[1] * rows.itemsize
        if sums is not None and len(sums) != -(-rows.nbytes // BLOCK_BYTES):
            raise Unsound(name)
        # Only ever cleared, and two threads that verify one block come to the same: no lock is needed.
        self._unread = np.ones(len(self._sums), np.bool_)
        self._all_read = not len(self._sums)
        self._mapped = mapped
        if mapped is not None:
            mapped.madvise(mmap.MADV_RANDOM)

    def touch(self, at: Positions | None) -> None:
        """Verify the blocks of the rows at positions (``None``: all); positions beyond the end are passed over.

        Raises:
            Unsound: one of the blocks is not what it was.
        """
        if self._all_read:
            return
        wanted = self._wanted(at).tolist()
        if not wanted:
            return
        self._read_ahead(None if at is None else wanted)
        content = self.rows.reshape(-1).view(np.uint8).data
        for block in wanted:
            start = block * BLOCK_BYTES
            if zlib.crc32(content[start : start + BLOCK_BYTES]) != self._sums[block]:
                raise Unsound(self._name)
            self._unread[block] = False
        self._all_read = not self._unread.any()

    def verified(self) -> NDArray[np.float16]:
        """Return all rows. Raises `Unsound` where one is not what it was."""
        self.touch(None)
        return self.rows

    def _read_ahead(self, wanted: list[int] | None) -> None:
        """Tell the disk what comes: these blocks, or (``None``) all in their order, as from then on."""
        if self._mapped is None:
            return
        if wanted is None:
            self._mapped.madvise(mmap.MADV_NORMAL)
            return
        for block in wanted:
            start = block * BLOCK_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, start, min((block + 1) * BLOCK_BYTES, len(self._mapped)) - start)

    def _wanted(self, at: Positions | None) -> Positions:
        """Return the blocks that hold these rows and were not read yet."""
        if at is None:
            return np.flatnonzero(self._unread)
        first_byte = at[at < len(self.rows)] * self._row_bytes
        first, last = first_byte // BLOCK_BYTES, (first_byte + self._row_bytes - 1) // BLOCK_BYTES
        found = []
        for nth in range((self._row_bytes - 1) // BLOCK_BYTES + 2):
            blocks = np.minimum(first + nth, last)
            found.append(blocks[self._unread[blocks]])
        return distinct(np.concatenate(found))
