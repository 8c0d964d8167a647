"""Nothing evaluated is trained on: by id and by text, on a made folder and, where it is at hand, on the real one."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from indexer.errors import SourceError
from rag.training.batches import Pairs, Questions, Sampler, Sizes, Texts
from rag.training.heldout import (
    LANGUAGES,
    HeldOut,
    bucket,
    is_held_out_case,
    is_held_out_concept,
    is_held_out_tico,
    normalised,
    read_rows,
)
from rag.training.pairs import SOURCES, build
from rag.training.written import written_questions, written_terms
from tests.rag.made_training import sentence, write_rows


def rows_of(pairs: Path, kind: str) -> list[dict]:
    return list(read_rows(pairs / f"{kind}.jsonl"))


def assert_nothing_leaks(data: Path, pairs: Path) -> None:
    held_out = HeldOut(data)
    for row in rows_of(pairs, "bitext"):
        if row["source"] == "parallel/tico19":
            assert not is_held_out_tico(row["id"])
        if row["source"] == "notes/codiesp":
            assert not is_held_out_case(row["id"])
        assert not [text for text in row["texts"].values() if held_out.holds_text(text)], row["id"]
        assert not [text for key, text in row["texts"].items() if held_out.holds_term(key, text)], row["id"]
        assert not held_out.names_concept(row["texts"].get("en", "")), row["id"]
    for row in rows_of(pairs, "documents"):
        if row["source"] == "parallel/tico19":
            assert not is_held_out_tico(f"{row['id']}:0")
        if row["source"] == "notes/codiesp":
            assert not is_held_out_case(row["id"])
    for row in rows_of(pairs, "terms"):
        assert row["source"] not in ("terms/hpo", "terms/doid") or not is_held_out_concept(row["id"])
        for language, terms in row["terms"].items():
            assert not [term for term in terms if held_out.holds_term(language, term)], row["id"]
        assert not [term for term in row["terms"]["en"] if held_out.names_concept(term)], row["id"]
    for row in rows_of(pairs, "questions"):
        assert not held_out.holds_text(row["question"])
        assert not [text for text in row.get("questions", {}).values() if held_out.holds_text(text)], row["id"]
        assert not held_out.overlaps_answer(row["answer"]), row["id"]
        assert not held_out.holds_text(row["answer"]), row["id"]
    for row in rows_of(pairs, "titles"):
        assert not held_out.holds_text(row["query"])
        assert not held_out.holds_text(row["title"])
    for row in rows_of(pairs, "keep"):
        assert not held_out.holds_text(row["text"])
        assert not held_out.holds_case(row["text"])


def test_no_row_is_of_an_evaluated_document_case_concept_or_text(data, pairs):
    assert_nothing_leaks(data, pairs)


@pytest.mark.data
def test_no_row_of_the_real_data_is_evaluated(tmp_path):
    folder = os.environ.get("CLINRAG_DATA")
    if not folder:
        pytest.skip("CLINRAG_DATA names no data folder")
    build(Path(folder), tmp_path)
    assert_nothing_leaks(Path(folder), tmp_path)


def test_the_made_folder_has_what_must_be_dropped_and_it_is_dropped(data, pairs):
    ids = {row["id"] for row in rows_of(pairs, "bitext")}
    assert "anki:3" not in ids  # its Chinese side is an evaluated Tatoeba sentence
    assert "anki:4" in ids
    assert not [one for one in ids if "PubMed_10" in one]
    assert "q3/a3" not in {row["id"] for row in rows_of(pairs, "questions")}  # shares a long run with a LiveQA answer
    titles = {row["id"] for row in rows_of(pairs, "titles")}
    assert titles == {f"test-q{n}/d{n}" for n in range(5)}  # d5 to d7 are documents of the dev part
    labelled = {row["id"]: row["terms"] for row in rows_of(pairs, "terms")}
    assert "HP:1" in labelled
    assert "zh" not in labelled["HP:1"]  # an ICD-10 label of that language


def test_what_names_an_evaluated_concept_is_not_trained_on_in_other_words(data, tmp_path):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    concept = next(row for row in read_rows(data / "terms" / "hpo.jsonl.gz") if row["concept"] == "HP:7")
    evaluated = next(f"HP:{n}" for n in range(60) if is_held_out_concept(f"HP:{n}"))
    rows = list(read_rows(data / "terms" / "hpo.jsonl.gz"))
    rows += [{"concept": evaluated, "language": "en", "term": "Shared synonym", "kind": "synonym"}]
    rows += [{"concept": "HP:8", "language": "en", "term": "shared synonym", "kind": "synonym"}]
    write_rows(copy / "terms" / "hpo.jsonl.gz", rows)
    label = {"concept": "ICD10:B", "language": "en", "term": concept["term"].upper(), "kind": "label"}
    write_rows(copy / "terms" / "icd10_en.jsonl.gz", [label])
    button = {"id": "openmrs:x", "en": "something else", "zh": rows[1]["term"]}  # HP:0 in Chinese
    assert (rows[1]["language"], rows[1]["concept"]) == ("zh", "HP:0")
    write_rows(copy / "terms" / "icd10_zh.jsonl.gz", [label | {"language": "zh", "term": button["zh"]}])
    write_rows(copy / "parallel" / "openmrs_ui.jsonl.gz", [button, button | {"id": "openmrs:y", "zh": "别的"}])
    build(copy, tmp_path / "pairs")
    before = {row["id"] for row in rows_of(tmp_path / "pairs", "terms")}
    assert not {"HP:7", "HP:8"} & before
    assert "HP:9" in before
    assert_nothing_leaks(copy, tmp_path / "pairs")
    ids = {row["id"] for row in rows_of(tmp_path / "pairs", "bitext")}
    assert ("openmrs:x" in ids, "openmrs:y" in ids) == (False, True)


def test_every_source_has_its_licence(pairs):
    counts = json.loads((pairs / "manifest.json").read_text(encoding="utf-8"))
    sources = {source for found in counts.values() for source in found}
    assert sources <= set(SOURCES)
    assert all(SOURCES[source] for source in sources)


def test_the_split_rule_by_hand():
    import hashlib

    number = int(hashlib.sha1(b"HP:0000118").hexdigest(), 16)
    assert bucket("HP:0000118", 5) == number % 5
    assert is_held_out_concept("HP:0000118") == (number % 5 == 0)


def test_normalised_forgets_case_width_and_punctuation():
    assert normalised("  Ｆever, (high)! ") == normalised("fever high") == "fever high"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"id": 1}\n{"id": \xff}\n')
    with pytest.raises(SourceError, match=r"bad\.jsonl"):
        list(read_rows(tmp_path / "bad.jsonl"))
    with gzip.open(tmp_path / "list.jsonl.gz", "wt") as stream:
        stream.write("[1]\n")
    with pytest.raises(SourceError, match="line 1"):
        list(read_rows(tmp_path / "list.jsonl.gz"))


def test_empty_sides_and_missing_languages_are_left_out(data, tmp_path):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    rows = [
        {"id": "anki:a", "en": "pain", "zh": "  "},
        {"id": "anki:b", "en": "cough"},
        {"id": "anki:c", "en": sentence("en", 1), "zh": sentence("zh", 350)},
    ]
    write_rows(copy / "parallel" / "tatoeba_train_en_zh.jsonl.gz", rows)
    build(copy, tmp_path / "pairs")
    found = {
        row["id"] for row in rows_of(tmp_path / "pairs", "bitext") if row["source"] == "parallel/tatoeba_train_en_zh"
    }
    assert found == {"anki:c"}


@pytest.mark.parametrize("kind", ["bitext", "terms", "statements", "questions", "titles", "keep", "crossing"])
def test_a_batch_is_the_same_for_one_seed_and_step_and_another_for_the_next(pairs, kind):
    sizes = Sizes(bitext_characters=300, terms=6, statements=4, questions=4, titles=3, keep=5, crossing=3)
    one, again = Sampler(pairs, sizes, 1), Sampler(pairs, sizes, 1)
    assert one.draw(kind, 5) == again.draw(kind, 5)
    assert any(one.draw(kind, step) != one.draw(kind, 5) for step in range(6, 12))
    batch = one.draw(kind, 5)
    if isinstance(batch, Pairs):
        assert len(batch.left) == len(batch.right) == len(batch.english) == len(batch.same) > 1
        assert all(map(str.strip, batch.left + batch.right))
    elif isinstance(batch, Questions):
        assert len(batch.questions) == len(batch.passages) == len(batch.same)
    else:
        assert isinstance(batch, Texts)
        assert len(batch.queries) == len(batch.passages) > 1


def test_a_few_rows_of_parallel_text_always_give_a_batch(tmp_path):
    rows = [{"id": str(n), "source": "own", "texts": {"en": f"one {n}", "zh": f"一 {n}"}} for n in range(3)]
    (tmp_path / "bitext.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sampler = Sampler(tmp_path)
    assert {len(sampler.draw("bitext", step).left) for step in range(50)} == {1, 2, 3}


def test_a_paragraph_asked_for_in_another_language_is_taught_by_its_english(pairs):
    sampler = Sampler(pairs, Sizes(crossing=3))
    sentences = [texts for row in rows_of(pairs, "documents") for texts in row["sentences"]]
    english = {texts["en"] for texts in sentences}
    foreign = {texts[key] for texts in sentences for key in ("es", "zh") if key in texts}
    for step in range(8):
        batch = sampler.draw("crossing", step)
        assert isinstance(batch, Texts)
        assert len(batch.queries) == len(batch.passages) == len(batch.taught_queries) == len(batch.taught_passages) > 1
        assert set(batch.taught_queries) <= english
        assert set(batch.queries) <= foreign
        # the query is of its paragraph
        assert all(query in text for query, text in zip(batch.taught_queries, batch.taught_passages, strict=True))


def test_a_case_that_splits_differently_in_two_languages_is_left_out(data, pairs, tmp_path):
    import shutil

    sources = {row["source"] for row in rows_of(pairs, "documents")}
    assert "notes/codiesp" in sources
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    english = list(read_rows(copy / "notes" / "codiesp_en.jsonl.gz"))
    write_rows(copy / "notes" / "codiesp_en.jsonl.gz", [row | {"text": row["text"] + " One more."} for row in english])
    build(copy, tmp_path / "pairs")
    left = {row["source"] for row in rows_of(tmp_path / "pairs", "documents")}
    assert left == sources - {"notes/codiesp"}


def test_what_the_project_wrote_is_whole_and_of_the_languages_that_count(data):
    nothing_held_out = HeldOut(data / "nowhere")
    terms = list(written_terms(nothing_held_out))
    assert len(terms) > 1000
    for row in terms:
        assert set(row["terms"]) <= set(LANGUAGES), row["id"]
        assert all(term == term.strip() != "" for found in row["terms"].values() for term in found), row["id"]
    english = [normalised(row["terms"]["en"][0]) for row in terms]
    assert len(set(english)) == len(english)
    questions = list(written_questions(nothing_held_out))
    assert len(questions) > 250
    for row in questions:
        assert {"en", "zh", "ja", "es", "ru"} <= set(row["questions"]) <= set(LANGUAGES), row["id"]
        assert all(map(str.strip, row["questions"].values())), row["id"]
        assert len(row["answer"].split()) > 30, row["id"]


@pytest.mark.parametrize("name", ["hpo", "icd10_en"])
def test_a_written_term_of_an_evaluated_concept_goes_as_a_whole(tmp_path, name):
    one = next(written_terms(HeldOut(tmp_path)))
    concept = next(f"HP:{n}" for n in range(100) if is_held_out_concept(f"HP:{n}"))
    label = {"concept": concept, "language": "en", "term": one["terms"]["en"][0].upper(), "kind": "label"}
    write_rows(tmp_path / "terms" / f"{name}.jsonl.gz", [label])
    assert one["id"] not in {row["id"] for row in written_terms(HeldOut(tmp_path))}


def test_a_written_question_that_is_evaluated_is_not_trained_on(tmp_path):
    one = next(written_questions(HeldOut(tmp_path)))
    query = {"_id": "q", "text": one["questions"]["zh"], "language": "zh"}
    write_rows(tmp_path / "eval" / "xquad" / "queries.jsonl.gz", [query])
    assert one["id"] not in {row["id"] for row in written_questions(HeldOut(tmp_path))}


def test_a_question_written_in_many_languages_is_asked_in_them(pairs):
    asked = {text for row in rows_of(pairs, "questions") for text in row.get("questions", {}).values()}
    sampler = Sampler(pairs, Sizes(questions=12))
    drawn = [text for step in range(6) for text in sampler.draw("questions", step).questions]
    assert asked.intersection(drawn)


def test_a_told_question_keeps_the_question_that_was_asked(pairs):
    sampler = Sampler(pairs, Sizes(questions=12))
    told = [text for step in range(6) for text in sampler.draw("questions", step).questions]
    assert any(len(text) > 60 for text in told)
    assert all("{x}" not in text for text in told)


def test_a_statement_and_its_negation_are_negatives_of_one_another(pairs):
    batch = Sampler(pairs, Sizes(statements=12)).draw("statements", 0)
    concepts = [one.split("/")[0] for one in batch.same]
    assert len(set(batch.same)) == len(batch.same)
    assert len(set(concepts)) < len(concepts)
