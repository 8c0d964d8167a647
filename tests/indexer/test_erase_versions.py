"""A note that was filed under several patients in turn: an erasure takes one patient's versions, and no more breaks."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from indexer.errors import NoteNotFoundError
from indexer.library import Library
from indexer.records import Scope
from tests.indexer.made_collections import new, note, second, shown, store, vector

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.sampled_from(["m", "n"]), st.sampled_from("ABC")),
        st.tuples(st.just("erase"), st.sampled_from("ABC")),
        st.tuples(st.just("delete"), st.sampled_from(["m", "n"])),
    ),
    min_size=3,
    max_size=9,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([("store", "n", "A"), ("store", "n", "B"), ("store", "n", "C"), ("erase", "B")])
@example([("store", "n", "B"), ("store", "n", "A"), ("store", "n", "C"), ("erase", "A"), ("erase", "B")])
@given(STEPS)
def test_what_is_left_of_a_note_answers_and_is_sound(tmp_path_factory, steps):
    home = tmp_path_factory.mktemp("home")
    ward, clock = new(home), 0
    known: dict[str, list[tuple[int, str, int]]] = {"m": [], "n": []}
    for step in steps:
        clock += 1
        if step[0] == "store":
            _, name, patient = step
            store(ward, note(name, f"Pain at {clock}.", patient_id=patient, stored_at=clock))
            known[name].append((ward.note(name).version, patient, clock))
        elif step[0] == "delete":
            if ward.delete_notes([step[1]]).deleted:
                known[step[1]] = []
        else:
            try:
                Library(home).erase(ward, "patient", [step[1]])
            except NoteNotFoundError:
                assert not any(patient == step[1] for versions in known.values() for _, patient, _ in versions)
            for name, versions in known.items():
                if versions and versions[-1][1] == step[1]:
                    known[name] = []
                known[name] = [version for version in known[name] if version[1] != step[1]]

    def expected(moment):
        then = {name: [number for number, _, at in versions if at <= moment] for name, versions in known.items()}
        return {name: numbers[-1] for name, numbers in then.items() if numbers}

    for _ in range(2):
        for moment in range(clock + 1):
            scope = Scope(as_of=second(moment)) if moment < clock else Scope()
            assert shown(ward, scope) == expected(moment)
        assert len(ward.view().search_vectors(vector("pain"), 9)[0]) == len(expected(clock))
        assert ward.verify() == []
        ward.close()
        ward = Library(home).open("ward")
        ward.rebuild()
    ward.close()
