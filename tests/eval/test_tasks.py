"""Declared tasks and their readers: what is judged, on fixtures small enough to check by hand."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from eval.tasks.declaration import FOLDER, SetDeclaration, Task, load_tasks
from eval.tasks.readers import check_task, held_out, load_sets
from indexer.errors import ArgumentError, SourceError


def gz(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def declared(kind: str, paths: tuple[str, ...], sets, options=None, sizes=None) -> Task:
    directions = tuple(SetDeclaration(tuple(q), tuple(c)) for q, c in sets)
    return Task("t", kind, "here", "MIT", "any", "Success@1", paths, sizes or {}, options or {}, directions, ("s",))


def test_aligned_segments_answer_their_translations_and_equal_texts_share(tmp_path: Path):
    rows = [
        {"id": "doc1:1", "en": "fever", "es": "fiebre", "zh": "发热"},
        {"id": "doc1:2", "en": "fever", "es": "calentura", "zh": "发烧"},
        {"id": "doc2:1", "en": "cough", "es": "tos", "zh": "咳嗽"},
        {"id": "doc2:2", "en": "rash", "es": None, "zh": None},
    ]
    gz(tmp_path / "p.jsonl.gz", rows)
    one = declared("aligned", ("p.jsonl.gz",), [(["es"], ["en"]), (["en"], ["en", "es", "zh"])], {"mixed": True})
    to_english, mixed = load_sets(one, tmp_path)
    assert [passage.text for passage in to_english.corpus] == ["fever", "cough"]
    assert to_english.qrels["doc1:2#es"] == {"doc1:1#en": 1}
    assert set(mixed.qrels["doc2:1#en"]) == {"doc2:1#es", "doc2:1#zh"}
    # the query itself lies in the pool, and its ranking is without it
    ranking = {"doc1:2#en": {"doc1:1#en": 1.0, "doc1:2#es": 0.9}, "doc2:1#en": {"doc2:1#en": 1.0, "doc2:1#zh": 0.8}}
    assert mixed.without_own(ranking) == {"doc1:2#en": {"doc1:2#es": 0.9}, "doc2:1#en": {"doc2:1#zh": 0.8}}
    only = declared("aligned", ("p.jsonl.gz",), [(["es"], ["en"])], {"prefixes": "doc2"})
    assert len(load_sets(only, tmp_path)[0].queries) == 1


def test_terms_keep_only_held_out_concepts(tmp_path: Path):
    concepts = [f"HP:{number:07d}" for number in range(1, 60)]
    rows = [{"concept": c, "language": "en", "term": f"term {c}", "kind": "label"} for c in concepts]
    rows += [{"concept": c, "language": "zh", "term": f"词 {c}", "kind": "label"} for c in concepts]
    gz(tmp_path / "hpo.jsonl.gz", rows)
    (found,) = load_sets(declared("terms", ("hpo.jsonl.gz",), [(["zh"], ["en"])], {"held_out": 1}), tmp_path)
    assert {query.text_id.split("#")[0] for query in found.queries} == {c for c in concepts if held_out(c)}
    assert 0 < len(found.queries) < len(concepts) / 2


def test_a_label_of_icd_finds_the_passages_with_its_evidence(tmp_path: Path):
    case = next(f"S{number}" for number in range(50) if held_out(f"S{number}", 2))
    trained = next(f"S{number}" for number in range(50) if not held_out(f"S{number}", 2))
    text = (
        "Fiebre alta desde ayer. " + "Sin otros datos de interés en la historia. " * 20 + "Presenta neumonía derecha."
    )
    at = text.index("neumonía")
    entities = [
        {"start": 0, "end": 6, "label": "DIAGNOSTICO", "concept": "ICD10:r50.9"},
        {"start": at, "end": at + 8, "label": "DIAGNOSTICO", "concept": "ICD10:j18.9"},
        {"start": at, "end": at + 8, "label": "PROCEDIMIENTO", "concept": "ICD10:bw40zzz"},
        {"start": at, "end": at + 8, "label": "DIAGNOSTICO"},
    ]
    gz(tmp_path / "cases.jsonl.gz", [{"id": name, "text": text, "entities": entities} for name in (case, trained)])
    labels = [("J18", "Pneumonia", "en"), ("R50", "Fever", "en"), ("J18.9", "Pneumonia, unspecified", "en")]
    rows = [
        {"concept": f"ICD10:{code}", "language": lang, "term": term, "kind": "label"} for code, term, lang in labels
    ]
    gz(tmp_path / "terms" / "icd.jsonl.gz", rows)
    gz(tmp_path / "reports.jsonl.gz", [{"id": "m", "text": "Datos del paciente.", "meta": {"spaccc_id": case}}])
    paths = ("cases.jsonl.gz", "terms/icd.jsonl.gz")
    (found,) = load_sets(declared("coded", paths, [(["en"], ["es"])], {"held_out": 2}), tmp_path)
    assert {query.text for query in found.queries} == {"Pneumonia", "Fever"}
    passages = {passage.text_id: passage.text for passage in found.corpus}
    assert all(name.startswith(f"{case}#") for name in passages)
    assert len(passages) > 1
    for code, word in (("J18", "neumonía"), ("R50", "Fiebre")):
        assert [word in passages[name] for name in found.qrels[f"{code}#en"]] == [True]
    whole = declared("coded", (*paths, "reports.jsonl.gz"), [(["en"], ["es"])], {"held_out": 2})
    (found,) = load_sets(whole, tmp_path)
    assert [passage.text for passage in found.corpus] == ["Datos del paciente."]
    assert set(found.qrels) == {"J18#en", "R50#en"}


def test_beir_sets_are_restricted_to_a_direction_and_counted(tmp_path: Path):
    folder = tmp_path / "set"
    gz(
        folder / "corpus.jsonl.gz",
        [{"_id": "a-en", "text": "x", "language": "en"}, {"_id": "a-es", "text": "y", "language": "es"}],
    )
    gz(folder / "queries.jsonl.gz", [{"_id": "q-es", "text": "q", "language": "es"}])
    with gzip.open(folder / "qrels.tsv.gz", "wt") as stream:
        stream.write("query-id\tcorpus-id\tscore\nq-es\ta-en\t1\nq-es\ta-es\t1\n")
    (found,) = load_sets(declared("beir", ("set",), [(["es"], ["en"])], sizes={"corpus": 2}), tmp_path)
    assert found.qrels == {"q-es": {"a-en": 1}}
    assert {passage.language for passage in found.corpus} == {"en"}
    with pytest.raises(SourceError, match="declares 3 corpus, the files hold 2"):
        load_sets(declared("beir", ("set",), [(["es"], ["en"])], sizes={"corpus": 3}), tmp_path)


def _beir_folder(folder: Path, **files: str) -> Path:
    whole = {
        "corpus.jsonl": '{"_id": "d1", "text": "x", "language": "en"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "q", "language": "es"}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    folder.mkdir(parents=True)
    for name, text in (whole | {name.replace("_", "."): text for name, text in files.items()}).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels_tsv", "query-id\tcorpus-id\nq1\td1\n", "qrels.tsv.gz, line 2: is no query, passage and whole number"),
        ("qrels_tsv", "q1 0 d1 1\nq1 0 d1 1\n", "line 2: is no query, passage and whole number with tabs"),
        ("qrels_tsv", "q\td\ts\nq1\td1\tyes\n", "line 2: is no query"),
        ("qrels_tsv", "q1\td1\t1\n", "line 1: is a judgement; a header belongs there"),
        ("qrels_tsv", "q\td\ts\nq9\td1\t1\n", "line 2: there is no query q9"),
        ("qrels_tsv", "q\td\ts\nq1\td9\t1\n", "line 2: there is no passage d9"),
        ("qrels_tsv", "q\td\ts\nq1\td1\t0\n", "no queries with an answer"),
        ("qrels_tsv", "", "no queries with an answer"),
        ("corpus_jsonl", '{"_id": "d1", "text": "secret"}\n', "corpus.jsonl.gz, line 1: has no language"),
        ("corpus_jsonl", '{"_id": "d1", "text": "a", "language": "en"}\n' * 2, "holds the id d1 twice"),
        ("queries_jsonl", "[1]\n", "queries.jsonl.gz, line 1: no JSON object"),
        ("queries_jsonl", '\n{"_id": "q1", secret\n', "queries.jsonl.gz, line 2: not JSON"),
    ],
)
def test_a_wrong_row_of_a_judged_set_is_named_and_not_quoted(tmp_path: Path, name, text, message):
    _beir_folder(tmp_path / "set", **{name: text})
    with pytest.raises(SourceError, match=re.escape(message)) as caught:
        load_sets(declared("beir", ("set",), [(["es"], ["en"])]), tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"plain text", "cannot be read as gzip"),
        (lambda content: content[: len(content) // 2], "cannot be read as gzip"),
        (lambda content: gzip.compress('{"_id": "é"}'.encode("latin-1")), "is not UTF-8"),
    ],
)
def test_a_damaged_file_of_a_judged_set_is_named(tmp_path: Path, damage, message):
    path = _beir_folder(tmp_path / "set") / "corpus.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=rf"corpus\.jsonl\.gz {message}"):
        load_sets(declared("beir", ("set",), [(["es"], ["en"])]), tmp_path)
    path.unlink()
    with pytest.raises(SourceError, match=r"set/corpus\.jsonl\.gz is not there"):
        load_sets(declared("beir", ("set",), [(["es"], ["en"])]), tmp_path)


def test_a_query_that_nothing_answers_is_not_asked(tmp_path: Path):
    queries = "".join(f'{{"_id": "q{n}", "text": "q", "language": "es"}}\n' for n in (1, 2))
    qrels = "q\td\ts\nq1\td1\t1\nq2\td1\t0\n"
    _beir_folder(tmp_path / "set", queries_jsonl=queries, qrels_tsv=qrels)
    (found,) = load_sets(declared("beir", ("set",), [(["es"], ["en"])]), tmp_path)
    assert [query.text_id for query in found.queries] == list(found.qrels) == ["q1"]


def test_every_declaration_can_be_read_and_says_where_its_data_come_from():
    names = [path.stem for path in FOLDER.glob("*.toml")]
    assert names
    for name in names:
        (task,) = [task for task in load_tasks(name) if task.name == name]
        check_task(task)
        assert task.licence
        assert task.sets
    with pytest.raises(ArgumentError, match="none of"):
        load_tasks("nothing")


def test_what_is_evaluated_of_a_source_is_what_training_holds_out():
    from rag.training.heldout import is_held_out_case, is_held_out_concept, is_held_out_tico

    for number in range(500):
        concept, case = f"HP:{number:07d}", f"S0004-0614200500070{number:04d}-1"
        assert held_out(concept, 1) == is_held_out_concept(concept)
        assert held_out(case, 2) == is_held_out_case(case)
    (hpo,), (cases,), (tico,) = load_tasks("hpo"), load_tasks("codiesp_cases"), load_tasks("tico19_mixed")
    assert all(load_tasks(name)[0].options["held_out"] == 2 for name in ("codes_codiesp", "codes_meddocan"))
    assert (hpo.options["held_out"], cases.options["held_out"]) == (1, 2)
    assert all(is_held_out_tico(f"{prefix}1") for prefix in str(tico.options["prefixes"]).split())


def test_a_set_without_queries_is_an_error(tmp_path: Path):
    gz(tmp_path / "p.jsonl.gz", [{"id": "doc1:1", "en": "fever", "es": "fiebre"}])
    with pytest.raises(SourceError, match="no queries"):
        load_sets(declared("aligned", ("p.jsonl.gz",), [(["es"], ["en"])], {"prefixes": "doc2"}), tmp_path)


def test_a_task_without_its_data_says_how_to_give_them(tmp_path: Path):
    (task,) = load_tasks("xlinghealth_liveqa")
    with pytest.raises(SourceError, match="--data DIR"):
        load_sets(task, None)
    with pytest.raises(SourceError, match="xlinghealth_liveqa is not in the data folder"):
        load_sets(task, tmp_path)
