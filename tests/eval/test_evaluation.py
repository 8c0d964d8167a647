"""Measures, intervals, systems and a whole run, on fixtures small enough to check by hand."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from api.evaluation import build_systems
from eval.experiment import commit_id, compare, load_results, run_suite, write_run
from eval.judged import JudgedSet, Text
from eval.metrics import evaluate, language_shares, ranked
from eval.report import table, write_report
from eval.seeds import compare_seeds, seeds_table
from eval.spans import NoteSpan, load_span_questions, span_scores
from eval.statistics import bootstrap, holm, paired_bootstrap, welch
from eval.systems import DenseSystem, FusedSystem, LexicalSystem, smaller
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ArgumentError, SourceError
from indexer.store.lexical import Bm25Oracle


def judged_by_hand() -> JudgedSet:
    corpus = (Text("d1", "apixaban 5 mg", "en"), Text("d2", "fiebre alta", "es"), Text("d3", "normal", "en"))
    queries = (Text("q1", "apixaban", "es"), Text("q2", "fiebre", "en"))
    return JudgedSet("hand/es-en", queries, corpus, {"q1": {"d1": 1}, "q2": {"d2": 1}}, "nDCG@10")


def test_measures_by_hand_and_an_unanswered_query_counts_as_zero():
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    scores = evaluate(qrels, {"q1": {"x": 3.0, "a": 2.0, "b": 1.0}}, ["nDCG@10", "RR@10", "R@1", "Success@1"])
    ideal = 1 + 1 / math.log2(3)
    assert scores["nDCG@10"].per_query == pytest.approx(((1 / math.log2(3) + 1 / 2) / ideal, 0.0))
    assert scores["RR@10"].mean == pytest.approx(0.25)
    assert scores["R@1"].mean == scores["Success@1"].mean == 0.0


@given(
    st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.integers(0, 2), min_size=1),
    st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.sampled_from([0.25, 0.5, 1.0])),
)
def test_all_measures_see_one_ranking_and_a_file_of_it_scores_alike(grades, scores):
    found = {name: one.mean for name, one in evaluate({"q": grades}, {"q": scores}).items()}
    right = [grades.get(passage, 0) for passage in ranked(scores)]
    relevant = sorted((grade for grade in grades.values() if grade), reverse=True)
    gain, ideal = (sum(g / math.log2(n + 2) for n, g in enumerate(of[:10])) for of in (right, relevant))
    first = next((1 / rank for rank, grade in enumerate(right[:10], 1) if grade), 0.0)
    by_hand = {
        "nDCG@10": gain / ideal if ideal else 0.0,
        "RR@10": first,
        "R@10": sum(map(bool, right[:10])) / len(relevant) if relevant else 0.0,
        "Success@1": float(bool(right) and right[0] > 0),
    }
    assert found == pytest.approx(by_hand)
    # trec_eval reads a run in the same order, whatever its ranks say
    theirs = pytrec_eval.RelevanceEvaluator({"q": grades}, {"ndcg_cut.10", "recip_rank", "recall.10", "success.1"})
    told = theirs.evaluate({"q": scores}).get("q", {})
    assert told.get("ndcg_cut_10", 0.0) == pytest.approx(found["nDCG@10"])
    assert told.get("recall_10", 0.0) == pytest.approx(found["R@10"])
    assert told.get("success_1", 0.0) == pytest.approx(found["Success@1"])
    if found["RR@10"]:
        assert told["recip_rank"] == pytest.approx(found["RR@10"])


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1, width=32), min_size=1))
def test_scores_that_lie_close_together_stay_apart_in_a_file(tmp_path_factory, scores):
    path = tmp_path_factory.getbasetemp() / "close.run"
    write_run(path, {"q": scores, "r": {"a": 1.0}}, "tag")
    found = {(row.query_id, row.doc_id): row.score for row in ir_measures.read_trec_run(str(path))}
    assert found == {("q", passage): score for passage, score in scores.items()} | {("r", "a"): 1.0}


def test_an_unknown_measure_is_refused():
    with pytest.raises(ArgumentError, match="nDCGG@10"):
        evaluate({"q": {"d": 1}}, {"q": {"d": 1.0}}, ["nDCGG@10"])


def test_language_shares_by_hand():
    judged = judged_by_hand()
    run = {"q1": {"d2": 2.0, "d1": 1.0}, "q2": {"d1": 3.0, "d3": 2.0, "d2": 1.0}}
    shares = language_shares(judged, run, k=2)
    assert shares["Max@R"] == pytest.approx((1 + 0) / 2)
    assert shares["same_language_unrelated"] == pytest.approx((1 / 2 + 2 / 2) / 2)
    assert (shares["found_en"], shares["found_es"]) == (1.0, 0.0)


def test_the_bootstrap_covers_the_mean_and_a_clear_difference_excludes_zero():
    generator = np.random.default_rng(3)
    values = generator.normal(0.6, 0.1, 400)
    interval = bootstrap(values)
    assert interval.low < 0.6 < interval.high
    assert paired_bootstrap(values + 0.05, values).excludes_zero
    assert not paired_bootstrap(values, values).excludes_zero
    assert bootstrap(values) == bootstrap(values)
    with pytest.raises(ArgumentError, match="paired"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ArgumentError, match="empty"):
        bootstrap([])


def test_values_of_one_group_are_one_draw():
    generator = np.random.default_rng(5)
    values = generator.normal(size=40)
    alone = bootstrap(values)
    assert bootstrap(values, range(40)) == alone
    repeated = bootstrap(np.tile(values, 9), list(range(40)) * 9)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert bootstrap(values, ["one"] * 40).high == pytest.approx(alone.mean)
    # groups of two sizes: the mean is that of all values
    assert bootstrap([1.0, 1.0, 0.0], "aab").mean == pytest.approx(2 / 3)


def test_the_interval_has_its_coverage_on_a_null_difference():
    generator = np.random.default_rng(11)
    hits = sum(
        not paired_bootstrap(generator.normal(size=60), generator.normal(size=60), samples=400).excludes_zero
        for _ in range(200)
    )
    assert 0.88 <= hits / 200 <= 0.99


def test_welch_equals_the_formula():
    first, second = [0.61, 0.63, 0.62], [0.55, 0.58, 0.51]
    a, b = np.array(first), np.array(second)
    t = (a.mean() - b.mean()) / math.sqrt(a.var(ddof=1) / 3 + b.var(ddof=1) / 3)
    assert welch(first, second)[0] == pytest.approx(t)
    with pytest.raises(ArgumentError, match="seeds"):
        welch([1.0], second)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values: dict[str, float]):
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for name, value in p_values.items():
        assert value <= adjusted[name] <= 1.0
    order = sorted(p_values, key=lambda name: p_values[name])
    assert [adjusted[name] for name in order] == sorted(adjusted.values())


def systems() -> list:
    def analyze(text: str, language: str | None) -> list[str]:
        return text.split()

    def analyze_query(text: str, languages) -> dict[str, float]:
        return dict.fromkeys(text.split(), 1.0)

    lexical = LexicalSystem("bm25", Bm25Oracle, analyze, analyze_query)
    dense = DenseSystem("hashing", HashingEncoder())
    return [dense, lexical, FusedSystem("hybrid", [dense, lexical])]


def test_systems_rank_the_right_passage_first():
    judged = judged_by_hand()
    for system in systems():
        run = system.rank(judged, 10)
        scores = evaluate(judged.qrels, run, ["RR@10"])
        assert scores["RR@10"].mean == 1.0, system.name


@pytest.mark.parametrize("correction", ["mean", "whiten"])
def test_corrected_vectors_still_rank(correction: str):
    judged = judged_by_hand()
    run = DenseSystem("corrected", HashingEncoder(), correction=correction).rank(judged, 2)
    assert all(len(scores) == 2 for scores in run.values())
    assert all(np.isfinite(list(scores.values())).all() for scores in run.values())


def test_smaller_vectors_by_hand_and_a_width_that_an_encoder_has():
    rows = np.array([[3.0, -1.5, 0.01, 4.0]], dtype=np.float32)
    assert smaller("2", rows).tolist() == [[3.0, -1.5]]
    assert smaller("binary", rows).tolist() == [[1.0, -1.0, 1.0, 1.0]]
    np.testing.assert_allclose(smaller("int8", rows), [[95 * 4 / 127, -48 * 4 / 127, 0.0, 4.0]], rtol=1e-6)
    judged = judged_by_hand()
    (small,) = build_systems(["hashing+int8"])
    assert evaluate(judged.qrels, small.rank(judged, 10), ["RR@10"])["RR@10"].mean == 1.0
    for name in ("hashing+0", "hashing+100000", "hashing+half"):
        with pytest.raises(ArgumentError, match="no correction"):
            build_systems([name])


def test_the_commit_of_a_report_is_that_of_this_code_wherever_it_is_run(tmp_path: Path, monkeypatch):
    own = commit_id()
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert commit_id() == own


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_smoke_suite_runs_reports_and_compares(tmp_path: Path):
    rows, parities = run_suite("smoke", systems(), out=tmp_path, data=None, command="test", max_queries=12)
    assert {row.system for row in rows} == {"hashing", "bm25", "hybrid"}
    results = load_results(tmp_path)
    assert results["command"] == "test"
    assert len(results["data_sha256"]["bundled"]) == 64
    assert (results["max_queries"], max(row.queries for row in rows)) == (12, 12)
    assert {one.system for one in parities} == {"hashing", "bm25", "hybrid"}
    assert [row["gap"]["mean"] for row in results["parity"]] == [one.gap.mean for one in parities]
    text = table(results["rows"])
    assert "hybrid" in text.splitlines()[0]
    found = compare(tmp_path, "hybrid", "hashing")
    assert {one.set_name for one in found} == {row.set_name.replace("/", ".") for row in rows}
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "<h2>Parity of languages</h2>" in page
    assert "http" not in page.split("</style>")[1]
    with pytest.raises(SourceError, match="no values of a system 'nothing'"):
        compare(tmp_path, "nothing", "hashing")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_set_asked_in_many_languages_at_once_has_a_report_without_a_heat_map(tmp_path: Path):
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}
    row = {"task": "t", "set_name": "t/en+zh+es-all", "system": "a", "queries": 3, "corpus": 4, "main_metric": "R@5"}
    record = {"suite": "t", "command": "c", "commit": None, "made_at": "then", "hardware": "h", "data_sha256": {}}
    rows = [row | {"interval": interval, "values": {"R@5": 0.5}}]
    (tmp_path / "results.json").write_text(json.dumps(record | {"rows": rows}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<strong>0.500 [0.250 0.750]</strong>" in page  # told without colours and without pictures
    assert page.count("<img") == page.count('<img alt="Main measure') == 1
    assert not (tmp_path / "heatmap.png").exists()


def test_systems_of_one_name_or_of_none_are_refused(tmp_path: Path):
    with pytest.raises(ArgumentError, match="link it under another"):
        run_suite("smoke", [*systems(), systems()[0]], out=tmp_path, data=None, command="test")
    with pytest.raises(ArgumentError, match="hold an empty name"):
        build_systems(["bm25", ""])


def _write_values(folder: Path, system: str, values: dict[str, list[float]]) -> None:
    (folder / system).mkdir(parents=True)
    for name, row in values.items():
        lines = ["query\tRR@10", *(f"q{number}\t{value:.6f}" for number, value in enumerate(row))]
        (folder / system / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_values_that_a_cut_off_run_left_half_written_are_told_as_such(tmp_path: Path):
    _write_values(tmp_path, "x", {"t.s": [0.1, 0.3]})
    path = tmp_path / "x" / "t.s.tsv"
    whole = path.read_text(encoding="utf-8")
    for half in ("", "query", whole[: whole.rindex("\t")]):
        path.write_text(half, encoding="utf-8")
        with pytest.raises(SourceError, match=r"x/t\.s\.tsv is not whole"):
            compare(tmp_path, "x", "x")
    path.write_text(whole.replace("q1", "q\u2028 1"), encoding="utf-8")
    assert compare(tmp_path, "x", "x")[0].difference.n == 2


def test_results_that_a_cut_off_run_left_half_written_are_told_as_such(tmp_path: Path):
    for half in ("", '{"rows": [', "[]"):
        (tmp_path / "results.json").write_text(half, encoding="utf-8")
        with pytest.raises(SourceError, match=r"results\.json is no"):
            write_report(tmp_path)


def test_a_judged_question_may_hold_any_line_separator(tmp_path: Path):
    path = tmp_path / "judged.jsonl"
    asked = {"id": "a", "question": "One\u2028two\x85three?", "relevant": [{"note_id": "n", "start": 0, "end": 2}]}
    path.write_text(f"{json.dumps(asked, ensure_ascii=False)}\r\n\r\n", encoding="utf-8", newline="")
    assert [question.text for question in load_span_questions(path)] == [asked["question"]]


SPANS = st.lists(
    st.builds(lambda note, at, n: NoteSpan(note, at, at + n), st.sampled_from("ab"), *[st.integers(1, 9)] * 2)
)


@given(SPANS.filter(len), SPANS)
def test_the_share_of_spans_that_hits_cover_is_that_of_their_characters(relevant, hits):
    found = span_scores(relevant, hits)
    seen = {(hit.note_id, at) for hit in hits[:10] for at in range(hit.start, hit.end)}
    shares = [np.mean([(span.note_id, at) in seen for at in range(span.start, span.end)]) for span in relevant]
    assert found.recall == pytest.approx(np.mean(shares))
    assert found.ndcg >= (0.0 if not hits else span_scores(relevant, hits[:1]).ndcg)


def test_spans_beyond_every_note_take_no_room(tmp_path: Path):
    far = NoteSpan("a", 0, 10**15)
    assert span_scores([far], [NoteSpan("a", 0, 10**14)]).recall == pytest.approx(0.1)
    (tmp_path / "judged.jsonl").write_text(
        '{"id":"q","question":"?","relevant":[{"note_id":"a","start":0,"end":Infinity}]}'
    )
    with pytest.raises(SourceError, match="line 1"):
        load_span_questions(tmp_path / "judged.jsonl")


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    _write_values(tmp_path / "a", "x", {"t.s": [0.1, 0.3], "t.other": [1.0]})
    _write_values(tmp_path / "b", "y", {"t.s": [0.2, 0.2, 0.9]})
    (found,) = compare(tmp_path / "a", "x", "y", other_folder=tmp_path / "b")
    assert (found.difference.n, found.second) == (2, pytest.approx(0.2))  # the queries that both were asked
    (tmp_path / "a" / "t.s.qrels").write_text("q0 0 d1 1\nq1 0 d1 1\nq0 0 d2 0\n")
    (grouped,) = compare(tmp_path / "a", "x", "y", other_folder=tmp_path / "b")
    assert found.difference.low < found.difference.mean  # one passage answers both: there is one draw, and no spread
    assert grouped.difference.low == grouped.difference.mean == pytest.approx(found.difference.mean)
    for name, sha in (("a/x", "1"), ("b/y", "2")):
        (tmp_path / name / "data.json").write_text(json.dumps({"t": sha}))
    with pytest.raises(SourceError, match="t: a/x and b/y were measured on other data"):
        compare(tmp_path / "a", "x", "y", other_folder=tmp_path / "b")
    (tmp_path / "b" / "y" / "data.json").unlink()
    path = tmp_path / "b" / "y" / "t.s.tsv"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("RR@10", "R@5"), encoding="utf-8")
    with pytest.raises(SourceError, match=r"t\.s: x was measured by RR@10, y by R@5"):
        compare(tmp_path / "a", "x", "y", other_folder=tmp_path / "b")
    path.write_text(whole.replace("q", "p").replace("puery", "query"), encoding="utf-8")
    with pytest.raises(SourceError, match="asked no query in common"):
        compare(tmp_path / "a", "x", "y", other_folder=tmp_path / "b")


def test_a_run_into_the_folder_of_another_leaves_no_figure_that_is_taken_for_its_own(tmp_path: Path):
    run_suite("smoke", systems()[:2], out=tmp_path, data=None, command="test", max_queries=3)
    (first, second) = (system.name for system in systems()[:2])
    stale = tmp_path / first / "bundled.of-before.tsv"
    stale.write_text("query\tRR@10\nq1\t1.0\n", encoding="utf-8")
    run_suite("smoke", systems()[:1], out=tmp_path, data=None, command="test", max_queries=3)
    assert not stale.exists()
    assert compare(tmp_path, first, second)
    (tmp_path / second / "data.json").write_text('{"bundled": "what the notes were then"}', encoding="utf-8")
    with pytest.raises(SourceError, match=r"bundled: .* were measured on other data"):
        compare(tmp_path, first, second)
    with pytest.raises(SourceError, match=r"bundled: .* were measured on other data"):
        compare_seeds(tmp_path, {"raw": [first], "tuned": [second]})


def test_seeds_that_were_asked_other_queries_are_not_averaged(tmp_path: Path):
    _write_values(tmp_path, "raw", {"a": [0.1, 0.3]})
    _write_values(tmp_path, "tuned", {"a": [0.1, 0.3, 0.9]})
    with pytest.raises(SourceError, match="a: not all of these systems were asked the same queries"):
        compare_seeds(tmp_path, {"raw": ["raw"], "tuned": ["tuned"]})


def test_groups_of_seeds_are_told_apart_by_welch_with_holm(tmp_path: Path):
    _write_values(tmp_path, "raw", {"a": [0.1, 0.3], "b": [0.5, 0.5]})
    for seed, (a, b) in enumerate([(0.8, 0.52), (0.9, 0.48), (0.85, 0.5)]):
        _write_values(tmp_path, f"tuned{seed}", {"a": [a, a], "b": [b, b]})
    rows = compare_seeds(tmp_path, {"raw": ["raw"], "tuned": ["tuned0", "tuned1", "tuned2"]})
    raw, tuned = rows[0].groups
    assert (raw.seeds, raw.mean, raw.deviation, raw.p) == (1, pytest.approx(0.2), 0.0, None)
    assert (tuned.mean, tuned.deviation) == (pytest.approx(0.85), pytest.approx(0.05))
    # one value without chance on the other side: the one-sample t is gap / (deviation / sqrt(n))
    assert tuned.t == pytest.approx(0.65 / (0.05 / math.sqrt(3)))
    one_sided = [row.groups[1].p for row in rows]
    assert one_sided[0] is not None and one_sided[0] < 0.01
    assert one_sided[1] == pytest.approx(1.0)
    assert "| a | RR@10 | 0.200 | 0.850 ± 0.050 (p 0.0039) |" in seeds_table(rows)


def test_groups_that_cannot_be_compared_are_refused(tmp_path: Path):
    _write_values(tmp_path, "one", {"a": [0.1]})
    _write_values(tmp_path, "other", {"b": [0.1]})
    with pytest.raises(ArgumentError, match="share no set"):
        compare_seeds(tmp_path, {"x": ["one"], "y": ["other"]})
    with pytest.raises(ArgumentError, match="names no system"):
        compare_seeds(tmp_path, {"x": ["one"], "y": []})
    with pytest.raises(SourceError, match="no values of a system 'gone'"):
        compare_seeds(tmp_path, {"x": ["one"], "y": ["gone"]})
