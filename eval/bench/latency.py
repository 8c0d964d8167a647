"""`python -m eval.bench.latency`: how long a running server takes to search, by mode and scope.

Asks every bundled question, in eleven languages, one after the other, and prints what the server says it took
(``took_ms``, the query's encoding included) beside what the caller waited.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from typing import Any

import numpy as np

from eval import bundled

MODES = ("hybrid", "dense", "lexical")


def ask(url: str, key: str | None, body: dict[str, Any]) -> tuple[float, float, int]:
    """Return (milliseconds that the server took, that the caller waited, hits)."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/search", json.dumps(body).encode(), headers)  # noqa: S310 - the user's
    started = time.perf_counter()
    with urllib.request.urlopen(request) as response:  # noqa: S310
        answer = json.load(response)
    return float(answer["took_ms"]), (time.perf_counter() - started) * 1000, len(answer["hits"])


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.latency", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--collection", required=True)
    parser.add_argument("--patient", help="a patient of the collection, for the scoped figures")
    parser.add_argument("--key", help="an API key with the scope read")
    given = parser.parse_args(argv)
    scopes: dict[str, dict[str, str]] = {"everything": {}}
    if given.patient:
        scopes["patient"] = {"patient_id": given.patient}
    questions = [question.question for question in bundled.load_questions()]
    print(f"{'scope':12} {'mode':8} {'p50 ms':>8} {'p95 ms':>8} {'waited p50':>11} {'waited p95':>11}")  # noqa: T201
    for scope_name, scope in scopes.items():
        for mode in MODES:
            body = {"collection": given.collection, "k": 10, "mode": mode, "scope": scope}
            for question in questions[:10]:
                ask(given.url, given.key, {**body, "query": question})
            measured = [ask(given.url, given.key, {**body, "query": question}) for question in questions]
            took, waited = np.array([one[0] for one in measured]), np.array([one[1] for one in measured])
            figures = [*np.percentile(took, [50, 95]), *np.percentile(waited, [50, 95])]
            print(  # noqa: T201
                f"{scope_name:12} {mode:8} {figures[0]:8.1f} {figures[1]:8.1f} {figures[2]:11.1f} {figures[3]:11.1f}"
            )


if __name__ == "__main__":
    main()
