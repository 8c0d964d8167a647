"""`clinrag embed`: a file of texts, one a line, into a matrix of vectors that can be gone on with after a stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.encoders.encoder import Encoder
from indexer.errors import SourceError, TooLargeError

_BATCH = 64
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: ``rows`` x ``dim``, of which ``blank`` are zero and ``truncated`` were cut."""

    rows: int
    dim: int
    blank: int
    truncated: int


def embed_lines(
    encoder: Encoder,
    source: Path,
    target: Path,
    *,
    queries: bool = False,
    truncate: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Write one L2-normalised float32 row a line to ``target`` (.npy); a blank line is a zero row.

    Lines end at line feeds alone (a carriage return before one is not part of the text). Rows go to a partial file
    beside the target, which takes its name at the end; a stopped run is gone on with by being run again. The input is
    read twice: what is too long is known before the first line is embedded.

    Raises:
        SourceError: the input is no file, cannot be read, is not UTF-8 or changes meanwhile; the target is no file, or
            its folder is not there.
        TooLargeError: lines are too long for the encoder (with their numbers), and ``truncate`` is not set.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise SourceError(f"{target} is the input itself; name another file for the vectors")
    if not target.parent.is_dir():
        raise SourceError(f"{target.parent} is not a folder; make it first")
    if target.exists() and not target.is_file():  # a folder, or a device that a file would take the place of
        raise SourceError(f"{target} is not a file; name one for the vectors")
    before = _stamp(source)
    cuts, n_blank, digest = _survey(encoder, source)
    n_lines = len(cuts)
    too_long = [number for number, cut in enumerate(cuts, 1) if cut is not None]
    if too_long and not truncate:
        named = ", ".join(map(str, too_long[:_NAMED])) + (
            f" and {len(too_long) - _NAMED:,} more" * (len(too_long) > _NAMED)
        )
        raise TooLargeError(
            f"{len(too_long):,} lines are longer than the encoder's {encoder.max_tokens} tokens: {named}. "
            "Split them, or cut them with --truncate"
        )
    job = {"input": digest, "encoder": encoder.spec.fingerprint, "queries": queries, "lines": n_lines}
    partial, marker = target.with_name(target.name + ".partial"), target.with_name(target.name + ".partial.json")
    start = _rows_done(partial, marker, job)
    matrix = _open_matrix(partial, n_lines, encoder.spec.dim, fresh=start == 0)
    encode = encoder.encode_queries if queries else encoder.encode_passages
    for first, texts in _batches(source, start):
        if first + len(texts) > n_lines:
            break  # it grew: said below
        cut = [
            text if end is None else text[:end]
            for text, end in zip(texts, cuts[first : first + len(texts)], strict=True)
        ]
        matrix[first : first + len(texts)] = encode(cut)
        if isinstance(matrix, np.memmap):
            matrix.flush()
        marker.write_text(json.dumps({**job, "done": first + len(texts)}), encoding="utf-8")
        on_progress(first + len(texts), n_lines)
    del matrix
    if _stamp(source) != before:
        raise SourceError(f"{source} changed while it was read; run the same again")
    partial.replace(target)
    marker.unlink(missing_ok=True)
    return Embedded(n_lines, encoder.spec.dim, n_blank, len(too_long))


def _stamp(source: Path) -> tuple[int, int, int]:
    """Return what changes with a file's content."""
    try:
        found = source.stat()
    except OSError as error:
        raise SourceError(f"{source}: {error.strerror or type(error).__name__}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device, and is read twice"
        raise SourceError(f"{source} is {kind}; name a file with a text a line")
    return found.st_mtime_ns, found.st_size, found.st_ino


def _lines(source: Path) -> Iterator[str]:
    try:
        with source.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                except UnicodeDecodeError:
                    raise SourceError(f"{source}: line {number} is not UTF-8") from None
                yield text
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{source}: {error.strerror or type(error).__name__}") from error


def _survey(encoder: Encoder, source: Path) -> tuple[list[int | None], int, str]:
    """Return where each line has to be cut (``None``: not at all), how many are blank, and the input's sha256."""
    cuts: list[int | None] = []
    n_blank = 0
    digest = hashlib.sha256()
    for _, texts in _batches(source, 0):
        for text, spans in zip(texts, encoder.token_spans(texts), strict=True):
            over = len(spans) > encoder.max_tokens
            cuts.append(int(spans[encoder.max_tokens - 1][1]) if over else None)
            n_blank += not text.strip()
            digest.update(text.encode() + b"\n")
    return cuts, n_blank, digest.hexdigest()


def _batches(source: Path, start: int) -> Iterator[tuple[int, list[str]]]:
    texts: list[str] = []
    first = start
    for number, text in enumerate(_lines(source)):
        if number < start:
            continue
        texts.append(text)
        if len(texts) == _BATCH:
            yield first, texts
            first, texts = first + len(texts), []
    if texts:
        yield first, texts


def _rows_done(partial: Path, marker: Path, job: dict[str, object]) -> int:
    """Return how many rows an earlier, stopped run of this very job has written."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(marker.read_text(encoding="utf-8"))
        done = found.pop("done")
        if found == job and partial.exists() and isinstance(done, int):
            return done
    return 0


def _open_matrix(partial: Path, rows: int, dim: int, *, fresh: bool) -> NDArray[np.float32]:
    if not fresh:
        opened: NDArray[np.float32] = np.lib.format.open_memmap(partial, mode="r+")
        return opened
    if rows == 0:  # an empty file cannot be mapped
        with partial.open("wb") as file:
            np.save(file, np.zeros((0, dim), dtype=np.float32))
        return np.zeros((0, dim), dtype=np.float32)
    made: NDArray[np.float32] = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(rows, dim))
    return made
