"""What a scope shows, at which moment."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.errors import ScopeError
from indexer.records import Scope, Status
from tests.indexer.made_collections import new, note, second, shown, store


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection
        assert collection.verify() == []


def as_of(n):
    return Scope(as_of=second(n))


def test_a_new_version_takes_the_place_of_the_one_before(ward):
    store(ward, note("a", "First.", stored_at=10))
    store(ward, note("a", "Second.", stored_at=20), note("b", stored_at=15))
    assert shown(ward) == {"a": 2, "b": 1}
    assert shown(ward, as_of(9)) == {}
    assert shown(ward, as_of(10)) == {"a": 1}
    assert shown(ward, as_of(19)) == {"a": 1, "b": 1}
    assert shown(ward, as_of(20)) == {"a": 2, "b": 1}


def test_as_of_shows_no_note_that_was_deleted_since(ward):
    store(ward, note("a", stored_at=10), note("b", stored_at=11))
    ward.delete_notes(["a"])
    assert shown(ward, as_of(30)) == {"b": 1}
    assert shown(ward) == {"b": 1}


def test_as_of_may_be_partial_and_covers_its_period(ward):
    store(ward, note("a", stored_at=10))
    assert shown(ward, Scope(as_of="2019")) == {}
    assert shown(ward, Scope(as_of="2020-01-01")) == {"a": 1}


def test_a_note_stored_again_after_deletion_goes_on_numbering(ward):
    store(ward, note("a", "One."), note("b"))
    ward.delete_notes(["a"])
    assert shown(ward) == {"b": 1}
    store(ward, note("a", "One."))
    assert shown(ward) == {"a": 2, "b": 1}


def test_replaced_notes_hide(ward):
    store(ward, note("a", stored_at=10))
    store(ward, note("b", replaces=("a",), stored_at=20))
    assert shown(ward) == {"b": 1}
    assert shown(ward, as_of(19)) == {"a": 1}


def test_a_chain_of_replacements_shows_its_end(ward):
    store(ward, note("c", replaces=("b",)), note("b", replaces=("a",)), note("a"))
    assert shown(ward) == {"c": 1}


def test_what_a_note_replaces_hides_also_where_it_arrives_later(ward):
    store(ward, note("b", replaces=("a",)))
    assert shown(ward) == {"b": 1}
    store(ward, note("a"))
    assert shown(ward) == {"b": 1}


def test_a_deleted_replacer_uncovers(ward):
    store(ward, note("a"), note("b", replaces=("a",)))
    ward.delete_notes(["b"])
    assert shown(ward) == {"a": 1}


def test_a_replacer_marked_in_error_uncovers(ward):
    store(ward, note("a", stored_at=10))
    store(ward, note("b", replaces=("a",), stored_at=20))
    store(ward, note("b", replaces=("a",), stored_at=30, status=Status.ENTERED_IN_ERROR))
    assert shown(ward) == {"a": 1}
    assert shown(ward, as_of(20)) == {"b": 1}


def test_a_replacer_that_replaces_no_longer_uncovers(ward):
    store(ward, note("a"), note("b", replaces=("a",)))
    store(ward, note("b"))
    assert shown(ward) == {"a": 1, "b": 2}


def test_a_superseded_replacer_still_covers(ward):
    store(ward, note("a"), note("b", replaces=("a",), status=Status.SUPERSEDED))
    assert shown(ward) == {}


def test_in_a_circle_the_note_stored_last_shows(ward):
    store(ward, note("a", replaces=("b",), stored_at=10), note("b", replaces=("a",), stored_at=20))
    assert shown(ward) == {"b": 1}
    assert shown(ward, as_of(10)) == {"a": 1}
    store(ward, note("c", replaces=("b",), stored_at=30))
    assert shown(ward) == {"c": 1}


def test_a_note_that_replaces_itself_shows(ward):
    store(ward, note("a", replaces=("a",)))
    assert shown(ward) == {"a": 1}


def test_entered_in_error_hides_and_does_not_uncover_the_version_before(ward):
    store(ward, note("a", "Wrong patient.", stored_at=10))
    store(ward, note("a", "Wrong patient.", stored_at=20, status=Status.ENTERED_IN_ERROR))
    assert shown(ward) == {}
    assert shown(ward, as_of(19)) == {"a": 1}
    assert ward.note("a").status is Status.ENTERED_IN_ERROR


def test_superseded_at_the_source_hides(ward):
    store(ward, note("a", status=Status.SUPERSEDED))
    assert shown(ward) == {}
    assert ward.note("a").text == "Pain in the chest."


def test_addenda_are_named_beside_their_note_while_they_may_be_seen(ward):
    store(ward, note("a", stored_at=10), note("x", "More.", appends="a", stored_at=20))
    view = ward.view()
    by_id = {passage.note_id: passage for passage in view.passages(view.rows)}
    assert by_id["a"].addenda == ("x",)
    assert by_id["x"].appends == "a"
    early = ward.view(as_of(15))
    assert [passage.addenda for passage in early.passages(early.rows)] == [()]
    ward.delete_notes(["x"])
    later = ward.view()
    assert [passage.addenda for passage in later.passages(later.rows)] == [()]


DATED = [
    note("year", "One.", authored_at="2023"),
    note("month", "Two.", authored_at="2023-04"),
    note("day", "Three.", authored_at="2023-04-05"),
    note("moment", "Four.", authored_at="2023-04-05T23:30:00-02:00"),
    note("undated", "Five."),
]


@pytest.mark.parametrize(
    ("date_from", "date_to", "expected"),
    [
        (None, None, {"year", "month", "day", "moment", "undated"}),
        ("2023-04-06", None, {"year", "month", "moment"}),
        ("2023-04-05", "2023-04-05", {"year", "month", "day"}),
        (None, "2022-12-31", set()),
        ("2024", None, set()),
        ("2023-04", "2023", {"year", "month", "day", "moment"}),
        (None, "2023-03-31", {"year"}),
        ("2023-04-06T01:30", "2023-04-06T01:30", {"year", "month", "moment"}),
    ],
)
def test_dates_match_where_periods_overlap(ward, date_from, date_to, expected):
    store(ward, *DATED)
    assert set(shown(ward, Scope(date_from=date_from, date_to=date_to))) == expected


@pytest.mark.parametrize(
    "scope",
    [
        {"date_from": "yesterday"},
        {"date_to": "2023-02-30"},
        {"as_of": "now"},
        {"date_from": "2024", "date_to": "2023"},
    ],
)
def test_times_that_cannot_be_read_are_refused(ward, scope):
    with pytest.raises(ScopeError, match=next(iter(scope))):
        ward.view(Scope(**scope))


def test_attributes_narrow_and_combine(ward):
    store(
        ward,
        note("a", "One.", patient_id="p1", encounter_id="e1", note_type="letter", source="x.jsonl"),
        note("b", "Two.", patient_id="p1", encounter_id="e2", note_type="lab", source="y.jsonl"),
        note("c", "Three.", patient_id="p2", encounter_id="e1", note_type="letter"),
    )
    assert set(shown(ward, Scope(patient_id="p1"))) == {"a", "b"}
    assert set(shown(ward, Scope(encounter_id="e1"))) == {"a", "c"}
    assert set(shown(ward, Scope(note_type=("letter", "lab"), patient_id="p1"))) == {"a", "b"}
    assert set(shown(ward, Scope(source=("x.jsonl", "y.jsonl")))) == {"a", "b"}
    assert shown(ward, Scope(patient_id="p3")) == {}
    assert shown(ward, Scope(note_type=("p1",))) == {}


def test_language_and_section_are_the_chunks(ward):
    both = {"languages": ("es", "ru"), "sections": ("plan", None)}
    store(ward, note("a", "Uno. Два. Tres.", language=None), note("b", "Blank."), **both)
    view = ward.view(Scope(language=("es", "ru")))
    assert [passage.text for passage in view.passages(view.rows)] == ["Uno.", "Два.", "Tres."]
    assert {k: len(rows) for k, rows in ward.view().language_pools().items()} == {"es": 2, "ru": 1, "en": 1}
    spanish = ward.view(Scope(language=("es",)))
    assert [passage.text for passage in spanish.passages(spanish.rows)] == ["Uno.", "Tres."]
    assert spanish.coverage.notes_searched == 1
    plan = ward.view(Scope(section=("plan",)))
    assert [passage.section for passage in plan.passages(plan.rows)] == ["plan", "plan", "plan"]


def test_metadata_matches_value_and_type(ward):
    odd = 'a "quoted" $.key'
    store(
        ward,
        note("a", "One.", metadata={"ward": "3", "beds": 3, odd: True}),
        note("b", "Two.", metadata={"ward": 3, "beds": 3.5, "empty": None}),
        note("c", "Three."),
    )
    assert set(shown(ward, Scope(metadata={"ward": "3"}))) == {"a"}
    assert set(shown(ward, Scope(metadata={"ward": 3}))) == {"b"}
    assert set(shown(ward, Scope(metadata={"ward": 3.0, "beds": 3.5}))) == {"b"}
    assert set(shown(ward, Scope(metadata={"empty": None}))) == {"b"}
    assert set(shown(ward, Scope(metadata={odd: True}))) == {"a"}
    assert shown(ward, Scope(metadata={odd: 1})) == {}
    for number in (2**70, 10**400, -(10**400)):
        assert shown(ward, Scope(metadata={"ward": number})) == {}


def test_coverage_says_what_was_searched(ward):
    store(ward, *DATED)
    coverage = ward.view().coverage
    assert (coverage.notes_searched, coverage.undated) == (5, 1)
    assert (coverage.first, coverage.last, coverage.languages) == ("2023-01-01", "2023-12-31", ("en",))
    nothing = ward.view(Scope(patient_id="nobody")).coverage
    assert (nothing.notes_searched, nothing.first, nothing.last, nothing.languages) == (0, None, None, ())


def test_a_view_stays_as_it_was_but_for_deleted_notes(ward):
    store(ward, note("a", "Fever since Monday."), note("b", "Fever since Tuesday."))
    view = ward.view()
    store(ward, note("a", "No fever."), note("c", "Fever since Sunday."))
    ward.delete_notes(["b"])
    found, _ = view.search_terms("fever", 10)
    assert [passage.text for passage in view.passages(found)] == ["Fever since Monday."]
    assert view.rows.tolist() == [1, 2]
    assert np.isneginf(view.vector_scores(np.ones(8, np.float32), [2])).all()


def test_rows_asked_for_outside_of_the_scope_are_never_found(ward):
    store(ward, note("a", "Fever.", patient_id="p1"), note("b", "Fever!", patient_id="p2"))
    view = ward.view(Scope(patient_id="p1"))
    everything = np.array([1, 2])
    assert view.search_vectors(np.ones(8, np.float32), 5, everything)[0].tolist() == [1]
    assert view.search_terms("fever", 5, everything)[0].tolist() == [1]


def test_deleted_notes_and_later_versions_shape_no_score(ward):
    store(ward, note("a", "Fever and cough."), note("b", "Cough."))
    alone = ward.view().search_terms("fever cough", 5)
    store(ward, note("c", "Fever fever fever."))
    assert ward.view().search_terms("fever cough", 5)[1].tolist() != alone[1].tolist()
    ward.delete_notes(["c"])
    again = ward.view().search_terms("fever cough", 5)
    assert again[0].tolist() == alone[0].tolist()
    assert again[1].tolist() == alone[1].tolist()
