"""The benchmark measures a part once, goes on where it stopped, names what failed, and tells figures as they are."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from eval.bench import corpus, encoders, parts, workload
from eval.bench.__main__ import main
from eval.bench.measuring import Kept, apart, timed
from eval.bench.report import draw, tables
from indexer.encoders.encoder import HashingEncoder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"patient {n} has fever {n % 7} and cough {n % 11}" for n in range(300)]
    vectors = HashingEncoder().encode_passages(texts).astype(np.float16)
    return folder, corpus.Corpus(texts, [("en", "es")[n % 2] for n in range(300)], vectors, "made texts")


def test_vectors_that_are_kept_are_not_embedded_again(tmp_path):
    class Counting(HashingEncoder):
        asked = 0

        def encode_passages(self, texts):
            Counting.asked += len(texts)
            return super().encode_passages(texts)

    texts = [f"text {n}" for n in range(10)]
    first = corpus._kept_vectors(Counting(), texts[:6], tmp_path / "v")
    both = corpus._kept_vectors(Counting(), texts, tmp_path / "v")
    assert Counting.asked == 10
    np.testing.assert_array_equal(both[:6], first)
    np.testing.assert_array_equal(both, HashingEncoder().encode_passages(texts).astype(np.float16))


def test_other_notes_are_never_answered_from_what_was_kept_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "load_encoder", lambda _: HashingEncoder())

    def notes(folder, *texts):
        path = tmp_path / folder / "notes" / "ward.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": text, "language": "en"}) for text in texts)
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        return corpus.load(HashingEncoder(), tmp_path / folder, tmp_path / "kept")

    one, two = notes("one", "Fever since Monday."), notes("two", "Cough since June.", "Fever since Monday.")
    more, again = notes("one", "Fever since Monday.", "Pain."), notes("one", "Fever since Monday.")
    assert [sorted(found.texts) for found in (one, two, more)] == [
        ["Fever since Monday."],
        ["Cough since June.", "Fever since Monday."],
        ["Fever since Monday.", "Pain."],
    ]
    assert again.texts == one.texts
    assert again.source == one.source
    assert len({one.source, two.source, more.source}) == 3
    for found in (one, two, more, again):
        np.testing.assert_array_equal(found.vectors, HashingEncoder().encode_passages(found.texts).astype(np.float16))


def test_workload_tells_copies_and_answers_exactly(text):
    work = workload.build(text[1], 400, 20)
    assert "120 rows are copies" in work.source
    assert np.allclose(np.linalg.norm(work.vectors, axis=1), 1, atol=1e-3)
    for selectivity in workload.SELECTIVITIES:
        rows = work.allowed(selectivity)
        for query, found in zip(work.queries, work.exact(selectivity, 5), strict=True):
            scores = work.vectors[rows] @ query
            want = np.sort(scores)[::-1][: len(found)]
            np.testing.assert_allclose(work.vectors[found] @ query, want, rtol=1e-6)
            assert set(found.tolist()) <= set(rows.tolist())


def test_questions_are_asked_of_every_chunk(text):
    asked = HashingEncoder().encode_queries(["fever", "cough"]).astype(np.float32)
    work = workload.build(text[1], 300, 20, asked=asked)
    assert "copies" not in work.source
    np.testing.assert_array_equal(work.vectors, text[1].vectors.astype(np.float32))
    np.testing.assert_array_equal(work.queries, asked)
    assert parts.vectors("clinrag-short", work, 0.01)["filters"][0]["recall"] == 1.0


def test_a_part_is_measured_once_for_its_settings(tmp_path):
    marks = tmp_path / "marks"

    def measured():
        marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
        return {"value": 1}

    for again, settings in ((False, {"rows": 1}), (False, {"rows": 1}), (False, {"rows": 2}), (True, {"rows": 2})):
        assert Kept(tmp_path / "out", again=again).get("part", settings, measured)["value"] == 1
    assert marks.read_text() == "xxx"


def test_what_fails_is_named_and_the_rest_is_told(tmp_path, text):
    work = workload.build(text[1], 280, 20)
    kept = Kept(tmp_path, again=False)
    for name in ("clinrag-flat", "clinrag-codes"):
        kept.get(f"vectors-{name}", {"rows": 280}, lambda name=name: parts.vectors(name, work, 0.01))
    kept.get("vectors-absent", {"rows": 280}, lambda: parts.vectors("no such engine", work, 0.01))
    kept.get("growth", {"to": 200}, lambda: parts.growth(text[1], 200, tmp_path))
    kept.get("many-codes", {"rows": 280}, lambda: parts.many_rows(work, "codes", tmp_path, 0.01))
    kept.get("lexical-clinrag", {}, lambda: parts.lexical("clinrag", text[1], ["fever and cough"], 0.01))
    told = tables(kept)
    assert "not measured: vectors-absent: KeyError" in told
    assert told.count("clinrag flat") >= 4
    assert all(one["recall"] == 1.0 for one in kept.all("vectors-")["clinrag-flat"]["filters"])
    assert kept.all("growth")[""]["steps"][-1]["chunks"] == 200
    draw(kept, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"bench-vectors.png", "bench-growth.png"}


def test_a_process_that_dies_is_told(tmp_path):
    import os

    assert apart(lambda: os._exit(3)) == {"failed": "the process ended with 3"}
    figures, answers = timed(lambda n: n, 5, 0.0)
    assert answers == [0, 1, 2, 3, 4] and figures["n"] == 5


def test_encoders_are_measured_in_turns(capsys):
    encoders.main(["hashing", "--passages", "8", "--rounds", "2"])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "encoder"
    name, loaded, query, rate, ratio = row.split()
    assert (name, ratio) == ("hashing", "1.00")
    assert float(loaded) >= 0 <= float(query)
    assert int(rate.replace(",", "")) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "."], "no notes/*.jsonl.gz"),
        (["--encoder", "nope"], "no encoder 'nope'"),
        (["--parts", "speed"], "there is no speed"),
        (["--engines", "magic"], "there is no magic"),
        (["--kinds", "magic"], "there is no magic"),
        (["--rows", "0"], "--rows: 0 is not above 0"),
        (["--seconds", "-1"], "--seconds: -1.0 is not above 0"),
    ],
)
def test_a_mistake_is_named_and_measures_nothing_else_instead(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--encoder", "hashing", *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
