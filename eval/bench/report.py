"""Tables and plots of what was measured: whatever parts are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.bench.measuring import Figures, Kept

_FEW_PLACES = 0.995


def tables(kept: Kept) -> str:
    """Return one table a part. ``cpu`` is processor time, of all threads; ratios are of that, to clinrag's best."""
    found = {name: one for name, one in kept.all("vectors-").items() if "failed" not in one}
    lines: list[str] = []
    if found:
        lines += ["", *_settings(found), *_by_filter(found), "", *_by_effort(found), "", *_taken_up(found)]
    words = {name: one for name, one in kept.all("lexical-").items() if "failed" not in one}
    if words:
        lines += [
            "",
            *_settings(words),
            f"{'words':16} {'p50 ms':>9} {'cpu ms':>9} {'build cpu s':>11} {'memory MB':>9}",
        ]
        lines += [
            f"{name:16} {one['p50_ms']:9.3f} {one['cpu_p50_ms']:9.3f} {one['build']['cpu_s']:11.1f} "
            f"{one['memory_mb']:9.0f}"
            for name, one in words.items()
        ]
    for one in kept.all("growth").values():
        lines += ["", *_settings({"growth": one}), *_steps(one)]
    many = {name: one for name, one in kept.all("many-").items() if "failed" not in one}
    if many:
        lines += ["", *_settings(many), *_many(many)]
    together = {one["engine"]: one["together"] for one in found.values() if "together" in one}
    lines += [
        f"{name:16} two threads: {one['a_second']:,.0f} a second at {one['recall']:.3f}"
        for name, one in together.items()
    ]
    for part in ("vectors-", "lexical-", "growth", "many-"):
        lines += [f"not measured: {part}{n}: {one['failed']}" for n, one in kept.all(part).items() if "failed" in one]
    return "\n".join(lines)


def _settings(found: dict[str, Figures]) -> list[str]:
    first = next(iter(found.values()))
    loads = [one["load"] for one in found.values()]
    told = ", ".join(f"{name} {value}" for name, value in first["settings"].items())
    return [f"{told}; {first['machine']}; load {min(loads):.1f} to {max(loads):.1f}"]


def _by_filter(found: dict[str, Figures]) -> list[str]:
    rows = [one | {"engine": every["engine"]} for every in found.values() for one in every["filters"]]
    ours: dict[float, float] = {}
    for row in rows:
        if row["engine"].startswith("clinrag") and row["recall"] >= _FEW_PLACES:
            at = row["selectivity"]
            ours[at] = min(ours.get(at, row["cpu_p50_ms"]), row["cpu_p50_ms"])
    head = f"{'rows left':>9} {'engine':16} {'p50 ms':>9} {'cpu ms':>9} {'recall@10':>9} {'filled':>7} {'ratio':>8}"
    return [head] + [
        f"{row['selectivity']:9.1%} {row['engine']:16} {row['p50_ms']:9.3f} {row['cpu_p50_ms']:9.3f} "
        f"{row['recall']:9.3f} {row['filled']:7.2f} "
        + (f"{row['cpu_p50_ms'] / ours[row['selectivity']]:7.1f}x" if row["selectivity"] in ours else "")
        for row in sorted(rows, key=lambda one: (-one["selectivity"], one["cpu_p50_ms"]))
    ]


def _by_effort(found: dict[str, Figures]) -> list[str]:
    head = f"{'unfiltered':16} {'effort':>6} {'recall@10':>9} {'cpu ms':>9} {'a cpu second':>12}"
    return [head] + [
        f"{every['engine']:16} {one['effort'] or '':>6} {one['recall']:9.3f} {one['cpu_p50_ms']:9.3f} "
        f"{1000 / one['cpu_p50_ms']:12,.0f}"
        for every in found.values()
        for one in every["efforts"]
    ]


def _taken_up(found: dict[str, Figures]) -> list[str]:
    head = f"{'engine':16} {'build s':>8} {'build cpu s':>11} {'memory MB':>9} {'disk MB':>8}"
    return [head] + [
        f"{one['engine']:16} {one['build']['wall_s']:8.1f} {one['build']['cpu_s']:11.1f} {one['memory_mb']:9.0f} "
        f"{'' if one['disk_mb'] is None else round(one['disk_mb']):>8}"
        for one in found.values()
    ]


def _steps(one: Figures) -> list[str]:
    lines = [f"{'chunks':>9} {'a second':>9} {'a cpu second':>12} {'memory MB':>9} {'disk MB':>8}"]
    lines += [
        f"{step['chunks']:9,} {step['chunks_per_s']:9,.0f} {step['chunks_per_cpu_s']:12,.0f} {step['memory_mb']:9.0f} "
        f"{step['disk_mb']:8.0f}"
        for step in one["steps"]
    ]
    publish, opened = one["publish"], one["open"]
    lines.append(f"derived files made in {publish['cpu_s']:.1f} cpu s, memory {publish['memory_mb']:.0f} MB")
    lines.append(
        f"opened until first hits {opened['cpu_s']:.2f} cpu s; dense search {one['dense']['cpu_p50_ms']:.2f} cpu ms"
    )
    return lines


def _many(found: dict[str, Figures]) -> list[str]:
    head = (
        f"{'index':8} {'recall@10':>9} {'p50 ms':>8} {'cpu ms':>8} {'open cpu s':>10} {'memory MB':>9} "
        f"{'build cpu s':>11} {'disk MB':>8}"
    )
    lines = [head] + [
        f"{name:8} {one['recall']:9.3f} {one['p50_ms']:8.2f} {one['cpu_p50_ms']:8.2f} {one['open']['cpu_s']:10.2f} "
        f"{one['memory_mb']:9.0f} {one['build']['cpu_s']:11.1f} {one['disk_mb']:8.0f}"
        for name, one in found.items()
    ]
    tuned = [
        f"{name:5}{at['effort']:4} {at['recall']:9.3f} {at['p50_ms']:8.2f} {at['cpu_p50_ms']:8.2f}"
        for name, one in found.items()
        for at in one.get("efforts", ())
    ]
    return lines + tuned


def draw(kept: Kept, folder: Path) -> None:
    """Write the plots of what is there: ``bench-vectors.png`` and ``bench-growth.png``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    found = {name: one for name, one in kept.all("vectors-").items() if "failed" not in one}
    if found:
        figure, axes = pyplot.subplots(2, 3, figsize=(15, 8.5))
        _draw_vectors(list(found.values()), axes.ravel())
        figure.tight_layout()
        figure.savefig(folder / "bench-vectors.png", dpi=70)
        pyplot.close(figure)
    for one in kept.all("growth").values():
        if "failed" not in one:
            figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
            _draw_growth(one, axes)
            figure.tight_layout()
            figure.savefig(folder / "bench-growth.png", dpi=70)
            pyplot.close(figure)


def _draw_vectors(found: Sequence[Figures], axes: Any) -> None:
    """Draw recall against speed, speed and recall by filter, then build, memory and disk as bars."""
    rate, filters, recall, build, memory, disk = axes
    for number, one in enumerate(found):
        style = {"marker": "o", "label": one["engine"], "color": f"C{number % 10}", "markersize": 4}
        rate.plot([at["recall"] for at in one["efforts"]], [1000 / at["cpu_p50_ms"] for at in one["efforts"]], **style)
        shares = [at["selectivity"] for at in one["filters"]]
        filters.plot(shares, [at["cpu_p50_ms"] for at in one["filters"]], **style)
        recall.plot(shares, [at["recall"] for at in one["filters"]], **style)
    rate.set(title="searches a cpu second by recall@10", xlabel="recall@10", yscale="log")
    filters.set(title="cpu ms of one search", xlabel="share of rows that the filter leaves", xscale="log", yscale="log")
    recall.set(title="recall@10 under the filter", xlabel="share of rows that the filter leaves", xscale="log")
    rate.legend(fontsize=7)
    names = [one["engine"] for one in found]
    for axis, title, values in (
        (build, "build, cpu s", [one["build"]["cpu_s"] for one in found]),
        (memory, "memory taken up, MB", [one["memory_mb"] for one in found]),
        (disk, "disk, MB (where it keeps files)", [one["disk_mb"] or 0 for one in found]),
    ):
        axis.barh(names, values)
        axis.invert_yaxis()
        axis.set_title(title)
    for axis in axes:
        axis.grid(alpha=0.3)


def _draw_growth(one: Figures, axes: Any) -> None:
    """Draw speed, memory and disk by size."""
    sizes = [step["chunks"] for step in one["steps"]]
    for axis, title, key in (
        (axes[0], "chunks stored a cpu second", "chunks_per_cpu_s"),
        (axes[1], "memory while storing, MB", "memory_mb"),
        (axes[2], "disk, MB", "disk_mb"),
    ):
        axis.plot(sizes, [step[key] for step in one["steps"]], marker="o")
        axis.set(title=title, xlabel="chunks", xscale="log", ylim=(0, None))
        axis.grid(alpha=0.3)
