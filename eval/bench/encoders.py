"""`python -m eval.bench.encoders`: how fast encoders load and embed, in turns in one run, on one thread.

Asks the bundled questions and embeds passages of the bundled notes. Each round measures every encoder once, so that
what else the machine does falls on all of them; the middle of the rounds is printed. A folder is loaded by
sentence-transformers in the fastest type of the machine, as `clinrag index --encoder FOLDER` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from eval import bundled
from eval.bench.measuring import Clock, timed
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.text.chunks import split_chunks

LONGEST = 256


def passages(cutter: Encoder, n: int) -> list[str]:
    """Return the first passages of the bundled notes, cut by one encoder's tokens so that all embed the same."""
    found: list[str] = []
    for line in bundled.notes_path().read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        text, language = note["text"], note.get("language")
        chunks = split_chunks(text, language=language, token_spans=cutter.token_spans, max_tokens=LONGEST)
        found += [text[chunk.start : chunk.end] for chunk in chunks]
    return found[:n]


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.encoders", description=__doc__)
    parser.add_argument("encoders", nargs="*", default=["compact", "hashing"], help="names and folders")
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    questions = [one.question for one in bundled.load_questions()]
    loaded: dict[str, tuple[Encoder, float]] = {}
    for name in given.encoders:
        started = time.perf_counter()
        loaded[name] = load_encoder(name), time.perf_counter() - started
    texts = passages(next(iter(loaded.values()))[0], given.passages)
    rates: dict[str, list[float]] = {name: [] for name in loaded}
    waits: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(given.rounds):
        for name, (encoder, _) in loaded.items():

            def ask(n: int, encoder: Encoder = encoder) -> object:
                return encoder.encode_queries([questions[n]])

            figures, _ = timed(ask, len(questions), 10.0)
            waits[name].append(figures["p50_ms"])
            clock = Clock.started()
            encoder.encode_passages(texts)
            rates[name].append(len(texts) / clock.figures()["cpu_s"])
    first = statistics.median(next(iter(rates.values())))
    print(f"{'encoder':24} {'loaded s':>9} {'query ms':>9} {'passages / cpu s':>17} {'to the first':>13}")  # noqa: T201
    for name, (_, seconds) in loaded.items():
        rate = statistics.median(rates[name])
        wait = statistics.median(waits[name])
        print(f"{name[-24:]:24} {seconds:9.2f} {wait:9.2f} {rate:17,.0f} {rate / first:13.2f}")  # noqa: T201


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
