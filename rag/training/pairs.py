"""Training rows out of a data folder: parallel text, terms, questions with answers, texts of one language.

Only sources whose licence lets a trained model be shipped are read (``SOURCES``); what is evaluated is left out by id
and by text (`heldout`). Each builder yields rows of one kind; `build` writes them as JSON lines with a manifest.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rag.training.documents import document_rows
from rag.training.heldout import (
    LANGUAGES,
    HeldOut,
    is_held_out_case,
    is_held_out_concept,
    is_held_out_tico,
    normalised,
    read_rows,
)
from rag.training.written import written_bitext, written_questions, written_terms

Row = dict[str, Any]

# file -> licence, as the model card states them
SOURCES = {
    "parallel/tico19": "CC0 1.0 (TICO-19, without the evaluated documents)",
    "parallel/tanaka_en_ja": "CC-BY 2.0 FR (Tanaka corpus, tatoeba.org)",
    "parallel/tatoeba_train_en_zh": "CC-BY 2.0 FR (tatoeba.org)",
    "parallel/hpo_definitions": "HPO licence (attribution)",
    "parallel/doid_definitions": "CC0 1.0 (Human Disease Ontology)",
    "parallel/openmrs_ui": "MPL 2.0 (OpenMRS)",
    "parallel/trec_ct_topics_mt": "CC-BY 4.0 (translations), public domain (topics)",
    "notes/codiesp": "CC-BY 4.0 (CodiEsp, without the evaluated cases)",
    "tasks/cardioccc": "CC-BY 4.0 (CardioCCC)",
    "terms/hpo": "HPO licence (Human Phenotype Ontology and hpo-translations; release 2016-04-01 for the hierarchy)",
    "terms/doid": "CC0 1.0 (Human Disease Ontology)",
    "terms/tico_covid": "CC0 1.0 (TICO-19 terminologies)",
    "eval/medquad": "CC-BY 4.0 (MedQuAD, without what LiveQA-Med and MedicationQA share)",
    "eval/cmedir_test": "Apache-2.0 (ChineseBLUE cMedIR, test part without queries and titles of the dev part)",
    "tasks/cmedqaner": "Apache-2.0 (ChineseBLUE cMedQANER)",
    "notes/aci_bench": "CC-BY 4.0 (ACI-BENCH)",
    "notes/meddocan": "CC-BY 4.0 (MEDDOCAN, without the evaluated CodiEsp cases)",
    "notes/grascco": "CC-BY 4.0 (GraSCCo)",
    "tasks/quaero": "GNU FDL (QUAERO French Medical Corpus)",
    "tasks/jmed_crade": "CC-BY 4.0 (CRADE, JMED-LLM)",
    "tasks/jmed_smdis": "CC-BY 4.0 (SMDIS, JMED-LLM)",
    "written/medicines": "MIT (written for this project)",
    "written/words": "MIT (written for this project)",
    "written/asked": "MIT (written for this project)",
}

_PARALLEL = (
    "tico19",
    "tanaka_en_ja",
    "tatoeba_train_en_zh",
    "hpo_definitions",
    "doid_definitions",
    "openmrs_ui",
    "trec_ct_topics_mt",
)
_TERMS = ("hpo", "doid", "tico_covid")
_CASES = ("en", "es", "it")
_KEPT = (
    ("notes/aci_bench", "en"),
    ("notes/grascco", "de"),
    ("notes/meddocan", "es"),
    ("notes/codiesp_es", "es"),
    ("notes/codiesp_en", "en"),
    ("tasks/quaero/train", "fr"),
    ("tasks/cmedqaner/train", "zh"),
    ("tasks/jmed_smdis/train", "ja"),
)
FILES = (
    *(f"parallel/{name}.jsonl.gz" for name in _PARALLEL),
    *(f"tasks/cardioccc/test_{language}.jsonl.gz" for language in _CASES),
    *(f"terms/{name}.jsonl.gz" for name in _TERMS),
    *(f"{name}.jsonl.gz" for name, _ in _KEPT),
    "tasks/jmed_crade/train.jsonl.gz",
    *(
        f"eval/{name}/{part}"
        for name in ("medquad", "cmedir_test")
        for part in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz")
    ),
    "eval/cmedir_dev/corpus.jsonl.gz",
)
"""What `build` reads, in the data folder; a file of evaluated texts that is not there leaves nothing out."""


def build(data: Path, out: Path) -> dict[str, dict[str, int]]:
    """Write the rows of every kind, a file each (and ``documents``), and return rows by kind and source."""
    held_out = HeldOut(data)
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    builders: dict[str, Callable[[Path, HeldOut], Iterator[Row]]] = {
        "bitext": bitext_rows,
        "terms": term_rows,
        "questions": question_rows,
        "titles": title_rows,
        "keep": keep_rows,
        "documents": lambda data, held_out: document_rows(bitext_rows(data, held_out), data, held_out),
    }
    for kind, rows_of in builders.items():
        found: Counter[str] = Counter()
        with (out / f"{kind}.jsonl").open("w", encoding="utf-8") as stream:
            for row in rows_of(data, held_out):
                found[str(row["source"])] += 1
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts[kind] = dict(found)
    (out / "manifest.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return counts


def bitext_rows(data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "texts": {language: text}}``: one meaning in two languages or more, one is English."""
    for name in _PARALLEL:
        for row in read_rows(data / "parallel" / f"{name}.jsonl.gz"):
            if name == "tico19" and is_held_out_tico(str(row["id"])):
                continue
            if name == "hpo_definitions" and is_held_out_concept(str(row["id"]).removeprefix("hpo-def:")):
                continue
            texts = {key: row[key].strip() for key in LANGUAGES if isinstance(row.get(key), str) and row[key].strip()}
            if name == "openmrs_ui" and len(texts["en"]) < 8:
                continue  # one-word buttons
            if len(texts) < 2 or _is_evaluated_meaning(texts, held_out):
                continue
            yield {"id": row["id"], "source": f"parallel/{name}", "texts": texts}
    yield from _cases(data, held_out)
    yield from written_bitext(held_out)


def _cases(data: Path, held_out: HeldOut) -> Iterator[Row]:
    english = {row["id"]: row["text"] for row in read_rows(data / "notes" / "codiesp_en.jsonl.gz")}
    for row in read_rows(data / "notes" / "codiesp_es.jsonl.gz"):
        if is_held_out_case(row["id"]) or held_out.holds_case(row["text"]) or row["id"] not in english:
            continue
        texts = {"en": _opening(english[row["id"]]), "es": _opening(row["text"])}
        yield {"id": row["id"], "source": "notes/codiesp", "texts": texts}
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for language in _CASES:
        for row in read_rows(data / "tasks" / "cardioccc" / f"test_{language}.jsonl.gz"):
            cases[row["pair_id"]][language] = _opening(row["text"])
    for pair_id, texts in cases.items():
        yield {"id": pair_id, "source": "tasks/cardioccc", "texts": texts}


def term_rows(data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "terms": {language: [terms]}, "parents"}`` of concepts in two languages or more."""
    for name in _TERMS:
        concepts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        named_alike: set[str] = set()
        for row in read_rows(data / "terms" / f"{name}.jsonl.gz"):
            term, language = row["term"].strip(), row["language"]
            if language not in LANGUAGES or term.casefold().startswith(("obsolete ", "obsoleto")):
                continue
            if is_held_out_concept(row["concept"]) and name != "tico_covid":
                continue
            if language == "en" and held_out.names_concept(term):
                named_alike.add(row["concept"])
            if held_out.holds_term(language, term) or held_out.holds_text(term):
                continue
            concepts[row["concept"]][language].append(term)
        parents: dict[str, list[str]] = defaultdict(list)
        tree = data / "terms" / f"{name}_isa.tsv.gz"
        if tree.is_file():
            for child, parent in _table(tree):
                parents[child].append(parent)
        for concept, terms in concepts.items():
            # a name that an evaluated concept shares tells its names in the other languages, whatever their wording
            if "en" in terms and len(terms) > 1 and concept not in named_alike:
                yield {"id": concept, "source": f"terms/{name}", "terms": dict(terms), "parents": parents[concept]}
    yield from written_terms(held_out)


def question_rows(data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "kind", "topic", "question", "answer"}`` of MedQuAD, nothing that LiveQA shares.

    The project's own questions follow, with their wording by language under ``questions``.
    """
    folder = data / "eval" / "medquad"
    answers = {row["_id"]: row for row in read_rows(folder / "corpus.jsonl.gz")}
    questions = {row["_id"]: row for row in read_rows(folder / "queries.jsonl.gz")}
    for query_id, answer_id, _ in _table(folder / "qrels.tsv.gz", header=True):
        question, answer = questions[query_id], answers[answer_id]
        if held_out.holds_text(question["text"]) or _is_evaluated_answer(answer["text"], held_out):
            continue
        yield {
            "id": f"{query_id}/{answer_id}",
            "source": "eval/medquad",
            "kind": question["qtype"],
            "topic": answer["title"],
            "question": question["text"],
            "answer": answer["text"][:1200],
        }
    yield from written_questions(held_out)


def title_rows(data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "language", "query", "title"}``: Chinese searches and page titles judged relevant."""
    folder = data / "eval" / "cmedir_test"
    evaluated = {row["_id"] for row in read_rows(data / "eval" / "cmedir_dev" / "corpus.jsonl.gz")}
    titles = {row["_id"]: row["text"] for row in read_rows(folder / "corpus.jsonl.gz")}
    queries = {row["_id"]: row["text"] for row in read_rows(folder / "queries.jsonl.gz")}
    for query_id, title_id, grade in _table(folder / "qrels.tsv.gz", header=True):
        query, title = queries[query_id], titles[title_id]
        if int(grade) < 1 or title_id in evaluated or held_out.holds_text(query) or held_out.holds_text(title):
            continue
        yield {
            "id": f"{query_id}/{title_id}",
            "source": "eval/cmedir_test",
            "language": "zh",
            "query": query,
            "title": title,
        }


def keep_rows(data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "language", "text"}``: running text on which the untuned model's geometry is kept."""
    for name, language in _KEPT:
        for row in read_rows(data / f"{name}.jsonl.gz"):
            identity = str(row["id"]).removeprefix("meddocan-")
            is_case = name.startswith(("notes/codiesp", "notes/meddocan"))
            if (is_case and is_held_out_case(identity)) or held_out.holds_case(row["text"]):
                continue
            if held_out.holds_text(row["text"]):
                continue
            source = "/".join(name.split("/")[:2]).removesuffix("_es").removesuffix("_en")
            yield {"id": row["id"], "source": source, "language": language, "text": row["text"]}
    for row in read_rows(data / "tasks" / "jmed_crade" / "train.jsonl.gz"):
        yield {"id": row["id"], "source": "tasks/jmed_crade", "language": "ja", "text": row["text_b"]}
    for row in read_rows(data / "eval" / "cmedir_test" / "corpus.jsonl.gz"):
        if not held_out.holds_text(row["text"]):
            yield {"id": row["_id"], "source": "eval/cmedir_test", "language": "zh", "text": row["text"]}
    for row in read_rows(data / "eval" / "medquad" / "corpus.jsonl.gz"):
        if not _is_evaluated_answer(row["text"], held_out):
            yield {"id": row["_id"], "source": "eval/medquad", "language": "en", "text": row["text"][:2500]}
    for row in read_rows(data / "parallel" / "tico19.jsonl.gz"):
        if is_held_out_tico(str(row["id"])):
            continue
        for language in ("zh", "ru", "fr", "pt", "es", "en"):
            text = str(row.get(language) or "").strip()
            if text and not held_out.holds_text(text):
                yield {"id": row["id"], "source": "parallel/tico19", "language": language, "text": text}


def terms_by_english(rows: list[Row]) -> dict[str, dict[str, list[str]]]:
    """Return folded English term -> its terms by language: how a topic is named elsewhere."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for term in row["terms"].get("en", []):
            found.setdefault(normalised(term), row["terms"])
    return found


def _is_evaluated_meaning(texts: dict[str, str], held_out: HeldOut) -> bool:
    """Return whether a text of parallel ones is evaluated, as a text or as the name of a concept."""
    if any(map(held_out.holds_text, texts.values())) or held_out.names_concept(texts.get("en", "")):
        return True
    return any(held_out.holds_term(language, text) for language, text in texts.items())


def _is_evaluated_answer(text: str, held_out: HeldOut) -> bool:
    return held_out.overlaps_answer(text) or held_out.holds_text(text)  # a heading is too short to overlap


def _opening(text: str) -> str:
    """Return the beginning of a case, up to a sentence end near 400 characters."""
    characters = 400
    flat = " ".join(text.split())
    if len(flat) <= characters:
        return flat
    end = max(flat.rfind(mark, 0, characters) for mark in (". ", "; ", ", "))
    return flat[: end + 1 if end > characters // 2 else characters].strip()


def _table(path: Path, header: bool = False) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if not (header and number == 0) and line.strip():
                yield line.rstrip("\n").split("\t")
