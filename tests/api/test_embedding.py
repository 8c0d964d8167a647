"""`embed`: a row a line, unit length, refused or cut when too long, and gone on with after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from api.embedding import embed_lines
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import SourceError, TooLargeError


class Stopping(HashingEncoder):
    """An encoder that is interrupted at its ``stop``-th batch and counts the texts that it saw."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop
        self.seen = 0

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.stop -= 1
        if self.stop == 0:
            raise KeyboardInterrupt
        self.seen += len(texts)
        return super().encode_passages(texts)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "lines.txt"
    path.write_bytes(content)
    return path


def test_a_row_a_line(tmp_path: Path):
    source = written(tmp_path, "dolor torácico\n\n\t\r\n胸痛 line end\x0b in it\r\nlast".encode())
    made = embed_lines(HashingEncoder(), source, tmp_path / "v.npy")
    rows = np.load(tmp_path / "v.npy")
    texts = ["dolor torácico", "", "\t", "胸痛 line end\x0b in it", "last"]
    assert (made.rows, made.dim, made.blank, made.truncated) == (5, 384, 2, 0)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, HashingEncoder().encode_passages(texts))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 0, 1, 1], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "v.npy"]


def test_queries_are_the_other_side(tmp_path: Path):
    source = written(tmp_path, b"fever\n")
    embed_lines(HashingEncoder(), source, tmp_path / "q.npy", queries=True)
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), HashingEncoder().encode_queries(["fever"]))


def test_an_empty_file_gives_no_rows(tmp_path: Path):
    made = embed_lines(HashingEncoder(), written(tmp_path, b""), tmp_path / "v.npy")
    assert np.load(tmp_path / "v.npy").shape == (0, 384)
    assert made.rows == 0


def test_long_lines_are_refused_with_their_numbers_and_nothing_is_written(tmp_path: Path):
    source = written(tmp_path, b"short\n" + b"word " * 600 + b"\nshort\n" + b"word " * 600 + b"\n")
    with pytest.raises(TooLargeError, match=r"2 lines are longer than the encoder's 512 tokens: 2, 4\. .*--truncate"):
        embed_lines(HashingEncoder(), source, tmp_path / "v.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]


def test_truncate_cuts_at_the_last_token_that_fits(tmp_path: Path):
    encoder = HashingEncoder()
    text = " ".join(f"w{number}" for number in range(600))
    made = embed_lines(encoder, written(tmp_path, text.encode()), tmp_path / "v.npy", truncate=True)
    cut = text[: encoder.token_spans([text])[0][encoder.max_tokens - 1][1]]
    assert made.truncated == 1
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), encoder.encode_passages([cut]))


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path):
    source = written(tmp_path, "".join(f"line {number}\n" for number in range(200)).encode())
    with pytest.raises(KeyboardInterrupt):
        embed_lines(Stopping(3), source, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()
    second = Stopping(-1)
    embed_lines(second, source, tmp_path / "v.npy")
    assert second.seen == 200 - 2 * 64
    expected = HashingEncoder().encode_passages([f"line {number}" for number in range(200)])
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    assert not list(tmp_path.glob("*.partial*"))


def test_a_changed_input_is_embedded_from_its_beginning(tmp_path: Path):
    lines = [f"line {number}\n" for number in range(200)]
    with pytest.raises(KeyboardInterrupt):
        embed_lines(Stopping(3), written(tmp_path, "".join(lines).encode()), tmp_path / "v.npy")
    second = Stopping(-1)
    embed_lines(second, written(tmp_path, "".join(reversed(lines)).encode()), tmp_path / "v.npy")
    assert second.seen == 200


def test_input_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(SourceError, match=r"lines\.txt: line 2 is not UTF-8"):
        embed_lines(HashingEncoder(), written(tmp_path, b"good\n\xff\xfe\n"), tmp_path / "v.npy")
    with pytest.raises(SourceError, match=r"missing\.txt: No such file"):
        embed_lines(HashingEncoder(), tmp_path / "missing.txt", tmp_path / "v.npy")
    with pytest.raises(SourceError, match="nowhere is not a folder"):
        embed_lines(HashingEncoder(), written(tmp_path, b"x"), tmp_path / "nowhere" / "v.npy")


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path: Path):
    class Changing(HashingEncoder):
        def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
            with source.open("a") as file:
                file.write("one more\n")
            return super().encode_passages(texts)

    source = written(tmp_path, b"fever\n" * 100)
    with pytest.raises(SourceError, match="changed while it was read"):
        embed_lines(Changing(), source, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()
    embed_lines(HashingEncoder(), source, tmp_path / "v.npy")
    assert np.load(tmp_path / "v.npy").shape == (101, 384)
