"""Pairs mined from notes, files that users bring, and the split that lets nothing leak."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import ArgumentError, SourceError
from rag.training.heldout import LANGUAGES, HeldOut, is_held_out_case, normalised, read_rows
from rag.training.mining import mine_notes
from rag.training.negation import flip
from rag.training.own_pairs import build_pairs
from rag.training.pair_files import PairRow, read_labels, read_pairs, read_parallel
from rag.training.settings import PairsSettings
from rag.training.splits import split

NOTE = {
    "id": "n1",
    "patient_id": "p1",
    "language": "es",
    "title": "Insuficiencia cardíaca descompensada",
    "codes": ["I50"],
    "text": (
        "Motivo de consulta: disnea progresiva de una semana de evolución con edema en ambas piernas.\n"
        "Antecedentes: hipertensión arterial desde hace diez años, EPOC grave en seguimiento por neumología.\n"
        "Exploración: niega dolor torácico en reposo y con el esfuerzo. Crepitantes en ambas bases pulmonares.\n"
        "Plan: ¿Debe suspenderse la digoxina antes de la prueba? La digoxina se suspende dos días antes de la prueba.\n"
    ),
}
LABELS = {"I50": {"en": ["Heart failure"], "es": ["Insuficiencia cardíaca"], "zh": ["心力衰竭"]}}


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def nothing_held_out(tmp_path) -> HeldOut:
    return HeldOut(tmp_path / "empty")


# what is mined


@pytest.mark.parametrize("meta", ["{draft} by telephone", "[1", {"title": "Heart failure clinic, second visit"}])
def test_what_a_source_says_about_a_note_is_a_title_or_passed_over(tmp_path, nothing_held_out, meta):
    found = mine_notes([lines(tmp_path / "notes.jsonl", [{**NOTE, "meta": meta}])], {}, nothing_held_out).rows
    assert any(row.query == "Heart failure clinic, second visit" for row in found) == isinstance(meta, dict)


def test_a_note_gives_every_kind_of_pair(tmp_path, nothing_held_out):
    start = NOTE["text"].index("Crepitantes")
    note = {**NOTE, "entities": [{"start": start, "end": start + 11, "concept": "crackles"}]}
    mined = mine_notes([lines(tmp_path / "notes.jsonl", [note])], LABELS, nothing_held_out)
    rows = {kind: [row for row in mined.rows if row.kind == kind] for kind in {row.kind for row in mined.rows}}
    assert set(rows) == {"section", "title", "answer", "label", "entity", "negation"}
    assert all((row.patient, row.note, row.passage_language) == ("p1", "n1", "es") for row in mined.rows)
    flat = normalised(NOTE["text"])
    assert all(normalised(row.passage) in flat for row in mined.rows)  # nothing is made up
    (title,) = rows["title"]
    assert title.query == NOTE["title"]
    (answer,) = rows["answer"]
    assert answer.query.startswith("¿Debe suspenderse")
    assert answer.passage.startswith("La digoxina se suspende")
    for row in rows["label"]:  # a label in another language than the note's
        assert row.concepts == ("I50",)
        assert (row.language, row.query) in {("en", "Heart failure"), ("zh", "心力衰竭")}
    mention = next(row for row in rows["entity"] if row.concepts == ("crackles",))
    assert mention.query == "Crepitantes"
    assert "Crepitantes" in mention.passage
    form = next(row for row in rows["entity"] if row.query not in row.passage)  # EPOC or HTA under another name
    assert form.concepts[0].startswith("form:")
    (negation,) = rows["negation"]
    assert "niega dolor" in negation.passage
    assert negation.negatives == (negation.passage.replace("niega", "refiere"),)
    for row in rows["section"]:
        assert normalised(row.query) not in normalised(row.passage)


def test_mining_is_the_same_for_one_seed(tmp_path, nothing_held_out):
    path = lines(tmp_path / "notes.jsonl", [{**NOTE, "id": f"n{n}", "text": f"{NOTE['text']} {n}"} for n in range(3)])
    one, again = (mine_notes([path], LABELS, nothing_held_out, 5).rows for _ in range(2))
    assert one == again


def test_what_stands_over_every_note_asks_for_none(tmp_path, nothing_held_out):
    notes = [
        {"id": f"n{n}", "language": "en", "text": f"PROGRESS NOTE\nThe patient has slept well on day {n} of the stay."}
        for n in range(3)
    ]
    mined = mine_notes([lines(tmp_path / "notes.jsonl", notes)], {}, nothing_held_out)
    assert "PROGRESS NOTE" not in {row.query for row in mined.rows}


def test_records_that_are_no_notes_are_named_and_the_rest_is_mined(tmp_path, nothing_held_out):
    path = lines(tmp_path / "notes.jsonl", [{"id": "x"}, NOTE, {"id": "y", "text": "BP 120/80"}])
    mined = mine_notes([path], {}, nothing_held_out)
    assert mined.notes == 1
    assert [(Path(error.file).name, error.line) for error in mined.skipped] == [("notes.jsonl", 1), ("notes.jsonl", 3)]
    assert "language" in mined.skipped[1].reason


def test_evaluated_cases_texts_and_labels_are_never_mined(tmp_path):
    data = tmp_path / "data"

    def packed(name: str, rows: list[dict]) -> None:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    case = next(f"S0004-0614200500070001{n}-1" for n in range(90) if is_held_out_case(f"S0004-0614200500070001{n}-1"))
    packed("parallel/flores_devtest.jsonl.gz", [{"id": "1", "en": "x", "es": NOTE["title"]}])
    packed("terms/icd10_en.jsonl.gz", [{"concept": "I50", "language": "en", "term": "Heart failure", "kind": "label"}])
    held_out = HeldOut(data)
    path = lines(tmp_path / "labels.jsonl", [{"concept": "I50", "language": "en", "term": "Cardiac failure"}])
    assert read_labels([path], held_out) == {}
    notes = lines(tmp_path / "notes.jsonl", [NOTE, {**NOTE, "id": case}, {**NOTE, "id": f"meddocan-{case}"}])
    mined = mine_notes([notes], LABELS, held_out)
    assert {row.note for row in mined.rows} == {"n1"}
    assert not {row.kind for row in mined.rows} & {"label", "title"}


# negation


@pytest.mark.parametrize(
    ("language", "said", "opposite"),
    [
        ("en", "Denies chest pain.", "Reports chest pain."),
        ("en", "No evidence of embolism.", "Evidence of embolism."),
        ("zh", "患者否认发热。", "患者承认有发热。"),
        ("es", "El paciente niega fiebre.", "El paciente refiere fiebre."),
        ("ja", "胸痛を認めない。", "胸痛を認める。"),
        ("ru", "Отрицает боль в груди.", "Отмечает боль в груди."),
        ("nl", "Patiënt ontkent koorts.", "Patiënt meldt koorts."),
        ("ro", "Pacientul neagă febra.", "Pacientul acuză febra."),
        ("fr", "Absence d'œdème.", "Présence d'œdème."),
        ("de", "Verneint Fieber.", "Berichtet Fieber."),
        ("pt", "O paciente nega febre.", "O paciente refere febre."),
        ("it", "Il paziente nega febbre.", "Il paziente riferisce febbre."),
    ],
)
def test_a_negation_is_turned_round_and_the_rest_stays(language, said, opposite):
    assert flip(said, language) == opposite
    if language != "en" or said.startswith("Denies"):
        assert flip(opposite, language) == said


@given(st.sampled_from(LANGUAGES), st.text(alphabet="abcdefgh ,.жзи発熱", max_size=40))
def test_a_flip_says_something_else_or_nothing(language, text):
    flipped = flip(text, language)
    assert flipped is None or (flipped != text and flipped.strip())


def test_every_language_that_is_served_can_be_flipped():
    said = {"en": "no pain", "zh": "无痛", "es": "sin dolor", "ja": "疼痛なし", "ru": "без боли", "nl": "zonder pijn"}
    said |= {"ro": "fără febră", "fr": "sans douleur", "de": "ohne Schmerz", "pt": "sem dor", "it": "senza dolore"}
    assert set(said) == set(LANGUAGES)
    assert all(flip(text, language) for language, text in said.items())
    assert flip("no pain", "xx") is None


# the split


NAMES = st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g"])
TEXTS = st.sampled_from([f"text {n}" for n in range(30)])


@st.composite
def pair_rows(draw) -> list[PairRow]:
    rows = []
    for number in range(draw(st.integers(0, 15))):
        concepts = tuple(draw(st.lists(st.sampled_from("uvwxyz"), max_size=2, unique=True)))
        negatives = tuple(draw(st.lists(TEXTS, max_size=1)))
        query, passage, patient, note = draw(TEXTS), draw(TEXTS), draw(NAMES), draw(NAMES)
        rows.append(
            PairRow(str(number), "s", "k", query, "en", passage, "en", negatives, patient, note, concepts=concepts)
        )
    return rows


@settings(max_examples=60)
@given(pair_rows(), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(0, 3))
def test_no_patient_note_concept_or_text_is_on_both_sides(rows, share, seed):
    divided = split(rows, share, seed)

    def seen(side: list[PairRow], of: str) -> set[str]:
        if of == "concept":
            return {concept for row in side for concept in row.concepts}
        if of == "text":
            queries = {row.query for row in side if not row.concepts}
            return queries | {text for row in side for text in (row.passage, *row.negatives)}
        return {getattr(row, of) for row in side} - {""}

    for of in ("patient", "note", "concept", "text"):
        assert not seen(divided.train, of) & seen(divided.dev, of), of
    assert len(divided.train) + len(divided.dev) + divided.dropped == len(rows)
    assert {0.0: not divided.dev, 1.0: not divided.train}.get(share, True)
    assert split(rows, share, seed) == divided


def test_a_split_of_many_patients_holds_about_the_share_back():
    rows = [PairRow(str(n), "s", "k", f"q{n}", "en", f"p{n}", "en", patient=f"pat{n}") for n in range(2000)]
    assert 0.07 < len(split(rows, 0.1).dev) / 2000 < 0.13


# files that users bring


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"query": " ", "passage": "the patient slept well"}\n', "line 1: query is empty"),
        (b'\n{"query": "is there fever?"}\n', "line 2: passage is missing"),
        (b'{"query": "the patient has a fever", "passage": "38.5"}\n', "line 1: passage_language is missing"),
        (
            b'{"query": "a", "passage": "b", "language": "tlh", "passage_language": "en"}\n',
            "line 1: language is tlh",
        ),
        ('{"query": "fièvre"}\n'.encode("latin-1"), "line 1 is not UTF-8"),
        (b'{"query": "a"\n', "line 1 is no JSON"),
        (b'{"query": 1, "passage": "b"}\n', "line 1: query is no text"),
        (
            b'{"query": "a", "passage": "b", "language": "en", "passage_language": "en", "negatives": "c"}\n',
            "line 1: negatives must be a list",
        ),
    ],
)
def test_a_wrong_pair_is_refused_with_its_file_and_line(tmp_path, nothing_held_out, content, told):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"pairs\.jsonl {told}"):
        read_pairs([path], nothing_held_out)


def test_parallel_text_with_an_empty_or_missing_side_is_refused(tmp_path, nothing_held_out):
    empty = lines(tmp_path / "a.jsonl", [{"en": "fever", "zh": "发热"}, {"en": "fever", "zh": ""}])
    with pytest.raises(SourceError, match=r"a\.jsonl line 2: the side zh is empty"):
        read_parallel([empty], nothing_held_out)
    alone = lines(tmp_path / "b.jsonl", [{"en": "fever"}])
    with pytest.raises(SourceError, match=r"b\.jsonl line 1: has texts in en; a row needs two"):
        read_parallel([alone], nothing_held_out)


@pytest.mark.parametrize("entities", ['[{"start": 3}]', [{"start": 0, "end": 10_000}], [4]])
def test_annotations_of_another_form_are_refused_with_their_line(tmp_path, nothing_held_out, entities):
    path = lines(tmp_path / "notes.jsonl", [{**NOTE, "entities": entities}])
    with pytest.raises(SourceError, match=r"notes\.jsonl line 1: .entities"):
        mine_notes([path], {}, nothing_held_out)


def test_own_files_give_training_rows_without_any_public_data(tmp_path):
    data, out = tmp_path / "hospital", tmp_path / "pairs"
    notes = [{**NOTE, "id": f"n{n}", "patient_id": f"p{n}", "text": f"{NOTE['text']}Día {n}."} for n in range(30)]
    lines(data / "notes.jsonl", [*notes, {"id": "broken"}])
    names = [("I50", "en", "Heart failure"), ("I50", "zh", "心力衰竭")]
    lines(data / "labels.jsonl", [{"concept": c, "language": k, "term": t} for c, k, t in names])
    lines(data / "parallel.jsonl", [{"id": f"s{n}", "en": f"fever {n}", "zh": f"发热 {n}"} for n in range(30)])
    own = [{"query": f"How was night {n}?", "passage": f"The patient slept well in night {n}."} for n in range(30)]
    lines(data / "pairs.jsonl", [{**row, "language": "en", "passage_language": "en"} for row in own])
    chosen = PairsSettings(
        notes=("notes.jsonl",), labels=("labels.jsonl",), parallel=("parallel.jsonl",), pairs=("pairs.jsonl",), dev=0.3
    )
    counts = build_pairs(data, out, chosen, 0)
    assert set(counts) == {"mined", "dev", "bitext"}
    train = [PairRow.from_json(row) for row in read_rows(out / "mined.jsonl")]
    dev = [PairRow.from_json(row) for row in read_rows(out / "dev.jsonl")]
    assert {"pair", "section"} <= {row.kind for row in train}
    assert {"pair", "translation"} <= {row.kind for row in dev}
    assert not {row.patient for row in train} & {row.patient for row in dev} - {""}
    judged = {row.note for row in dev if row.kind == "translation"}
    aligned = {row["id"] for row in read_rows(out / "bitext.jsonl")}
    assert aligned
    assert not aligned & judged
    assert [row["line"] for row in read_rows(out / "skipped.jsonl")] == [31]
    assert build_pairs(data, out, chosen, 0) == counts  # again, over what is there


def test_ids_that_recur_in_files_and_documents_neither_leak_nor_lose_a_row(tmp_path):
    data, out = tmp_path / "hospital", tmp_path / "pairs"
    parallel = [
        {"id": str(n % 10), "document": f"d{n}", "en": f"fever {n}", "es": f"fiebre {n}", "zh": f"发热 {n}"}
        for n in range(60)
    ]
    lines(data / "parallel.jsonl", parallel)
    own = [{"id": str(n), "query": f"How was night {n}?", "passage": f"The patient slept {n}."} for n in range(40)]
    # what judges may be the third language of a row whose two others train
    own += [{"id": f"x{n}", "query": f"Which fever {n}?", "passage": f"fever {n}"} for n in range(60)]
    lines(data / "asked.jsonl", [{**row, "language": "en", "passage_language": "en"} for row in own])
    build_pairs(data, out, PairsSettings(parallel=("parallel.jsonl",), pairs=("asked.jsonl",), dev=0.4), 0)
    train = [PairRow.from_json(row) for row in read_rows(out / "mined.jsonl")]
    dev = [PairRow.from_json(row) for row in read_rows(out / "dev.jsonl")]
    aligned = list(read_rows(out / "bitext.jsonl"))
    nights = {row.query for row in (*train, *dev) if row.query.startswith("How was night")}
    assert len(nights) == 40
    assert aligned
    assert {row.kind for row in dev} == {"pair", "translation"}
    judged = {text for row in dev for text in (row.query, row.passage)}
    assert judged.isdisjoint(text for row in aligned for text in row["texts"].values())
    assert judged.isdisjoint(text for row in train for text in (row.query, row.passage))


def test_files_that_give_nothing_are_refused(tmp_path):
    lines(tmp_path / "notes.jsonl", [{"id": "x", "text": "BP"}])
    with pytest.raises(ArgumentError, match="no pair: 0 notes were read; 1 records"):
        build_pairs(tmp_path, tmp_path / "out", PairsSettings(notes=("notes.jsonl",)), 0)
    with pytest.raises(SourceError, match=r"away\.jsonl"):
        build_pairs(tmp_path, tmp_path / "out", PairsSettings(pairs=("away.jsonl",)), 0)


def test_public_rows_of_a_run_before_are_no_rows_of_one_with_own_files_alone(data, tmp_path):
    out = tmp_path / "pairs"
    build_pairs(data, out, PairsSettings(), 0)
    row = {"id": "d", "source": "parallel/tico19", "sentences": [{"en": "fever", "zh": "发热"}]}
    (out / "documents.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")  # the made folder has none
    own = [{"query": f"How was night {n}?", "passage": f"The patient slept {n}."} for n in range(20)]
    lines(tmp_path / "asked.jsonl", [{**row, "language": "en", "passage_language": "en"} for row in own])
    build_pairs(data, out, PairsSettings(pairs=(str(tmp_path / "asked.jsonl"),), public=False), 0)
    rows = [row for path in out.glob("*.jsonl") for row in read_rows(path)]
    assert {row["source"] for row in rows} == {"asked"}
