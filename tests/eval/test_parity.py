"""Same-language against cross-language answers: by hand, on a parallel pool, and through a collection's own search."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.evaluation import build_systems
from eval.experiment import _drawn
from eval.judged import JudgedSet, Text
from eval.parity import QueryParity, by_query, parity
from eval.report import parity_table
from eval.statistics import grouped_gap
from indexer.errors import ArgumentError

LANGUAGES = ("en", "es", "zh")


def pool(n: int = 4) -> JudgedSet:
    """Return ``n`` texts in three languages, each asked for in English."""
    corpus = tuple(Text(f"{c}{at}", f"text {at} {c}", c) for at in range(n) for c in LANGUAGES)
    queries = tuple(Text(f"q{at}", f"question {at}", "en") for at in range(n))
    return JudgedSet(
        "t/en-all", queries, corpus, {f"q{n}": {f"{c}{n}": 1 for c in LANGUAGES} for n in range(n)}, "R@10"
    )


def run_of(*ranking: str) -> dict[str, float]:
    return {passage: float(len(ranking) - at) for at, passage in enumerate(ranking)}


def test_each_language_is_judged_without_the_answers_of_the_others():
    judged = pool(2)
    run = {"q0": run_of("en0", "es0", "zh0"), "q1": run_of("en1", "en0", "zh1")}
    first, second = by_query(judged, run).values()
    assert (first.same, first.cross) == (1.0, 1.0)  # Behind nothing but other translations.
    assert second.same == 1.0
    assert second.cross == pytest.approx((0.0 + 1 / math.log2(3)) / 2)  # Spanish is missing, Chinese is second.


@given(st.permutations(LANGUAGES))
def test_the_order_of_translations_makes_no_gap(order):
    judged = pool(3)
    run = {f"q{n}": run_of("es2" if n != 2 else "es1", *(f"{c}{n}" for c in order)) for n in range(3)}
    found = parity("t", "s", by_query(judged, run))
    assert found is not None
    assert found.parallel
    assert (found.gap.mean, found.gap.low, found.gap.high) == pytest.approx((0, 0, 0))


def test_a_system_that_prefers_the_querys_language_has_a_gap():
    judged = pool(4)
    run = {f"q{n}": run_of(f"en{n}", *(f"en{m}" for m in range(4) if m != n), f"es{n}", f"zh{n}") for n in range(4)}
    found = parity("t", "s", by_query(judged, run))
    assert found is not None
    assert (found.same, found.cross) == pytest.approx((1.0, 1 / math.log2(5)))
    assert found.gap.mean == pytest.approx(found.same - found.cross)
    assert found.gap.excludes_zero
    assert found.queries == 4


def test_queries_with_one_kind_of_answer_are_compared_as_two_groups():
    values = {
        "a": QueryParity(1.0, None, frozenset("x")),
        "b": QueryParity(0.5, None, frozenset("y")),
        "c": QueryParity(None, 0.25, frozenset("z")),
    }
    found = parity("t", "s", values)
    assert found is not None
    assert (found.same, found.cross, found.gap.mean, found.parallel) == (0.75, 0.25, 0.5, False)
    assert "t (not parallel)" in parity_table(
        [{"task": "t", "system": "s", "queries": 3, "same": 0.75, "cross": 0.25, "parallel": False,
          "gap": {"mean": 0.5, "low": 0.25, "high": 0.75}}]
    )  # fmt: skip
    assert parity("t", "s", {"a": values["a"], "b": values["b"]}) is None
    assert parity("t", "s", {}) is None


def test_a_corpus_of_one_language_has_no_parity_and_an_unanswered_query_counts_as_zero():
    judged = pool(1)
    one = replace(judged, corpus=tuple(text for text in judged.corpus if text.language == "en"))
    assert by_query(one, {"q0": run_of("en0")}) == {}
    assert by_query(judged, {}) == {"q0": QueryParity(0.0, 0.0, frozenset({"en0", "es0", "zh0"}))}


def test_the_interval_of_values_of_different_queries_covers_their_difference():
    first = [0.9, 1.0, 0.8] * 20 + [None] * 90
    interval = grouped_gap(first, [None] * 60 + [0.5, 0.4, 0.6] * 30, range(150))
    assert interval.low < interval.mean < interval.high
    assert interval.mean == pytest.approx(0.4)
    assert interval.n == 150
    with pytest.raises(ArgumentError, match="empty"):
        grouped_gap([None], [1.0], ["a"])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20), st.integers(2, 6))
def test_asking_the_same_in_more_languages_makes_a_gap_no_surer(values, languages):
    first, second = zip(*values, strict=True)
    once = grouped_gap(first, second, range(len(values)))
    often = grouped_gap(first * languages, second * languages, list(range(len(values))) * languages)
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))


def test_a_draw_without_any_answer_of_a_kind_says_nothing():
    interval = grouped_gap([1.0, None, None], [0.0, 0.5, 0.25], "abc")
    assert interval.mean == pytest.approx(0.75)
    assert 0.5 <= interval.low <= interval.high <= 1.0


def test_queries_are_drawn_evenly_with_their_judgements():
    drawn = _drawn(pool(10), 4)
    assert [query.text_id for query in drawn.queries] == ["q0", "q2", "q5", "q7"]
    assert set(drawn.qrels) == {"q0", "q2", "q5", "q7"}
    assert drawn.corpus == pool(10).corpus
    assert _drawn(pool(3), 3) == _drawn(pool(3), None) == pool(3)


def test_a_collections_own_search_is_a_system_with_both_policies():
    corpus = (Text("d/1", "Apixaban 5 mg twice daily.", "en"), Text("d/2", "Fiebre alta y tos.", "es"),
              Text("d/3", "Apixaban 5 mg twice daily.", "en"))  # fmt: skip
    queries = (Text("q1", "apixaban", "en"), Text("q2", "fiebre", "es"), Text("q3", "  ", "en"))
    judged = JudgedSet("hand/all", queries, corpus, {"q1": {"d/1": 1}}, "nDCG@10")
    balanced, anyhow = build_systems(["search:hashing", "search:hashing+any"])
    assert (balanced.name, anyhow.name) == ("search-hashing", "search-hashing-any")
    assert [one.description["language_policy"] for one in (balanced, anyhow)] == ["balanced", "any"]
    for system in (balanced, anyhow):
        run = system.rank(judged, 100)
        assert set(run["q1"]) >= {"d/1", "d/3"}  # Equal passages stay two.
        assert max(run["q2"], key=run["q2"].__getitem__) == "d/2"
        assert run["q3"] == {}
        order = list(run["q1"].values())
        assert order == sorted(set(order), reverse=True)  # the search's own order, without ties
    with pytest.raises(ArgumentError, match="'same' is no language policy"):
        build_systems(["search:hashing+same"])
