"""Paths to notes: folders walked in order, every file told by its content and read by the reader of its format."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath, PurePosixPath

from indexer.errors import ArgumentError, SourceError
from indexer.readers.ccda import read_ccda
from indexer.readers.columns import check_column_map
from indexer.readers.detect import Format, detect, suffix_of
from indexer.readers.fhir_binaries import Binaries
from indexer.readers.hl7v2 import read_hl7
from indexer.readers.json_notes import read_json_document, read_json_lines
from indexer.readers.source_file import READ_ERRORS, FileError, SourceFile, shown
from indexer.readers.tables import read_table
from indexer.readers.text_files import TYPES, read_document
from indexer.records import Note, RowError

_BRAT_FILES = frozenset((".ann", ".conf"))
_NAMED_FILES = 5


@dataclass(slots=True)
class WithoutNotes:
    """What a run read that gives no notes and is no fault: FHIR resources of other types, in files without any note.

    ``files`` are the first few of the ``n_files``, ``resources`` count what they hold, by type; ``n_read`` is how many
    files there were at all.
    """

    n_read: int = 0
    n_files: int = 0
    files: list[str] = field(default_factory=list)
    resources: Counter[str] = field(default_factory=Counter)

    def add(self, source: SourceFile) -> None:
        """Take in a file that gave neither a note nor an error."""
        self.n_files += 1
        self.resources.update(source.others)
        if len(self.files) < _NAMED_FILES:
            self.files.append(shown(source.path))


def read_sources(
    paths: Sequence[Path],
    *,
    column_map: Mapping[str, str] | None = None,
    input_format: str | None = None,
    without: Sequence[Path] = (),
    without_notes: WithoutNotes | None = None,
) -> Iterator[Note | RowError]:
    """Return an iterator over the notes of files and folders, with an error in the place of each record not taken.

    Folders are walked in the order of their names; hidden files and the annotation files of BRAT are passed over. One
    record is held at a time. A file that turns out damaged gives one error without a line, and the run goes on.

    Args:
        paths: Files and folders; the ids of text files are their paths below the folder that was given.
        column_map: Field of a note to the column (of a table) or key (of JSON lines) that holds it.
        input_format: A `Format`, where the content is not to decide.
        without: Folders that are passed over: databases that this process has open would lose their locks.
        without_notes: Is told, as the run goes on, which files hold none.

    Raises:
        SourceError: a path is not there, cannot be read or lies in such a folder; raised by this call, before anything
            is read.
        ArgumentError: the column map or the format is not of the allowed form.
    """
    check_column_map(column_map or {})
    if input_format is not None and input_format not in list(Format):
        raise ArgumentError("format", f"is not one of {', '.join(Format)}")
    for path in paths:
        _check_outside(path, without)
        _check_readable(path)
    wanted = None if input_format is None else Format(input_format)
    return _Run(paths, column_map or {}, wanted, without, without_notes or WithoutNotes()).read()


class _Run:
    def __init__(
        self,
        paths: Sequence[Path],
        column_map: Mapping[str, str],
        wanted: Format | None,
        without: Sequence[Path],
        without_notes: WithoutNotes,
    ) -> None:
        self._paths = paths
        self._without_notes = without_notes
        self._without = {os.path.realpath(folder) for folder in without}
        self._column_map = column_map
        self._wanted = wanted
        self._binaries = Binaries(self._json_files)

    def read(self) -> Iterator[Note | RowError]:
        try:
            for source in self._files():
                if isinstance(source, RowError):
                    yield source
                else:
                    yield from self._counted(source)
        finally:
            self._binaries.close()

    def _counted(self, source: SourceFile) -> Iterator[Note | RowError]:
        self._without_notes.n_read += 1
        gave_any = False
        for item in self._read(source):
            gave_any = True
            yield item
        if source.others and not gave_any:
            self._without_notes.add(source)

    def _read(self, source: SourceFile) -> Iterator[Note | RowError]:
        try:
            found = self._wanted or detect(source.head(), source.relative, source.column_map.values())
            for item in _reader(found, named=self._wanted is not None)(source):
                yield source.placed(None, item) if isinstance(item, Note) and item.origin is None else item
        except FileError as error:
            yield source.error(None, None, str(error))
        except READ_ERRORS as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            yield source.error(None, None, f"cannot be read to its end ({reason})")

    def _files(self) -> Iterator[SourceFile | RowError]:
        for path in self._paths:
            if path.is_dir():
                yield from self._walk(path, path)
            else:
                yield self._source(path, path.name)

    def _walk(self, folder: Path, top: Path) -> Iterator[SourceFile | RowError]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield RowError(shown(folder), None, None, f"cannot be listed ({error.strerror})")
            return
        names = {entry.name for entry in entries}
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            relative = path.relative_to(top).as_posix()
            if entry.is_dir(follow_symlinks=False):
                if os.path.realpath(path) not in self._without:
                    yield from self._walk(path, top)
            elif entry.is_dir():
                yield RowError(shown(path), None, None, "is a link to a folder, which is not followed; give its path")
            elif not entry.is_file():
                yield RowError(shown(path), None, None, "is not a regular file")
            elif entry.is_symlink() and _within(path, self._without):
                yield RowError(shown(path), None, None, "is a link to a file that clinrag keeps for itself")
            elif PurePosixPath(relative).suffix not in _BRAT_FILES:
                yield self._source(path, relative)
            elif path.suffix == ".ann" and f"{path.stem}.txt" not in names:
                yield RowError(shown(path), None, None, "is an annotation file without its text file")

    def _source(self, path: Path, relative: str) -> SourceFile:
        return SourceFile(path, relative, self._column_map, self._binaries)

    def _json_files(self) -> Iterator[tuple[SourceFile, bool]]:
        for source in self._files():
            if isinstance(source, RowError):
                continue
            try:
                found = detect(source.head(), source.relative)
            except (*READ_ERRORS, FileError):
                continue
            if found in (Format.JSONL, Format.JSON):
                yield source, found is Format.JSONL


def _reader(found: Format, *, named: bool) -> Callable[[SourceFile], Iterator[Note | RowError]]:
    if found is Format.FHIR:
        return _read_fhir
    if found in (Format.MIMIC, Format.OMOP):
        return partial(_read_columns, wanted=found.value)
    if found is Format.PARQUET:
        return _read_columns
    if found in TYPES:
        return partial(_read_text, kind=found.value)
    by_format: dict[Format, Callable[[SourceFile], Iterator[Note | RowError]]] = {
        Format.JSONL: read_json_lines,
        Format.JSON: read_json_document,
        Format.CSV: partial(read_table, delimiter=None),
        Format.TSV: partial(read_table, delimiter="\t" if named else None),
        Format.CCDA: read_ccda,
        Format.HL7: read_hl7,
    }
    return by_format[found]


def _read_fhir(source: SourceFile) -> Iterator[Note | RowError]:
    lines = detect(source.head(), source.relative) is Format.JSONL
    return (read_json_lines if lines else read_json_document)(source, fhir_only=True)


def _read_columns(source: SourceFile, wanted: str | None = None) -> Iterator[Note | RowError]:
    if source.head().startswith(b"PAR1") or suffix_of(source.relative) in (".parquet", ".pq"):
        # pyarrow takes a while to import and most runs need none of it.
        from indexer.readers.parquet import read_parquet

        return read_parquet(source, wanted=wanted)
    return read_table(source, wanted=wanted)


def _read_text(source: SourceFile, kind: str) -> Iterator[Note | RowError]:
    if kind == "text" and source.path.with_suffix(".ann").is_file():
        kind = "brat"
    return read_document(source, kind)


def _check_outside(path: Path, without: Sequence[Path]) -> None:
    if "\0" in str(path):
        return
    for folder in without:
        if _within(path, [os.path.realpath(folder)]):
            raise SourceError(
                f"{shown(path)} lies in {shown(folder)}, which clinrag keeps for itself; name other files"
            )


def _within(path: Path, folders: Iterable[str]) -> bool:
    """Return whether a path, its links followed, lies in one of these folders, whose own are."""
    real = PurePath(os.path.realpath(path))
    return any(real.is_relative_to(folder) for folder in folders)


def _check_readable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            with os.scandir(path):
                return
        if not stat.S_ISREG(mode):
            raise SourceError(f"{shown(path)} is neither a file nor a folder")
        with path.open("rb"):
            return
    except SourceError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SourceError(f"{shown(path)} cannot be read: {reason}; check the path and its permissions") from None
