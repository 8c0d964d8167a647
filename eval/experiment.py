"""One evaluation: systems over the sets of a suite, kept as files that can be recomputed and compared.

A run's folder holds ``results.json`` (every mean with its interval, and what is needed to compute it again), and for
each system and set ``<system>/<set>.run`` (TREC run), ``<set>.qrels`` (TREC qrels) and ``<set>.tsv`` (values a query);
``<system>/data.json`` says which data they are of.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval.judged import JudgedSet, Run
from eval.metrics import MEASURES, evaluate, language_shares, ranked
from eval.parity import Parity, QueryParity, by_query, parity
from eval.statistics import Interval, bootstrap, paired_bootstrap
from eval.systems import System
from eval.tasks.declaration import Task, load_tasks
from eval.tasks.readers import check_task, data_sha256, load_sets
from indexer.errors import ArgumentError, SourceError
from indexer.times import iso, now_us

DEPTH = 100
RESULTS = "results.json"
DATA = "data.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One system on one set. ``values`` are means by measure, ``interval`` is that of the main measure."""

    task: str
    set_name: str
    system: str
    queries: int
    corpus: int
    main_metric: str
    interval: Interval
    values: dict[str, float]


def run_suite(
    suite: str,
    systems: Sequence[System],
    *,
    out: Path,
    data: Path | None,
    command: str,
    max_queries: int | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> tuple[list[Row], list[Parity]]:
    """Return the rows of a suite and the systems' parity on its tasks of several languages; leave its files in ``out``.

    ``max_queries``: so many of each set's queries, drawn evenly, are asked.

    Raises:
        ArgumentError: no such suite, or two systems of one name.
        SourceError: data that a task needs are absent.
    """
    if len({system.name for system in systems}) < len(systems):
        raise ArgumentError(
            "systems", "hold one name twice; a folder is called by its last part: link it under another"
        )
    tasks = load_tasks(suite)
    rows: list[Row] = []
    equality: dict[tuple[str, str], dict[str, QueryParity]] = defaultdict(dict)
    hashes: dict[str, str] = {}
    for task in tasks:
        check_task(task)
        sets = load_sets(task, data)
        hashes[task.name] = data_sha256(task, data)
        (out / RESULTS).unlink(missing_ok=True)  # of an earlier run: what follows may be cut off
        for system in systems:
            _begin(out / system.name, task.name, hashes[task.name])
        for whole in sets:
            judged = _drawn(whole, max_queries)
            write_qrels(out / f"{_file(judged.name)}.qrels", judged)
            for system in systems:
                run = judged.without_own(system.rank(judged, DEPTH))
                row = _score(task, judged, system, run, out)
                rows.append(row)
                equality[task.name, system.name] |= by_query(judged, run)
                if on_row is not None:
                    on_row(row)
    told = [parity(task, system, values) for (task, system), values in equality.items()]
    parities = [one for one in told if one is not None]
    record = {
        "suite": suite,
        "max_queries": max_queries,
        "command": command,
        "commit": commit_id(),
        "made_at": iso(now_us()),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "data_sha256": hashes,
        "systems": {system.name: dict(system.description) for system in systems},
        "rows": [asdict(row) for row in rows],
        "parity": [asdict(one) for one in parities],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return rows, parities


def _begin(folder: Path, task: str, sha256: str) -> None:
    """Take away what an earlier run left of a task, and say which data the values that come are of."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("tsv", "run"):
        for old in folder.glob(f"*.{suffix}"):
            if old.name.split(".")[0] == task:
                old.unlink()
    (folder / DATA).write_text(json.dumps(_data_of(folder) | {task: sha256}) + "\n", encoding="utf-8")


def _data_of(folder: Path) -> dict[str, str]:
    """Return the hash of the data of each task that a system's values are of, as far as it is known."""
    try:
        known = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # what a kill left half written: then nothing is known
        return {}
    return known if isinstance(known, dict) else {}


def _drawn(judged: JudgedSet, limit: int | None) -> JudgedSet:
    """Return the set with at most so many of its queries, evenly spaced, over its whole corpus."""
    n = len(judged.queries)
    if limit is None or n <= limit:
        return judged
    queries = tuple(judged.queries[at * n // limit] for at in range(limit))
    asked = {query.text_id for query in queries}
    return replace(judged, queries=queries, qrels={q: grades for q, grades in judged.qrels.items() if q in asked})


def _score(task: Task, judged: JudgedSet, system: System, run: Run, out: Path) -> Row:
    measures = tuple(dict.fromkeys([judged.main_metric, *MEASURES]))
    scores = evaluate(judged.qrels, run, measures)
    values = {name: one.mean for name, one in scores.items()}
    if len({passage.language for passage in judged.corpus}) > 1:
        values |= language_shares(judged, run)
    main = scores[judged.main_metric]
    folder = out / system.name
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder / f"{_file(judged.name)}.run", run, system.name)
    lines = [f"{query}\t{value:.6f}" for query, value in zip(main.query_ids, main.per_query, strict=True)]
    header = f"query\t{judged.main_metric}"
    (folder / f"{_file(judged.name)}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return Row(
        task.name,
        judged.name,
        system.name,
        len(judged.queries),
        len(judged.corpus),
        judged.main_metric,
        bootstrap(main.per_query, [judged.answers(query) for query in main.query_ids], samples=2_000),
        values,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One set under two systems: the paired difference ``first - second`` of the main measure."""

    set_name: str
    main_metric: str
    first: float
    second: float
    difference: Interval


def compare(folder: Path, first: str, second: str, *, other_folder: Path | None = None) -> list[Comparison]:
    """Return the paired comparison of two systems over every set that both ran, on the queries that both were asked.

    Raises:
        SourceError: a folder holds no values of that system, or of other data or another measure, or none of a query
            that both were asked.
    """
    sides = [read_values(folder, first), read_values(other_folder or folder, second)]
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        raise SourceError(f"{first} and {second} share no set: run both on one suite first")
    check_one_data([folder / first, (other_folder or folder) / second], shared)
    found = []
    for name in shared:
        (metric, left), (other_metric, right) = sides[0][name], sides[1][name]
        if metric != other_metric:
            raise SourceError(f"{name}: {first} was measured by {metric}, {second} by {other_metric}; run one again")
        queries = sorted(set(left) & set(right))
        if not queries:
            raise SourceError(
                f"{name}: {first} and {second} were asked no query in common; run both over the same data"
            )
        a, b = [left[query] for query in queries], [right[query] for query in queries]
        answers = _answers(folder / f"{name}.qrels")
        alike = [answers.get(_id(query), query) for query in queries]
        found.append(Comparison(name, metric, sum(a) / len(a), sum(b) / len(b), paired_bootstrap(a, b, alike)))
    return found


def _answers(path: Path) -> dict[str, frozenset[str]]:
    """Return the relevant passages of each query of a qrels file that `write_qrels` wrote; nothing without the file."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        query, _, passage, grade = line.split()
        if int(grade) > 0:
            found[query].add(passage)
    return {query: frozenset(passages) for query, passages in found.items()}


def check_one_data(folders: Sequence[Path], sets: Iterable[str]) -> None:
    """Return if the systems of these folders were measured on the same data of the sets, as far as that is known.

    Raises:
        SourceError: they were not; the message names them.
    """
    hashes = {folder: _data_of(folder) for folder in folders}
    for task in sorted({name.split(".")[0] for name in sets}):
        known = {found[task]: folder for folder, found in hashes.items() if task in found}
        if len(known) > 1:
            named = " and ".join(sorted(f"{folder.parent.name}/{folder.name}" for folder in known.values()))
            raise SourceError(f"{task}: {named} were measured on other data; run one again")


def load_results(folder: Path) -> dict[str, Any]:
    """Return what ``results.json`` of a run's folder holds.

    Raises:
        SourceError: the folder holds no finished run.
    """
    path = folder / RESULTS
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"{folder.name} holds no {path.name}: the run did not end, or this is no run's folder"
        ) from None
    except ValueError as error:
        raise SourceError(f"{folder.name}/{path.name} is not whole: the run did not end; run it again") from error
    if not isinstance(loaded, dict):
        raise SourceError(f"{folder.name}/{path.name} is no run's; name the folder that a run left")
    return loaded


def read_values(folder: Path, system: str) -> dict[str, tuple[str, dict[str, float]]]:
    """Return a system's values of a run: set -> (main measure, value by query).

    Raises:
        SourceError: the folder holds none, or a file of them is not whole.
    """
    files = sorted((folder / system).glob("*.tsv"))
    if not files:
        raise SourceError(f"{folder.name} holds no values of a system '{system}'")
    found = {}
    for file in files:
        try:
            header, *lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            pairs = (line.rsplit("\t", 1) for line in lines)
            found[file.stem] = (header.split("\t")[1], {query: float(value) for query, value in pairs})
        except (ValueError, IndexError) as error:
            raise SourceError(f"{system}/{file.name} is not whole: the run did not end; run {system} again") from error
    return found


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write a TREC run: ``query Q0 passage rank score tag``, scores in full, so that no two tie that did not.

    Blanks in ids become underscores.
    """
    lines = []
    for query in sorted(run):
        for rank, passage in enumerate(ranked(run[query]), 1):
            lines.append(f"{_id(query)} Q0 {_id(passage)} {rank} {float(run[query][passage])!r} {tag}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_qrels(path: Path, judged: JudgedSet) -> None:
    """Write TREC qrels: ``query 0 passage grade``."""
    lines = [f"{_id(q)} 0 {_id(p)} {g}" for q in sorted(judged.qrels) for p, g in sorted(judged.qrels[q].items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def commit_id() -> str | None:
    """Return the commit of this code, with ``+changes`` where it is not clean; ``None`` where it is in no checkout."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie within another's checkout
        return _git("rev-parse", "HEAD").strip() + ("+changes" if _git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    where = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout


def _id(text: str) -> str:
    return "_".join(text.split())


def _file(name: str) -> str:
    return name.replace("/", ".")
