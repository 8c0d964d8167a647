"""Importing takes memory for the index, not for what it is made from, however much that is."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

from indexer.scan import traces
from indexer.store.postings import PostingsIndex

IMPORTING = """
    import sys
    from pathlib import Path
    from indexer.build import index_notes
    from indexer.library import Library
    from indexer.readers import read_sources
    from tests.indexer.made_collections import SPEC, LetterEncoder

    class Forgetful(LetterEncoder):
        encode_passages = LetterEncoder.encode_queries

    def figure(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

    source, home = map(Path, sys.argv[1:])
    with Library(home).create("ward", "letters", SPEC) as ward:
        before = figure("VmRSS:")
        report = index_notes(ward, Forgetful(), read_sources([source]))
        ward.publish()
    index = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 1e6
    print(report.stored, report.skipped, figure("VmHWM:") - before, index)
"""


def imported(folder, notes, *, turns=1):
    """Return how many notes were stored and skipped, the megabytes that it took, and those of the index."""
    folder.mkdir()
    words = [f"{first}{middle}{last}" for first in "bdfghklmnp" for middle in "aeiou" for last in ("rol", "tin", "sem")]
    generator = np.random.default_rng(1)
    lines = []
    for number in range(notes):
        text = " ".join(words[at] for at in generator.integers(0, len(words), 1000))
        lines.append(json.dumps({"id": f"n{number}", "text": f"{number}. {text}", "patient_id": f"p{number // 10}"}))
    with (folder / "notes.jsonl").open("w") as stream:
        for _ in range(turns):
            stream.write("\n".join(lines) + "\n")
    script = [sys.executable, "-c", textwrap.dedent(IMPORTING), str(folder / "notes.jsonl"), str(folder / "home")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    stored, skipped, peak, index = done.stdout.split()
    return int(stored), int(skipped), float(peak), float(index)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_a_source_sixty_times_as_long_takes_no_more_memory(tmp_path):
    _, _, once, _ = imported(tmp_path / "once", 60)
    stored, skipped, often, _ = imported(tmp_path / "often", 60, turns=60)
    assert (stored, skipped) == (60, 59 * 60)
    assert (tmp_path / "often" / "notes.jsonl").stat().st_size > 20e6
    assert often < once + 8


def peak_over(made):
    """Return how many bytes were taken at the most while something was made, beyond what was there."""
    gc.collect()
    tracemalloc.start()
    try:
        made()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_terms_are_put_in_order_in_little_more_than_their_own_memory():
    index, n_terms = PostingsIndex(), 4000
    for start in range(0, 16_000, 1000):
        documents = [[f"t{(n * 7 + k) % n_terms}" for k in range(60)] for n in range(start, start + 1000)]
        index.add(np.arange(start, start + 1000, dtype=np.int64), documents)
    frozen = index.frozen()
    size = sum(array.nbytes for array in frozen(lambda: None).values())
    assert size > 5e6
    assert peak_over(lambda: frozen(lambda: None)) < size + 18e6


def test_a_scan_takes_memory_for_its_text_and_not_for_every_window(tmp_path):
    text = np.random.default_rng(2).bytes(100_000).hex().encode()
    (tmp_path / "file").write_bytes(text[-2000:])
    found = []
    assert peak_over(lambda: found.extend(traces(tmp_path, [text], [], [text[-1000:].decode()]))) < 100 * len(text)
    assert [one.places for one in found] == [1000]


def test_codes_are_made_in_little_more_than_their_own_memory():
    codes = pytest.importorskip("indexer.store.faiss_codes").RowCodes
    rows = np.random.default_rng(3).standard_normal((24_000, 256)).astype(np.float16)
    size = len(rows) * 128
    assert peak_over(lambda: codes.of(rows).tobytes()) < 2 * size + 18e6
