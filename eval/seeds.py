"""Groups of systems that differ by their seed alone: mean and spread a set, and whether a group moved from another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.experiment import check_one_data, read_values
from eval.statistics import holm, welch
from indexer.errors import ArgumentError, SourceError


@dataclass(frozen=True, slots=True)
class Spread:
    """A group on one set: the seeds' mean and standard deviation (n - 1; 0 of one seed), and its move from the first.

    ``t`` and ``p`` are Welch's against the first group, ``p`` after Holm's correction over the sets; ``None`` for the
    first group itself, and where neither side has two seeds.
    """

    group: str
    seeds: int
    mean: float
    deviation: float
    t: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One set with every group on it."""

    set_name: str
    main_metric: str
    groups: tuple[Spread, ...]


def compare_seeds(folder: Path, groups: Mapping[str, Sequence[str]]) -> list[SeedRow]:
    """Return every set that all systems ran, each group against the first as in the seeds' papers.

    A group of one system counts as one without chance (an untuned model): its value is taken as exact.

    Raises:
        ArgumentError: a group is empty, or the groups share no set.
        SourceError: the folder holds no values of a system, or of other data or other queries than the others'.
    """
    for name, systems in groups.items():
        if not systems:
            raise ArgumentError("group", f"'{name}' names no system")
    values = {system: read_values(folder, system) for systems in groups.values() for system in systems}
    sets = sorted(set.intersection(*(set(found) for found in values.values()))) if values else []
    if not sets:
        raise ArgumentError("group", "share no set: run all their systems on one suite first")
    check_one_data([folder / system for system in values], sets)
    for name in sets:
        if len({frozenset(found[name][1]) for found in values.values()}) > 1:
            raise SourceError(f"{name}: not all of these systems were asked the same queries; run them again together")
    means = {
        (name, group): [_mean(values[system][name][1]) for system in systems]
        for name in sets
        for group, systems in groups.items()
    }
    first, *others = groups
    tests: dict[str, dict[str, tuple[float, float]]] = {}
    for group in others:
        if max(len(groups[first]), len(groups[group])) < 2:
            continue
        moves = {name: _move(means[name, group], means[name, first]) for name in sets}
        adjusted = holm({name: p for name, (_, p) in moves.items()})
        tests[group] = {name: (moves[name][0], adjusted[name]) for name in sets}
    rows = []
    for name in sets:
        spreads = []
        for group in groups:
            found = means[name, group]
            t, p = tests.get(group, {}).get(name, (None, None))
            deviation = statistics.stdev(found) if len(found) > 1 else 0.0
            spreads.append(Spread(group, len(found), statistics.fmean(found), deviation, t, p))
        metric = values[groups[first][0]][name][0]
        rows.append(SeedRow(name, metric, tuple(spreads)))
    return rows


def seeds_table(rows: Sequence[SeedRow]) -> str:
    """Return the rows as a Markdown table: ``mean ± deviation``, and p where a test was made."""
    heads = [f"{one.group} ({one.seeds})" for one in rows[0].groups]
    lines = ["| " + " | ".join(["set", "measure", *heads]) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in rows:
        cells = [row.set_name, row.main_metric]
        for one in row.groups:
            spread = f" ± {one.deviation:.3f}" if one.seeds > 1 else ""
            tested = "" if one.p is None else f" (p {one.p:.2g})"
            cells.append(f"{one.mean:.3f}{spread}{tested}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Mapping[str, float]) -> float:
    return statistics.fmean(values.values())


def _move(ours: Sequence[float], first: Sequence[float]) -> tuple[float, float]:
    return welch(*(side if len(side) > 1 else [side[0], side[0]] for side in (ours, first)))
