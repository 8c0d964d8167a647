"""What a run leaves for people: the model card and one picture of loss and scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rag.training.recipe import Recipe

Scores = Mapping[str, Mapping[str, float]]


def write_card(recipe: Recipe, out_dir: Path, scores: Scores, model: Path) -> Path:
    """Write ``README.md`` beside and into the model: data with licences and counts, settings, scores, hashes."""
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if recipe.licence:
        lines.append(f"license: {recipe.licence.lower()}")
    if recipe.languages:
        lines.append("language: [" + ", ".join(recipe.languages) + "]")
    lines += ["---", "", f"# clinrag-{recipe.name}", "", recipe.about or "A cross-lingual clinical retriever.", ""]
    lines += [f"Started from `{recipe.start}`; made by `clinrag train recipe.toml --out DIR --data DATA`.", ""]
    lines += _data(out_dir / "pairs" / "manifest.json", recipe)
    lines += ["## Recipe", "", "```toml", recipe.text.strip(), "```", ""]
    if scores:
        lines += ["## Scores", ""]
        lines += _table(scores)
    lines += _best(out_dir)
    lines += ["## Files", ""]
    for path in sorted(model.rglob("*")):
        if path.is_file() and path.name != "README.md":
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"- `{path.relative_to(model)}` {path.stat().st_size} bytes, sha256 `{digest}`")
    text = "\n".join(lines) + "\n"
    (model / "README.md").write_text(text, encoding="utf-8")
    card = out_dir / "README.md"
    card.write_text(text, encoding="utf-8")
    return card


def write_curve(out_dir: Path, scores: Scores) -> Path | None:
    """Draw every stage's loss over its steps, its dev scores, and the scores after each stage; return ``curve.png``.

    Without matplotlib nothing is drawn: a run does not fail at its end for a picture.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    looks = {log.parent.name: found for log in sorted(out_dir.glob("*/log.jsonl")) if (found := _looks(log))}
    figure = Figure(figsize=(15 if looks else 10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 3 if looks else 2))
    losses, points = panels[0], panels[-1]
    for log in sorted(out_dir.glob("*/log.jsonl")):
        for name, (steps, values) in _losses(log).items():
            losses.plot(steps, values, linewidth=0.8, label=f"{log.parent.name} {name}")
    losses.set_xlabel("step")
    losses.set_ylabel("loss")
    losses.set_yscale("symlog", linthresh=0.1)
    if losses.lines:
        losses.legend(fontsize=6)
    for stage, (steps, means) in looks.items():
        panels[1].plot(steps, means, marker=".", label=stage)
        panels[1].set_xlabel("step")
        panels[1].set_ylabel("mean dev score")
        panels[1].legend(fontsize=6)
    rows = sorted({row for found in scores.values() for row in found})
    for row in rows:
        points.plot(list(scores), [scores[stage].get(row, float("nan")) for stage in scores], marker=".", label=row)
    points.set_ylabel("score")
    points.tick_params(axis="x", rotation=30)
    if 0 < len(rows) <= 24:
        points.legend(fontsize=5)
    path = out_dir / "curve.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _looks(log: Path) -> tuple[list[int], list[float]] | None:
    """Return the steps at which a stage was scored while it trained, and the mean score of each."""
    found = [(int(row["step"]), float(row["mean"])) for row in _log(log) if "mean" in row]
    return ([step for step, _ in found], [mean for _, mean in found]) if found else None


def _log(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a killed run left half written
            yield row


def _losses(log: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return each kind's summed loss, as a running mean over ten of its steps."""
    raw: dict[str, list[tuple[int, float]]] = {}
    for row in _log(log):
        if "loss" in row:
            raw.setdefault(str(row.get("kind", "loss")), []).append((int(row["step"]), sum(row["loss"].values())))
    found = {}
    for kind, points in raw.items():
        values = [value for _, value in points]
        means = [sum(values[max(0, at - 9) : at + 1]) / min(10, at + 1) for at in range(len(values))]
        found[kind] = ([step for step, _ in points], means)
    return found


def _data(manifest: Path, recipe: Recipe) -> list[str]:
    if not manifest.is_file():
        return []
    from rag.training.pairs import SOURCES

    own = next(
        (s.settings.licence for s in recipe.stages if s.kind == "pairs" and s.settings.licence), "the user's own"
    )
    counts: dict[str, dict[str, int]] = json.loads(manifest.read_text(encoding="utf-8"))
    lines = ["## Data", "", "| source | licence | rows |", "|---|---|---|"]
    total: dict[str, list[str]] = {}
    for kind, found in counts.items():
        for source, count in found.items():
            total.setdefault(source, []).append(f"{count} {kind}")
    lines += [
        f"| {source} | {SOURCES.get(source, own)} | {', '.join(rows)} |" for source, rows in sorted(total.items())
    ]
    for stage in recipe.stages:
        for key in ("notes", "labels", "parallel", "pairs"):
            files = getattr(stage.settings, key, ()) if stage.kind == "pairs" else ()
            lines += [f"| {key}: `{name}` | {own} | |" for name in files]
    return [*lines, ""]


def _best(out_dir: Path) -> list[str]:
    lines = []
    for path in sorted(out_dir.glob("*/best.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        where = path.parent.name
        lines.append(f"- {where}: step {row['step']}, mean dev score {row['mean']:.4f}; its weights are `{where}/best`")
    return ["## Best while training", "", *lines, ""] if lines else []


def _table(scores: Scores) -> list[str]:
    stages = list(scores)
    rows = list(dict.fromkeys(row for found in scores.values() for row in found))
    lines = ["| row | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
    for row in rows:
        figures = [f"{scores[stage][row]:.3f}" if row in scores[stage] else "" for stage in stages]
        lines.append(f"| {row} | " + " | ".join(figures) + " |")
    return [*lines, ""]
