"""From a task's files to judged sets: one reader a kind of source. Data are read by path and never copied."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from eval import bundled
from eval.judged import JudgedSet, Text
from eval.tasks.declaration import SetDeclaration, Task
from indexer.errors import ArgumentError, SourceError
from indexer.text.language import identify
from indexer.text.sentences import split_sentences

_CATEGORY = re.compile(r"[A-Z]\d\d")
HELD_OUT_OF = 5
"""Ids are dealt into so many parts by their sha1 as a number; the option ``held_out`` says how many are evaluated."""


def held_out(identity: str, parts: int = 1) -> bool:
    """Return whether a concept or case is never trained on.

    >>> [concept for concept in ("HP:0000003", "HP:0000008", "HP:0000002") if held_out(concept)]
    ['HP:0000003']
    """
    return int(hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest(), 16) % HELD_OUT_OF < parts


def load_sets(task: Task, data: Path | None) -> list[JudgedSet]:
    """Return a task's judged sets, one a declared direction.

    Raises:
        SourceError: the data folder is not given, or a file of the task is absent or not what was declared.
    """
    if task.paths and data is None:
        raise SourceError(f"task {task.name} reads public data: give its folder with --data DIR or CLINRAG_DATA")
    files = [data / path for path in task.paths] if data is not None else []
    for file in files:
        if not file.exists():
            raise SourceError(
                f"task {task.name}: {file.name} is not in the data folder; see docs/evaluation.md for sources"
            )
    sets = _READERS[task.kind](task, files)
    for judged in sets:
        if not judged.queries:
            raise SourceError(
                f"task {task.name}: set {judged.name} has no queries with an answer; no row of the files fits it"
            )
    return sets


def data_sha256(task: Task, data: Path | None) -> str:
    """Return one hash over the files that a task reads."""
    total = hashlib.sha256()
    files = [data / path for path in task.paths] if data is not None else []
    if task.kind == "bundled":
        files = [bundled.notes_path(), bundled.questions_path()]
    for file in files:
        for part in sorted(file.iterdir()) if file.is_dir() else [file]:
            total.update(part.name.encode())
            total.update(hashlib.sha256(part.read_bytes()).digest())
    return total.hexdigest()


def _rows(path: Path, *keys: str) -> Iterator[dict[str, object]]:
    """Yield the rows of a gzip JSON-lines file, each with a value under every one of ``keys``."""
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path.name}, line {number}: not JSON; fetch the file again") from error
        if not isinstance(row, dict):
            raise SourceError(f"{path.name}, line {number}: no JSON object; fetch the file again")
        missing = [key for key in keys if row.get(key) is None]
        if missing:
            raise SourceError(f"{path.name}, line {number}: has no {missing[0]}; see docs/evaluation.md for the layout")
        yield row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a gzip UTF-8 file that hold something, with their number from 1."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise SourceError(f"{path.parent.name}/{path.name} is not there; see docs/evaluation.md for sources") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} is not UTF-8 behind line {number}; write it in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} cannot be read as gzip behind line {number}; fetch the file again") from error


def _expect(task: Task, **counts: int) -> None:
    for name, count in counts.items():
        if name in task.sizes and task.sizes[name] != count:
            raise SourceError(f"task {task.name} declares {task.sizes[name]} {name}, the files hold {count}")


def _beir(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    folder = files[0]
    corpus = _texts(folder / "corpus.jsonl.gz")
    queries = _texts(folder / "queries.jsonl.gz")
    qrels = _qrels(folder / "qrels.tsv.gz", {text.text_id for text in queries}, {text.text_id for text in corpus})
    _expect(task, corpus=len(corpus), queries=len(queries), qrels=sum(map(len, qrels.values())))
    return [_restrict(task, one, queries, corpus, qrels) for one in task.sets]


def _texts(path: Path) -> list[Text]:
    found: dict[str, Text] = {}
    for row in _rows(path, "_id", "text", "language"):
        text = " ".join(filter(None, (str(row.get("title") or ""), str(row["text"]))))
        one = Text(str(row["_id"]), text, str(row["language"]))
        if one.text_id in found:
            raise SourceError(f"{path.name} holds the id {one.text_id} twice")
        found[one.text_id] = one
    return list(found.values())


def _qrels(path: Path, queries: Set[str], passages: Set[str]) -> dict[str, dict[str, int]]:
    """Return the judgements below a header; one of a text that is not there would make a figure that means nothing."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for number, line in _lines(path):
        fields = line.rstrip("\r\n").split("\t")
        is_judgement = len(fields) == 3 and re.fullmatch(r"-?\d+", fields[2].strip()) is not None
        if number == 1:
            if is_judgement:
                raise SourceError(f"{path.name}, line 1: is a judgement; a header belongs there")
            continue
        if not is_judgement:
            raise SourceError(f"{path.name}, line {number}: is no query, passage and whole number with tabs between")
        query, passage, grade = fields
        for name, known, what in ((query, queries, "query"), (passage, passages, "passage")):
            if name not in known:
                raise SourceError(f"{path.name}, line {number}: there is no {what} {name}")
        found[query][passage] = int(grade)
    return found


def _restrict(
    task: Task,
    direction: SetDeclaration,
    queries: Sequence[Text],
    corpus: Sequence[Text],
    qrels: Mapping[str, Mapping[str, int]],
) -> JudgedSet:
    passages = tuple(passage for passage in corpus if passage.language in direction.corpus)
    ids = {passage.text_id for passage in passages}
    asked = []
    kept: dict[str, dict[str, int]] = {}
    for query in queries:
        if query.language not in direction.queries:
            continue
        grades = {passage: grade for passage, grade in qrels.get(query.text_id, {}).items() if passage in ids}
        if any(grade > 0 for grade in grades.values()):  # else no system could answer it
            asked.append(query)
            kept[query.text_id] = grades
    symmetric = bool(task.options.get("symmetric", False))
    return JudgedSet(f"{task.name}/{direction.name}", tuple(asked), passages, kept, task.main_metric, symmetric)


def _aligned(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    """Parallel segments: a segment's translations are relevant to it. ``prefixes`` keeps whole documents apart."""
    prefixes = tuple(str(task.options.get("prefixes", "")).split()) or ("",)
    rows = [row for file in files for row in _rows(file, "id") if str(row["id"]).startswith(prefixes)]
    _expect(task, rows=len(rows))
    mixed = bool(task.options.get("mixed", False))
    sets = []
    for direction in task.sets:
        full = [
            row for row in rows if all(str(row.get(c) or "").strip() for c in (*direction.queries, *direction.corpus))
        ]
        queries = [Text(f"{row['id']}#{c}", str(row[c]), c) for row in full for c in direction.queries]
        passages: dict[tuple[str, str], Text] = {}
        owners: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in full:
            for code in direction.corpus:
                text = str(row[code])
                passages.setdefault((code, text), Text(f"{row['id']}#{code}", text, code))
                owners[(code, text)].add(str(row["id"]))
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for (code, _), passage in zip(passages, passages.values(), strict=True):
            for owner in owners[(code, passage.text)]:
                for query_code in direction.queries:
                    if not (mixed and query_code == code):  # its own text is no translation
                        relevant[f"{owner}#{query_code}"][passage.text_id] = 1
        own = {
            query.text_id: passages[query.language, query.text].text_id
            for query in queries
            if (query.language, query.text) in passages
        }
        corpus = tuple(passages.values())
        name = f"{task.name}/{direction.name}"
        sets.append(JudgedSet(name, tuple(queries), corpus, relevant, task.main_metric, True, own))
    return sets


def _aligned_notes(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    """Whole documents that stand in several files under one id; the file's rows say their language."""
    parts = int(task.options.get("held_out", HELD_OUT_OF))
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        for row in _rows(file, "id", "language", "text"):
            if held_out(str(row["id"]), parts):
                texts[str(row["language"])][str(row["id"])] = str(row["text"])
    _expect(task, documents=sum(map(len, texts.values())))
    sets = []
    for direction in task.sets:
        (language,), (target,) = direction.queries, direction.corpus
        shared = sorted(set(texts[language]) & set(texts[target]))
        queries = tuple(Text(f"{note}#{language}", texts[language][note], language) for note in shared)
        corpus = tuple(Text(f"{note}#{target}", texts[target][note], target) for note in shared)
        qrels = {f"{note}#{language}": {f"{note}#{target}": 1} for note in shared}
        sets.append(JudgedSet(f"{task.name}/{direction.name}", queries, corpus, qrels, task.main_metric, True))
    return sets


def _terms(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    """Labels of concepts: a foreign label's English label is relevant, and every concept of the same English text.

    Of a language whose files hold no label (an alphabetical index has entries alone) a concept's first term stands in.
    """
    rows = [row for file in files for row in _rows(file, "concept", "language", "term")]
    labelled = {row["language"] for row in rows if row.get("kind") == "label"}
    rows = [row for row in rows if row.get("kind") == "label" or row["language"] not in labelled]
    pool_size = int(task.options.get("pool", 0))
    statuses = set(str(task.options.get("statuses", "")).split())
    parts = int(task.options.get("held_out", HELD_OUT_OF))
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        concept, language = str(row["concept"]), str(row["language"])
        if not held_out(concept, parts):
            continue
        if statuses and row.get("status") and str(row["status"]) not in statuses:
            continue
        labels[language].setdefault(concept, str(row["term"]).strip())
    sets = []
    for direction in task.sets:
        (language,), (target,) = direction.queries, direction.corpus
        shared = sorted(set(labels[language]) & set(labels[target]))
        pool = sorted(labels[target])
        if pool_size and len(pool) > pool_size:
            chosen = random.Random(0).sample(shared, min(pool_size, len(shared)))  # noqa: S311 - a fixed sample
            rest = sorted(set(pool) - set(chosen))
            filler = random.Random(1).sample(rest, max(0, pool_size - len(chosen)))  # noqa: S311
            pool, shared = sorted([*chosen, *filler]), sorted(chosen)
        by_text: dict[str, str] = {}
        for concept in pool:
            by_text.setdefault(labels[target][concept].casefold(), concept)
        corpus = tuple(Text(by_text[text], labels[target][by_text[text]], target) for text in by_text)
        queries = tuple(Text(f"{concept}#{language}", labels[language][concept], language) for concept in shared)
        qrels = {f"{concept}#{language}": {by_text[labels[target][concept].casefold()]: 1} for concept in shared}
        sets.append(JudgedSet(f"{task.name}/{direction.name}", queries, corpus, qrels, task.main_metric, True))
    _expect(task, labels=sum(map(len, labels.values())))
    return sets


def _coded(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    """Coded cases: a diagnosis category's label, in another language, finds the passages that hold its evidence.

    Files under ``terms`` are labels; rows with ``entities`` are cases with coded evidence; rows without are other texts
    of the case that ``meta.spaccc_id`` names: they take its place as one passage, since its evidence lies elsewhere.
    """
    parts = int(task.options.get("held_out", HELD_OUT_OF))
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    cases: dict[str, Any] = {}
    instead: dict[str, str] = {}
    for file in files:
        for row in _rows(file):
            if file.parent.name == "terms":
                code = str(row["concept"]).removeprefix("ICD10:")
                if _CATEGORY.fullmatch(code):
                    labels[str(row["language"])].setdefault(code, str(row["term"]).strip())
            elif "entities" in row:
                cases[str(row["id"])] = row
            else:
                meta: Any = row["meta"]
                instead[str(meta["spaccc_id"])] = str(row["text"])
    if instead:
        cases = {case: {**cases[case], "text": text, "whole": True} for case, text in instead.items() if case in cases}
    (language,) = {code for direction in task.sets for code in direction.corpus}
    corpus: list[Text] = []
    holding: dict[str, dict[str, int]] = defaultdict(dict)
    for case, row in sorted(cases.items()):
        if not held_out(case, parts):
            continue
        text = str(row["text"])
        spans = [(0, len(text))] if row.get("whole") else _packed_sentences(text, language)
        for number, (start, end) in enumerate(spans):
            corpus.append(Text(f"{case}#{number}", text[start:end], language))
            for one in row["entities"]:
                category = _category(one)
                if category is not None and (row.get("whole") or start <= int(one["start"]) < end):
                    holding[category][f"{case}#{number}"] = 1
    _expect(task, corpus=len(corpus))
    queries, qrels = [], {}
    for target, terms in labels.items():
        for code in sorted(set(terms) & set(holding)):
            queries.append(Text(f"{code}#{target}", terms[code], target))
            qrels[f"{code}#{target}"] = holding[code]
    return [_restrict(task, direction, queries, corpus, qrels) for direction in task.sets]


def _category(entity: Mapping[str, Any]) -> str | None:
    """Return the three-character category of an entity's diagnosis code; of blocks and procedures there is none."""
    found = re.fullmatch(r"([A-Z]\d\d)(\.\w+)?", str(entity.get("concept", "")).removeprefix("ICD10:").upper())
    return None if found is None else found[1]


def _packed_sentences(text: str, language: str) -> list[tuple[int, int]]:
    """Return spans of whole sentences, of about 600 characters."""
    spans: list[tuple[int, int]] = []
    for sentence in split_sentences(text, language):
        if spans and sentence.end - spans[-1][0] <= 600:
            spans[-1] = (spans[-1][0], sentence.end)
        else:
            spans.append((sentence.start, sentence.end))
    return spans


def _bundled(task: Task, files: Sequence[Path]) -> list[JudgedSet]:
    """The bundled questions against the bundled notes, whole: a note that holds a relevant span answers."""
    notes = [json.loads(line) for line in bundled.notes_path().read_text(encoding="utf-8").splitlines() if line]
    hidden = {note["replaces"] for note in notes if "replaces" in note}
    visible = [n for n in notes if n.get("status") != "entered-in-error" and n["id"] not in hidden]
    corpus = [Text(n["id"], n["text"], n.get("language") or identify(n["text"]) or "") for n in visible]
    ids = {passage.text_id for passage in corpus}
    queries, qrels = [], {}
    for question in bundled.load_questions():
        grades = {span.note_id: 1 for span in question.relevant if span.note_id in ids}
        if question.answerable and grades:
            queries.append(Text(question.question_id, question.question, question.language))
            qrels[question.question_id] = grades
    _expect(task, corpus=len(corpus), queries=len(queries))
    return [_restrict(task, one, queries, corpus, qrels) for one in task.sets]


_READERS: Mapping[str, Callable[[Task, Sequence[Path]], list[JudgedSet]]] = {
    "beir": _beir,
    "aligned": _aligned,
    "aligned_notes": _aligned_notes,
    "terms": _terms,
    "coded": _coded,
    "bundled": _bundled,
}


def check_task(task: Task) -> None:
    """Refuse a declaration that no reader can read.

    Raises:
        ArgumentError: the kind is unknown or a term set has several languages on a side.
    """
    if task.kind not in _READERS:
        raise ArgumentError("kind", f"'{task.kind}' of task {task.name} is none of {', '.join(_READERS)}")
    if task.kind == "terms" and any(len(one.queries) != 1 or len(one.corpus) != 1 for one in task.sets):
        raise ArgumentError("sets", f"of term task {task.name} must have one language on each side")
