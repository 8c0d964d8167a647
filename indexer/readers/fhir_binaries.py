"""The Binary resources of a run, found by id without being held: where each begins is remembered, not what it holds."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from indexer.readers import strict_json
from indexer.readers.record import RecordError
from indexer.readers.source_file import MAX_JSON_BYTES, READ_ERRORS, FileError, SourceFile, numbered_lines


@dataclass(frozen=True, slots=True)
class _Place:
    source: SourceFile | None  # None: in the spool
    offset: int
    length: int
    digest: bytes


class Binaries:
    """Binary resources in the NDJSON and JSON files of a run, looked up by id.

    Nothing is read before the first look-up; then every file is passed over once, which takes about 300 bytes of memory
    a Binary. Those in gzip files, where one cannot jump, are copied to an unnamed temporary file.
    """

    def __init__(self, files: Callable[[], Iterable[tuple[SourceFile, bool]]]) -> None:
        """Keep the call that gives the JSON files of the run, each with whether it is one object a line."""
        self._files = files
        self._places: dict[str, _Place | None] | None = None
        self._spool: BinaryIO | None = None

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._places = None

    def find(self, binary_id: str) -> dict[str, object] | None:
        """Return the Binary of that id, ``None`` where the run has none.

        Raises:
            RecordError: two different resources have this id.
        """
        if self._places is None:
            self._places = {}
            for source, is_lines in self._files():
                self._scan(source, is_lines, self._places)
        if binary_id not in self._places:
            return None
        place = self._places[binary_id]
        if place is None:
            raise RecordError("attachment", "refers to a Binary whose id is given to different resources")
        value = strict_json.load(self._bytes(place))
        return value if isinstance(value, dict) else None

    def _scan(self, source: SourceFile, is_lines: bool, places: dict[str, _Place | None]) -> None:
        try:
            packed = source.is_gzip()
            if not is_lines:
                self._add(source, 0, source.content(MAX_JSON_BYTES), packed, places)
                return
            with source.open() as stream:
                for _, offset, line in numbered_lines(stream, MAX_JSON_BYTES):
                    if line is not None:
                        self._add(source, offset, line, packed, places)
        except (*READ_ERRORS, FileError):
            return  # the run itself reports a damaged file when it comes to it

    def _add(
        self, source: SourceFile, offset: int, line: bytes, packed: bool, places: dict[str, _Place | None]
    ) -> None:
        if b'"Binary"' not in line:
            return
        try:
            value = strict_json.load(line)
        except RecordError:
            return
        if not isinstance(value, dict) or value.get("resourceType") != "Binary" or not isinstance(value.get("id"), str):
            return
        place = _Place(source, offset, len(line), hashlib.sha256(line.strip()).digest()[:16])
        binary_id = str(value["id"])
        known = places.get(binary_id, place)
        if known is None or known.digest != place.digest:
            places[binary_id] = None
        elif binary_id not in places:
            places[binary_id] = self._spooled(line, place) if packed else place

    def _spooled(self, line: bytes, place: _Place) -> _Place:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the run, see close
        offset = self._spool.seek(0, 2)
        self._spool.write(line)
        return _Place(None, offset, place.length, place.digest)

    def _bytes(self, place: _Place) -> bytes:
        if place.source is None:
            assert self._spool is not None
            self._spool.seek(place.offset)
            return self._spool.read(place.length)
        with place.source.path.open("rb") as stream:
            stream.seek(place.offset)
            return stream.read(place.length)
