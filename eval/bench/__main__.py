"""`python -m eval.bench`: measure what is asked for, beside peers, in parts that are kept; print tables, draw plots.

Each part is kept as a file under ``--out`` and measured once for the same settings, so that a sitting that was cut off
goes on where it stopped, and a short one measures a few parts (``--parts``, ``--engines``). The tables and plots show
whatever is there.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from eval import bundled
from eval.bench import parts, workload
from eval.bench.corpus import Corpus, load
from eval.bench.engines import ENGINES, OWN_KINDS
from eval.bench.measuring import Figures, Kept
from eval.bench.report import draw, tables
from indexer.encoders.catalog import load_encoder
from indexer.errors import ClinragError

PARTS = ("vectors", "lexical", "growth", "many")


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    given = _arguments(argv)
    kept = Kept(given.out, again=given.again)
    asked = given.parts.split(",") if given.parts else []
    if asked:
        try:
            encoder = load_encoder(given.encoder)
            corpus = load(encoder, given.data, given.out / "corpus", given.chunks)
        except ClinragError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)
        print(corpus.source)  # noqa: T201
        questions = None
        if given.questions:
            questions = encoder.encode_queries([one.question for one in bundled.load_questions()]).astype(np.float32)
        base: Figures = {
            "encoder": encoder.spec.fingerprint[:12],
            "chunks": len(corpus.texts),
            "source": corpus.source,
        }
        for part in asked:
            _measure(part, given, kept, corpus, base, questions)
    print(tables(kept))  # noqa: T201
    draw(kept, given.images or given.out)


def _measure(
    part: str, given: argparse.Namespace, kept: Kept, corpus: Corpus, base: Figures, asked: workload.Floats | None
) -> None:
    """Measure one part, as far as it is not kept already."""
    seconds = given.seconds
    if part == "vectors":
        work = workload.build(corpus, given.rows, given.queries, asked=asked)
        settings = base | {"rows": given.rows, "queries": len(work.queries), "source": work.source}
        if asked is not None:
            settings["asked"] = "the bundled questions"
        for name in given.engines.split(","):
            kept.get(f"vectors-{name}", settings, partial(parts.vectors, name, work, seconds))
    elif part == "lexical":
        questions = [one.question for one in bundled.load_questions()]
        for name in parts.LEXICAL:
            kept.get(f"lexical-{name}", base, partial(parts.lexical, name, corpus, questions, seconds))
    elif part == "growth":
        settings = base | {"to": given.growth}
        kept.get("growth", settings, partial(parts.growth, corpus, given.growth, given.out))
    else:
        work = workload.build(corpus, given.many, min(given.queries, 100), asked=asked)
        settings = base | {"rows": given.many, "source": work.source}
        for kind in given.kinds.split(","):
            kept.get(f"many-{kind}", settings, partial(parts.many_rows, work, kind, given.out, seconds))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.bench", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated, of: " + ", ".join(PARTS))
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma separated, of: " + ", ".join(ENGINES))
    parser.add_argument("--kinds", default="store,codes", help="of the part many: " + ", ".join(OWN_KINDS))
    parser.add_argument("--rows", type=int, default=100_000, help="of the part vectors")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--questions", action="store_true", help="ask the bundled questions, not held-out passages")
    parser.add_argument("--growth", type=int, default=1_000_000, help="chunks that the store grows to")
    parser.add_argument("--many", type=int, default=1_000_000, help="rows of the part many")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long an engine and filter")
    parser.add_argument("--chunks", type=int, help="take so many chunks of the text only")
    parser.add_argument("--data", type=Path, help="the folder of the public sets; the bundled notes otherwise")
    parser.add_argument("--encoder", default="compact")
    parser.add_argument("--again", action="store_true", help="measure also what is kept already")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--images", type=Path, help="where plots go, if not beside the figures")
    given = parser.parse_args(argv)
    unknown = set(filter(None, given.parts.split(","))) - set(PARTS) | set(given.engines.split(",")) - set(ENGINES)
    unknown |= set(given.kinds.split(",")) - set(OWN_KINDS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if given.data is not None and not given.data.is_dir():
        # Else the bundled notes would be measured in the place of what was named.
        parser.error(f"--data: there is no folder {given.data}")
    for name in ("rows", "queries", "growth", "many", "chunks", "seconds"):
        if (value := getattr(given, name)) is not None and value <= 0:
            parser.error(f"--{name}: {value} is not above 0")
    return given


if __name__ == "__main__":
    main()
