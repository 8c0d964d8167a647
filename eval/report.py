"""A run as a person reads it: a table in the terminal, plots (PNG), and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.experiment import load_results
from indexer.errors import MissingExtraError


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as aligned text: one line a set, one column a system, the main measure with its interval."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    names = list(dict.fromkeys(row["set_name"] for row in rows))
    cells = {(row["set_name"], row["system"]): row for row in rows}
    lines = [["set", "measure", "queries", *systems]]
    for name in names:
        some = next(row for row in rows if row["set_name"] == name)
        line = [name, some["main_metric"], str(some["queries"])]
        for system in systems:
            row = cells.get((name, system))
            line.append("-" if row is None else _cell(row["interval"]))
        lines.append(line)
    return _aligned(lines)


def parity_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the systems' parity as aligned text, one line a task and system."""
    return _aligned([_PARITY_HEAD, *(_parity_cells(row) for row in rows)])


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


_PARITY_HEAD = ("task", "system", "queries", "nDCG@10 same language", "other languages", "parity gap")


def _parity_cells(row: dict[str, Any]) -> tuple[str, ...]:
    gap, mark = row["gap"], "" if row["parallel"] else " (not parallel)"
    return (
        row["task"] + mark,
        row["system"],
        str(row["queries"]),
        f"{row['same']:.3f}",
        f"{row['cross']:.3f}",
        f"{gap['mean']:+.3f} [{gap['low']:+.3f} {gap['high']:+.3f}]",
    )


def _cell(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f} {interval['high']:.3f}]"


def write_report(folder: Path) -> Path:
    """Write ``heatmap.png``, ``bars.png`` and ``report.html`` beside a run's results; return the page's path.

    Raises:
        SourceError: the folder holds no finished run.
        MissingExtraError: the extra ``eval`` (matplotlib) is not installed.
    """
    results = load_results(folder)
    rows = results["rows"]
    pictures = {
        _heat_map(rows, folder / "heatmap.png"): "Main measure by language of query and passage",
        _bars(rows, folder / "bars.png"): "Main measure of every set, as in the table",
    }
    facts = {key: results[key] for key in ("command", "commit", "made_at", "hardware")}
    page = _PAGE.format(
        title=html.escape(f"Retrieval on suite {results['suite']}"),
        facts="".join(f"<dt>{key}</dt><dd><code>{html.escape(str(value))}</code></dd>" for key, value in facts.items()),
        pictures="".join(
            f'<figure><img alt="{told}" src="data:image/png;base64,{_base64(picture)}"></figure>'
            for picture, told in pictures.items()
            if picture is not None
        ),
        table=_html_table(rows),
        parity=_html_parity(results.get("parity", [])),
        data="".join(
            f"<li>{html.escape(name)} sha256 <code>{value[:16]}</code></li>"
            for name, value in results["data_sha256"].items()
        ),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _html_table(rows: Sequence[dict[str, Any]]) -> str:
    systems = list(dict.fromkeys(row["system"] for row in rows))
    cells = {(row["set_name"], row["system"]): row for row in rows}
    head = "".join(f"<th>{html.escape(word)}</th>" for word in ("set", "measure", "queries", "passages", *systems))
    body = []
    for name in dict.fromkeys(row["set_name"] for row in rows):
        some = next(row for row in rows if row["set_name"] == name)
        best = max(cells[name, system]["interval"]["mean"] for system in systems if (name, system) in cells)
        words = [
            f"<td>{html.escape(name)}</td><td>{some['main_metric']}</td><td>{some['queries']}</td><td>{some['corpus']}</td>"
        ]
        for system in systems:
            row = cells.get((name, system))
            text = "-" if row is None else _cell(row["interval"])
            is_best = row is not None and row["interval"]["mean"] == best
            words.append(f"<td>{f'<strong>{text}</strong>' if is_best else text}</td>")
        body.append(f"<tr>{''.join(words)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _html_parity(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(word)}</th>" for word in _PARITY_HEAD)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(word)}</td>' for word in _parity_cells(row))}</tr>" for row in rows
    )
    return f"<h2>Parity of languages</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("a plot", "eval") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _heat_map(rows: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draw query language against passage language: the mean of the main measure over the sets of a pair.

    A pool of several languages has a cell for each of them: the share of its relevant passages that was found. Where
    every set asks in many languages at once there is nothing to draw.
    """
    systems = list(dict.fromkeys(row["system"] for row in rows))
    cells: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        query, passage = row["set_name"].rsplit("/", 1)[1].split("-", 1)
        if len(query) < 6:  # else a set of questions in many languages
            for language, value in _by_passage_language(row, passage).items():
                cells[row["system"], query, language].append(value)
    if not cells:
        path.unlink(missing_ok=True)
        return None
    pyplot = _pyplot()
    left = sorted({query for _, query, _ in cells})
    right = sorted({passage for _, _, passage in cells})
    figure, axes = pyplot.subplots(
        1, len(systems), figsize=(1 + 3.2 * len(systems), 0.8 + 0.42 * len(left)), squeeze=False
    )
    for axis, system in zip(axes[0], systems, strict=True):
        grid = [[_mean(cells.get((system, query, passage), [])) for passage in right] for query in left]
        axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(system)
        axis.set_xticks(range(len(right)), right)
        axis.set_yticks(range(len(left)), left)
        axis.set_xlabel("passages")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                if value == value:  # not NaN: this pair was measured
                    axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes[0][0].set_ylabel("queries")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _by_passage_language(row: dict[str, Any], pool: str) -> dict[str, float]:
    found = {name.removeprefix("found_"): value for name, value in row["values"].items() if name.startswith("found_")}
    return found or {pool: row["interval"]["mean"]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _bars(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw every set as one group of bars, one a system, with 95 % intervals."""
    pyplot = _pyplot()
    systems = list(dict.fromkeys(row["system"] for row in rows))
    names = list(dict.fromkeys(row["set_name"] for row in rows))
    cells = {(row["set_name"], row["system"]): row["interval"] for row in rows}
    figure, axis = pyplot.subplots(figsize=(9, 1 + 0.2 * len(names) * (1 + len(systems))))
    thickness = 0.8 / len(systems)
    for number, system in enumerate(systems):
        found = [(index, cells[name, system]) for index, name in enumerate(names) if (name, system) in cells]
        means = [interval["mean"] for _, interval in found]
        errors = [
            [max(0.0, i["mean"] - i["low"]) for _, i in found],
            [max(0.0, i["high"] - i["mean"]) for _, i in found],
        ]
        axis.barh([i + number * thickness for i, _ in found], means, thickness, xerr=errors, label=system, capsize=2)
    axis.set_yticks([index + 0.4 - thickness / 2 for index in range(len(names))], names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
td,th{{padding:.25rem .7rem;border-bottom:1px solid #d8dee4;text-align:left}}
img{{max-width:100%}}dt{{font-weight:600}}dd{{margin:0 0 .4rem}}figure{{margin:1rem 0}}
</style></head><body><h1>{title}</h1><p>Means with 95 % bootstrap intervals; the best mean of a set is bold.</p>
<dl>{facts}</dl>{pictures}{table}{parity}<h2>Data</h2><ul>{data}</ul></body></html>
"""
