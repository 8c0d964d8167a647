from __future__ import annotations

import numpy as np
import pytest

from indexer.encoders.catalog import default_encoder_name, load_encoder
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ArgumentError, DamagedError, TooLargeError
from indexer.records import Scope
from rag.crossing import SHIPPED, asked, crosses
from rag.expansion import expanded
from rag.search import SearchRequest, search
from tests.rag.collections import ConceptEncoder, HeldCollection, HeldPassage

QUERY = "insuficiencia renal tras contraste"


def meanings(count, seed, near=None, how_near=0.0, dim=59):
    """Random directions of meaning; with ``near``, tilted towards that one."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, dim))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    if near is None:
        return np.pad(drawn, ((0, 0), (0, 64 - dim)))
    tilt = rng.normal(how_near, 0.12, size=(count, 1))
    return np.pad(drawn, ((0, 0), (0, 64 - dim))) * np.sqrt(np.clip(1 - tilt**2, 0, 1)) + tilt * near


def world(distractors, foreign=40, pull=1.0, how_near=0.45, match_near=0.9, words=True):
    """One English match, English chunks about other things, and Spanish chunks a little like the query."""
    encoder = ConceptEncoder(pull=pull)
    about = meanings(1, 1)[0]
    encoder.put(QUERY, about, "es")
    passages = [
        HeldPassage(
            0,
            "match",
            encoder.put("Contrast-induced nephropathy", meanings(1, 7, about, 0)[0] * 0.45 + match_near * about, "en"),
            "en",
        )
    ]
    for n, meaning in enumerate(meanings(foreign, 2)):
        passages.append(HeldPassage(len(passages), f"en{n}", encoder.put(f"Other finding {n}", meaning, "en"), "en"))
    for n, meaning in enumerate(meanings(distractors, 3, about, how_near)):
        text = f"Paciente con insuficiencia renal {n}" if words else f"Paciente estable {n}"
        passages.append(HeldPassage(len(passages), f"es{n}", encoder.put(text, meaning, "es"), "es"))
    return HeldCollection(passages, encoder)


def rank_of(result, note_id):
    return next((hit.rank for hit in result.hits if hit.note_id == note_id), None)


@pytest.mark.parametrize("foreign", [0, 3, 20, 200])
@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_thousands_of_same_language_distractors_do_not_push_a_foreign_match_out_of_the_first_ten(foreign, mode):
    few, many = world(5, foreign), world(5000, foreign)
    request = SearchRequest(QUERY, mode=mode)
    assert rank_of(search(few, few.encoder, request), "match") is not None
    assert rank_of(search(many, many.encoder, request), "match") is not None


@pytest.mark.parametrize("distractors", [50, 5000])
def test_distractors_that_share_no_word_do_not_push_it_out_either(distractors):
    held = world(distractors, words=False)
    assert rank_of(search(held, held.encoder, SearchRequest(QUERY)), "match") is not None


def test_the_policy_any_takes_similarities_as_they_are():
    held = world(300)
    result = search(held, held.encoder, SearchRequest(QUERY, mode="dense", language_policy="any", k=50))
    scores = [hit.scores.dense for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert rank_of(result, "match") is None


def test_the_policy_same_searches_one_language_and_says_so():
    held = world(20)
    result = search(held, held.encoder, SearchRequest(QUERY, language_policy="same", k=100))
    assert {hit.language for hit in result.hits} == {"es"}
    assert result.scope.language == result.coverage.languages == ("es",)
    with pytest.raises(ArgumentError, match="is not in the scope"):
        search(held, held.encoder, SearchRequest(QUERY, Scope(language=("en",)), language_policy="same"))
    with pytest.raises(ArgumentError, match="cannot be told"):
        search(held, held.encoder, SearchRequest("12.5", language_policy="same"))


def copied(times, patients=("p1",)):
    """One text copied forward for each patient, older and newer, among others."""
    encoder = ConceptEncoder()
    about, *others = meanings(13, 4)
    encoder.put("renal failure", about, "en")
    passages = []
    for patient in patients:
        for day in range(times):
            text = encoder.put("Acute renal failure after contrast.", about, "en")
            authored = f"2024-01-{1 + (day * 7) % 28:02}"
            passages.append(HeldPassage(len(passages), f"{patient}-{day}", text, "en", patient, authored))
    for n, meaning in enumerate(others):
        passages.append(HeldPassage(len(passages), f"o{n}", encoder.put(f"Other finding {n}", meaning, "en"), "en"))
    return HeldCollection(passages, encoder)


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
@pytest.mark.parametrize("policy", ["balanced", "any"])
def test_copies_of_one_patient_are_one_hit_and_k_is_filled_behind_them(mode, policy):
    held = copied(28 * 20)
    result = search(held, held.encoder, SearchRequest("renal failure", k=10, mode=mode, language_policy=policy))
    assert len(result.hits) == 10
    assert [hit.rank for hit in result.hits] == list(range(1, 11))
    assert (result.hits[0].copies, result.hits[0].authored_at) == (560, "2024-01-22")
    assert len({hit.text for hit in result.hits}) == 10


def test_equal_findings_of_two_patients_are_two_facts():
    held = copied(3, patients=("p1", "p2"))
    hits = search(held, held.encoder, SearchRequest("renal failure", k=2)).hits
    assert sorted((hit.patient_id, hit.copies) for hit in hits) == [("p1", 3), ("p2", 3)]


@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_never_fewer_than_k_hits_where_k_exist(k, mode):
    held = world(150, foreign=20)
    assert len(search(held, held.encoder, SearchRequest(QUERY, k=k, mode=mode)).hits) == k


def test_lexical_hits_hold_a_word_of_the_query_and_dense_did_not_score_them():
    held = world(30)
    result = search(held, held.encoder, SearchRequest("paciente estable insuficiencia", mode="lexical", k=100))
    assert len(result.hits) == 30
    assert all(hit.scores.dense is None and hit.scores.lexical > 0 for hit in result.hits)
    assert result.degraded == ()


def test_hybrid_gives_the_scores_of_both_sources_and_null_for_none():
    held = world(30)
    hits = search(held, held.encoder, SearchRequest(QUERY, k=50)).hits
    assert all(hit.scores.dense is not None for hit in hits)
    assert {hit.scores.lexical is None for hit in hits} == {True, False}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_dense_without_an_encoder_falls_back_to_words_and_says_so():
    held = world(30)
    result = search(held, None, SearchRequest(QUERY, mode="dense"))
    assert (result.degraded, len(result.hits)) == (("dense",), 10)


def test_an_empty_scope_gives_no_hits_and_its_coverage():
    held = world(5)
    result = search(held, held.encoder, SearchRequest(QUERY, Scope(patient_id="nobody")))
    assert (result.hits, result.coverage.notes_searched) == ((), 0)


def test_equal_requests_give_equal_results():
    held = world(500)
    first, second = (search(held, held.encoder, SearchRequest(QUERY, k=50)) for _ in range(2))
    assert first.hits == second.hits


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_two_threads_find_what_one_finds(mode, monkeypatch):
    held = world(500)
    alone = [search(held, held.encoder, SearchRequest(QUERY, k=k, mode=mode)).hits for k in (1, 50)]
    monkeypatch.setattr("rag.search.SHARED_ROWS", 0)
    assert [search(held, held.encoder, SearchRequest(QUERY, k=k, mode=mode)).hits for k in (1, 50)] == alone


@pytest.mark.parametrize("arm", ["dense_arm", "lexical_arm"])
def test_an_arm_that_fails_beside_the_other_fails_the_search(arm, monkeypatch):
    held = world(5)
    monkeypatch.setattr("rag.search.SHARED_ROWS", 0)

    def fails(*_):
        raise DamagedError("a row of the truth")

    monkeypatch.setattr(f"rag.search.{arm}", fails)
    with pytest.raises(DamagedError):
        search(held, held.encoder, SearchRequest(QUERY))
    monkeypatch.undo()
    assert len(search(held, held.encoder, SearchRequest(QUERY)).hits) == 10


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        (SearchRequest(" \n"), ArgumentError, "query is empty"),
        (SearchRequest("x" * 100_000), TooLargeError, "100000 characters"),
        (SearchRequest("x", k=0), ArgumentError, "k is 0"),
        (SearchRequest("x", k=101), ArgumentError, "k is 101"),
        (SearchRequest("x", mode="fuzzy"), ArgumentError, "mode must be"),
        (SearchRequest("x", language_policy="fair"), ArgumentError, "language_policy must be"),
    ],
)
def test_bad_requests_are_refused(request_, error, match):
    held = world(1)
    with pytest.raises(error, match=match):
        search(held, held.encoder, request_)


def test_other_forms_of_a_term_are_looked_for_in_other_languages_and_named():
    encoder = ConceptEncoder()
    for text in ("COPD", "EPOC conocida", "Sano"):
        encoder.put(text, meanings(1, 1)[0], "es")
    held = HeldCollection(
        [HeldPassage(0, "epoc", "EPOC conocida", "es"), HeldPassage(1, "well", "Sano", "es")], encoder
    )
    result = search(held, encoder, SearchRequest("COPD", mode="lexical"))
    assert [hit.note_id for hit in result.hits] == ["epoc"]
    (expansion,) = result.expansions
    assert expansion.term == "COPD"
    assert set(expansion.forms) == {"enfermedad pulmonar obstructiva crónica", "EPOC"}
    plain = search(held, encoder, SearchRequest("COPD", mode="lexical", expand=False))
    assert (plain.hits, plain.expansions) == ((), ())


def test_a_word_of_the_query_weighs_more_than_another_form_of_it():
    encoder = ConceptEncoder()
    texts = ("Known COPD here", "Chronic obstructive disease here")
    held = HeldCollection([HeldPassage(n, f"n{n}", text, "en") for n, text in enumerate(texts)], encoder)
    hits = search(held, None, SearchRequest("COPD")).hits
    assert [hit.note_id for hit in hits] == ["n0", "n1"]


def test_languages_are_not_evened_out_for_an_encoder_that_does_not_cross_them(monkeypatch):
    held = world(300)
    monkeypatch.setattr("rag.search.crosses", lambda encoder: False)
    balanced = search(held, held.encoder, SearchRequest(QUERY, mode="dense", k=50))
    plain = search(held, held.encoder, SearchRequest(QUERY, mode="dense", k=50, language_policy="any"))
    assert [hit.chunk_id for hit in balanced.hits] == [hit.chunk_id for hit in plain.hits]


def test_the_hashing_encoder_does_not_cross_languages():
    assert not crosses(HashingEncoder())
    assert crosses(ConceptEncoder())


@pytest.mark.skipif(default_encoder_name() != "compact", reason="the shipped weights are not in this tree")
def test_the_shipped_encoder_crosses_languages_as_it_is_taken_to():
    encoder = load_encoder("compact")
    assert encoder.spec.model_id == SHIPPED
    assert asked(encoder)


@pytest.mark.parametrize("other", ["es", "en", None])
def test_other_forms_are_looked_for_in_notes_whose_language_was_not_told(other):
    texts = {"none": ("HTA, EPOC, DM2", None), "other": ("Paciente con insuficiencia cardiaca", other)}
    held = HeldCollection(
        [HeldPassage(n, name, *text) for n, (name, text) in enumerate(texts.items())], ConceptEncoder()
    )
    result = search(held, None, SearchRequest("COPD"))
    assert [hit.note_id for hit in result.hits] == ["none"]
    forms = expanded("COPD", {}, [None]).terms
    assert "epoc" in forms
    assert "хобл" in forms


@pytest.mark.parametrize(("language", "query"), [("zh", "慢阻肺"), ("ja", "慢性閉塞性肺疾患")])
def test_a_chinese_or_japanese_note_is_found_by_its_english_abbreviation(language, query):
    held = HeldCollection([HeldPassage(0, "n", "既往COPD", language)], ConceptEncoder())
    result = search(held, None, SearchRequest(query))
    assert [hit.note_id for hit in result.hits] == ["n"]
    assert "COPD" in result.expansions[0].forms


def test_a_language_that_the_query_can_be_said_in_gets_no_vote_of_words_for_saying_nothing_of_it():
    encoder = ConceptEncoder(pull=0.0)
    about = meanings(1, 1)[0]
    encoder.put("腹水", about, "zh")
    # The encoder knows little of the term: what holds it lies no nearer than many others.
    passages = [HeldPassage(0, "said", encoder.put("少量腹水", meanings(1, 7, about, -0.3)[0], "zh"), "zh")]
    for n, meaning in enumerate(meanings(60, 2, about, 0.1), start=1):
        passages.append(HeldPassage(n, f"zh{n}", encoder.put(f"无殊{n}", meaning, "zh"), "zh"))
    for n, meaning in enumerate(meanings(60, 3, about, 0.3), start=61):
        passages.append(HeldPassage(n, f"en{n}", encoder.put(f"Other finding {n}", meaning, "en"), "en"))
    held = HeldCollection(passages, encoder)
    assert rank_of(search(held, encoder, SearchRequest("腹水", k=5)), "said") is not None
