"""`clinrag collections reencode`, `cutover`, `rollback`, `discard`; what a collection without its encoder answers."""

from __future__ import annotations

from pathlib import Path

import pytest

import rag.answer
import rag.search
from api.jobs import Outcome
from api.service import Question
from api.settings import Settings
from api.wiring import build_service
from eval.bundled import load_questions, notes_path, questions_path
from eval.spans import NoteSpan, load_span_questions, span_scores
from indexer.encoders import catalog
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ArgumentError, EncoderUnavailableError, SourceError
from indexer.records import Scope
from tests.api.conftest import Clinrag, one_json

DIMS = {"hashing": 384, "tiny": 2, "wide": 1024}


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The encoders of this machine, by name: a width of 2 tells hardly anything apart."""
    here = dict(DIMS)

    def load(name: str) -> HashingEncoder:
        if name not in here:
            raise EncoderUnavailableError(f"no encoder '{name}'")
        return HashingEncoder(here[name])

    monkeypatch.setattr(catalog, "load_encoder", load)
    return here


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Some of the bundled questions: a search takes its time."""
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(questions_path().read_text(encoding="utf-8").splitlines(keepends=True)[:8]))
    return path


@pytest.fixture
def bundled(clinrag: Clinrag, encoders: dict[str, int]) -> Clinrag:
    done = clinrag("index", notes_path(), "-c", "demo", "--encoder", "hashing", "--quiet")
    assert done.exit_code == 0, done.output
    return clinrag


def test_a_worse_encoder_is_refused_a_forced_one_can_be_rolled_back(bundled: Clinrag, judged: Path, tmp_path: Path):
    made = bundled("collections", "reencode", "demo", "--encoder", "tiny", "--judged", judged, "--json")
    assert made.exit_code == 0, made.output
    said = one_json(made.stdout)
    assert said["done"] == said["total"] == said["embedded"]
    before = bundled("search", "anticoagulation", "-c", "demo", "--json").stdout
    refused = bundled("collections", "cutover", "demo", "--judged", judged)
    assert refused.exit_code == 2
    assert "tiny finds less than hashing: nDCG@10" in refused.stderr
    assert bundled("collections", "cutover", "demo").exit_code == 2, "without a judgement it must be forced"
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"id": "q", "question": "Pain?", "relevant": [{"note_id": "none", "start": 0, "end": 9}]}\n')
    untold = bundled("collections", "cutover", "demo", "--judged", strange)
    assert untold.exit_code == 2, "questions on other notes judge nothing"
    assert "judged tells nothing: neither encoder finds any of its spans" in untold.stderr
    assert one_json(bundled("collections", "info", "demo", "--json").stdout)["encoder"] == "hashing"
    forced = bundled("collections", "cutover", "demo", "--judged", judged, "--force")
    assert forced.exit_code == 0, forced.output
    assert "demo: answers with tiny from here on" in forced.stdout
    assert one_json(bundled("collections", "info", "demo", "--json").stdout)["encoder"] == "tiny"
    back = bundled("collections", "rollback", "demo")
    assert back.stdout == "demo: answers with hashing again\n"
    after = bundled("search", "anticoagulation", "-c", "demo", "--json").stdout
    assert one_json(after)["hits"] == one_json(before)["hits"]
    assert bundled("collections", "discard", "demo").stdout == "demo: removed what lay beside\n"
    assert bundled("collections", "rollback", "demo").exit_code == 2
    assert bundled("collections", "verify", "demo").exit_code == 0


def test_a_better_encoder_is_cut_over_to_while_a_service_goes_on_answering(bundled: Clinrag, home: Path, judged: Path):
    assert bundled("collections", "reencode", "demo", "--encoder", "tiny").exit_code == 0
    assert bundled("collections", "cutover", "demo", "--force").exit_code == 0
    assert bundled("collections", "discard", "demo").exit_code == 0
    service = build_service(Settings(home=home))
    held = service.collection("demo")
    assert held.spec.dim == 2
    done = bundled("collections", "reencode", "demo", "--encoder", "wide")
    assert done.exit_code == 0, done.output
    cut = bundled("collections", "cutover", "demo", "--judged", judged)
    assert cut.exit_code == 0, cut.output
    assert len(held.view().rows)
    assert service.collection("demo").spec.dim == 1024
    assert service.index_posted("demo", [{"id": "late", "text": "Fever was denied."}]).stored == 1
    service.close()


def test_a_cutover_in_the_middle_of_a_posted_import_loses_no_note(bundled: Clinrag, home: Path):
    service = build_service(Settings(home=home, batch_notes=2))
    assert bundled("collections", "reencode", "demo", "--encoder", "wide").exit_code == 0
    notes = [{"id": f"p{number}", "text": f"Fever, day {number}."} for number in range(6)]
    cut: list[int] = []
    told: list[Outcome] = []

    def report(so_far: Outcome) -> None:
        told.append(so_far)
        if not cut:
            cut.append(bundled("collections", "cutover", "demo", "--force").exit_code)

    outcome = service.index_posted("demo", notes, report)
    assert cut == [0]
    assert (outcome.stored, outcome.skipped, outcome.rejected) == (6, 0, ())
    assert [said.stored for said in told] == sorted(said.stored for said in told)
    assert {said.skipped for said in told} == {0}
    found = service.collection("demo")
    assert found.encoder_name == "wide"
    assert all(found.note(f"p{number}").version == 1 for number in range(6))
    service.close()


@pytest.mark.parametrize("name", ["search", "answer"])
def test_a_question_that_is_asked_while_another_process_cuts_over_is_answered(
    bundled: Clinrag, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    service = build_service(Settings(home=home))
    assert bundled("collections", "reencode", "demo", "--encoder", "wide").exit_code == 0
    modules = {"search": rag.search, "answer": rag.answer}
    really, cut = getattr(modules[name], name), []

    def meanwhile(*arguments: object) -> object:
        if not cut:
            cut.append(bundled("collections", "cutover", "demo", "--force").exit_code)
            service.collection("demo")  # as for whoever asks next: what was open is closed
        return really(*arguments)

    monkeypatch.setattr(modules[name], name, meanwhile)
    ask = {"search": service.search, "answer": service.ask}[name]
    found = ask(Question("warfarin", "demo", Scope()))
    assert cut == [0]
    assert found.hits
    assert found.degraded == []
    assert service.collection("demo").encoder_name == "wide"
    service.close()


@pytest.mark.parametrize("why", ["missing", "other weights"])
def test_without_its_encoder_a_collection_answers_by_words_until_it_is_reencoded(
    bundled: Clinrag, encoders: dict[str, int], why: str
):
    if why == "missing":
        del encoders["hashing"]
    else:
        encoders["hashing"] = 383
    found = one_json(bundled("search", "warfarin", "-c", "demo", "--json").stdout)
    assert found["degraded"] == ["dense"]
    assert found["hits"]
    refused = bundled("index", notes_path(), "-c", "demo")
    assert refused.exit_code == 2
    new = "wide" if why == "missing" else "hashing"
    assert bundled("collections", "reencode", "demo", "--encoder", new).exit_code == 0
    assert bundled("collections", "cutover", "demo", "--force").exit_code == 0
    found = one_json(bundled("search", "warfarin", "-c", "demo", "--json").stdout)
    assert found["degraded"] == []
    assert found["hits"]


def test_facets_count_what_a_search_in_the_same_scope_would_see(bundled: Clinrag):
    every = one_json(bundled("collections", "facets", "demo", "--json").stdout)
    one = one_json(bundled("collections", "facets", "demo", "--patient", "4711", "--language", "es", "--json").stdout)
    assert one["patients"] == [{"value": "4711", "count": one["notes"]}]
    assert [row["value"] for row in one["languages"]] == ["es"]  # type: ignore[attr-defined]
    assert sum(row["count"] for row in every["patients"]) == every["notes"]  # type: ignore[attr-defined]
    assert sum(row["count"] for row in every["sections"]) == every["passages"]  # type: ignore[attr-defined]
    assert "languages:" in bundled("collections", "facets", "demo").stdout


def test_span_scores_by_hand():
    relevant = [NoteSpan("a", 0, 10), NoteSpan("b", 10, 20)]
    assert span_scores(relevant, []) == (0.0, 0.0)
    assert span_scores(relevant, [NoteSpan("a", 0, 50), NoteSpan("b", 0, 50)]) == (1.0, 1.0)
    halves = [NoteSpan("a", 0, 5), NoteSpan("a", 5, 10), NoteSpan("a", 0, 10)]
    scores = span_scores(relevant, halves)
    assert scores.recall == 0.5
    assert scores.ndcg == pytest.approx((0.5 + 0.5 * 0.6309297535714574) / 1.6309297535714575)
    assert span_scores(relevant, [NoteSpan("x", 0, 9)] * 10 + relevant).recall == 0.0, "the first ten count"


def test_judged_questions_are_read_and_bad_ones_named(tmp_path: Path):
    answerable = [one for one in load_questions() if one.relevant]
    assert [one.question_id for one in load_span_questions(questions_path())] == [one.question_id for one in answerable]
    file = tmp_path / "judged.jsonl"
    for line in ("{", "[]", '{"id": 1}', '{"id":"q","question":"?","relevant":[{"note_id":"a","start":3,"end":3}]}'):
        file.write_text(line)
        with pytest.raises(SourceError, match="line 1"):
            load_span_questions(file)
    file.write_text('{"id":"q","question":"?","relevant":[]}\n')
    with pytest.raises(ArgumentError, match="no question"):
        load_span_questions(file)
    with pytest.raises(SourceError, match="cannot be read"):
        load_span_questions(tmp_path / "none")
