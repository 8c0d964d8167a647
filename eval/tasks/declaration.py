"""A task as its file declares it: name, languages, source, licence, sizes, conversion, main metric.

One TOML file a task stands beside this module. ``[[sets]]`` lists the directions that are measured. What a task needs
of the data folder is named by paths relative to it; rows are counted when they are read, and a count that is not the
declared one is an error: a figure is only comparable on the same data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import ArgumentError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SetDeclaration:
    """One direction of a task: query languages and corpus languages."""

    queries: tuple[str, ...]
    corpus: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as ``zh-en``; a mixed pool is ``zh-all``."""
        return f"{'+'.join(self.queries)}-{'+'.join(self.corpus) if len(self.corpus) < 4 else 'all'}"


@dataclass(frozen=True, slots=True)
class Task:
    """A declared task. ``kind`` names the reader in `eval.tasks.readers`; ``options`` are that reader's own."""

    name: str
    kind: str
    source: str
    licence: str
    use: str
    main_metric: str
    paths: tuple[str, ...]
    sizes: Mapping[str, int]
    options: Mapping[str, str | int | bool]
    sets: tuple[SetDeclaration, ...]
    suites: tuple[str, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """Every language that some set queries or holds, sorted."""
        return tuple(sorted({language for one in self.sets for language in (*one.queries, *one.corpus)}))


def load_tasks(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite, or the one task of that name, by name.

    Raises:
        ArgumentError: no suite and no task of that name.
    """
    tasks = [_parse(path) for path in sorted(FOLDER.glob("*.toml"))]
    chosen = tuple(task for task in tasks if suite == task.name or suite in task.suites)
    if not chosen:
        suites = sorted({name for task in tasks for name in task.suites})
        raise ArgumentError("suite", f"'{suite}' is none of {', '.join(suites)}, and no task's name")
    return chosen


def _parse(path: Path) -> Task:
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    return Task(
        name=path.stem,
        kind=raw["kind"],
        source=raw["source"],
        licence=raw["licence"],
        use=raw["use"],
        main_metric=raw["main_metric"],
        paths=tuple(raw["paths"]),
        sizes=raw["sizes"],
        options=raw.get("options", {}),
        sets=tuple(SetDeclaration(tuple(one["queries"]), tuple(one["corpus"])) for one in raw["sets"]),
        suites=tuple(raw["suites"]),
    )
