"""`python -m eval.bench`: build every engine over one workload, ask it, print ratios to clinrag, draw two plots."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench.engines import ENGINES, Engine
from eval.bench.workload import SELECTIVITIES, Workload, build
from indexer.encoders.catalog import load_encoder
from indexer.times import iso, now_us

K = 10


@dataclass(frozen=True)
class Measured:
    """One engine under one filter. ``filled``: share of the k places that were filled; times are milliseconds."""

    engine: str
    selectivity: float
    p50_ms: float
    p95_ms: float
    recall: float
    filled: float
    build_s: float


def measure(engine: Engine, work: Workload, seconds: float) -> list[Measured]:
    """Return the engine's figures; a filter that it cannot apply is left out."""
    started = time.perf_counter()
    engine.build(work)
    build_s = time.perf_counter() - started
    found = []
    for selectivity in SELECTIVITIES:
        if selectivity < 1 and not engine.filters:
            continue
        exact = work.exact(selectivity, K)
        times, recalls, filled = [], [], []
        engine.search(work.queries[0], K, selectivity)
        end = time.perf_counter() + seconds
        for number, query in enumerate(work.queries):
            at = time.perf_counter()
            ids = engine.search(query, K, selectivity)
            times.append(time.perf_counter() - at)
            want = set(exact[number].tolist())
            recalls.append(len(want & set(ids.tolist())) / max(1, len(want)))
            filled.append(sum(1 for one in ids.tolist() if one >= 0) / max(1, len(want)))
            if at > end and number >= 20:
                break
        p50, p95 = np.percentile(np.array(times) * 1000, [50, 95])
        found.append(
            Measured(
                engine.name,
                selectivity,
                float(p50),
                float(p95),
                float(np.mean(recalls)),
                float(np.mean(filled)),
                build_s,
            )
        )
    return found


def table(rows: list[Measured]) -> str:
    """Return one line an engine and filter, with the ratio of its p50 to clinrag's best of that filter."""
    ours = {
        s: min(r.p50_ms for r in rows if r.selectivity == s and r.engine.startswith("clinrag")) for s in SELECTIVITIES
    }
    lines = [
        f"{'engine':18} {'rows left':>9} {'p50 ms':>9} {'p95 ms':>9} {'recall@10':>9} {'filled':>7} "
        f"{'build s':>8} {'ratio':>8}"
    ]
    for row in sorted(rows, key=lambda one: (-one.selectivity, one.p50_ms)):
        ratio = row.p50_ms / ours[row.selectivity]
        lines.append(
            f"{row.engine:18} {row.selectivity:9.1%} {row.p50_ms:9.3f} {row.p95_ms:9.3f} {row.recall:9.3f} "
            f"{row.filled:7.2f} {row.build_s:8.1f} {ratio:7.1f}x"
        )
    return "\n".join(lines)


def plot(rows: list[Measured], path: Path) -> None:
    """Draw p50 and recall by filter selectivity, one line an engine."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for engine in dict.fromkeys(row.engine for row in rows):
        mine = sorted((row for row in rows if row.engine == engine), key=lambda row: row.selectivity)
        shares = [row.selectivity for row in mine]
        left.plot(shares, [row.p50_ms for row in mine], marker="o", label=engine)
        right.plot(shares, [row.recall for row in mine], marker="o", label=engine)
    for axis, title in ((left, "p50 of one query, ms"), (right, "recall@10 against brute force")):
        axis.set_xscale("log")
        axis.set_xlabel("share of the rows that the filter leaves")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    left.set_yscale("log")
    right.set_ylim(0, 1.03)
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long an engine and filter")
    parser.add_argument("--data", type=Path, help="the folder of the public sets; the bundled notes otherwise")
    parser.add_argument("--encoder", default="hashing")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma separated, of: " + ", ".join(ENGINES))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = parser.parse_args(argv)
    work = build(load_encoder(given.encoder), given.rows, given.queries, given.data)
    print(f"{len(work.vectors)} rows of {work.vectors.shape[1]}: {work.source}")  # noqa: T201
    rows: list[Measured] = []
    absent: dict[str, str] = {}
    for name in given.engines.split(","):
        try:
            rows += measure(ENGINES[name](), work, given.seconds)
        except Exception as error:  # a peer may fail in its own way; the report names it and goes on
            absent[name] = f"{type(error).__name__}: {error}"[:200]
        gc.collect()
    print(table(rows))  # noqa: T201
    for name, reason in absent.items():
        print(f"not measured: {name}: {reason}")  # noqa: T201
    given.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "made_at": iso(now_us()),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "source": work.source,
        "rows": [asdict(row) for row in rows],
        "absent": absent,
    }
    (given.out / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(rows, given.out / "filters.png")
    print(f"files: {given.out}")  # noqa: T201


if __name__ == "__main__":
    main()
