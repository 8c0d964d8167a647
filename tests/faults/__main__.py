"""``python -m tests.faults --kills 1000``: the fault harness by hand; prints one JSON object, exits 1 on any fault."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.faults import shim


def main() -> int:
    """Return 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill N processes and check what they left")
    parser.add_argument("--encrypted", action="store_true", help="with --kills: over encrypted collections")
    parser.add_argument("--damages", type=int, default=0, metavar="N", help="damage N copies of a collection's files")
    parser.add_argument("--writes", action="store_true", help="let each write, sync, rename and truncation fail")
    parser.add_argument("--deletions", action="store_true", help="kill a deletion with its keys at each of its calls")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --writes: only every n-th call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broken", help="break the commit path on purpose; the harness must notice")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clinrag-faults-", dir=arguments.folder) as folder:
        if shim.VARIABLE not in os.environ and shim.compiler():
            # The shim has to be there from a process's first moment, so this starts over with it.
            command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
            return os.spawnve(os.P_WAIT, sys.executable, command, shim.environment(Path(folder)))
        return _run(arguments, Path(folder))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    from tests.faults import crash, damage, deletion, writes

    known = (*crash.BROKEN, *deletion.BROKEN)
    if arguments.broken not in (None, *known):
        raise SystemExit(f"--broken must be one of {', '.join(known)}")
    answer: dict[str, object] = {}
    faults = 0
    if arguments.kills:
        report = crash.run(folder, arguments.kills, arguments.seed, arguments.broken, arguments.encrypted)
        answer["crash"] = report.as_json()
        faults += sum(len(found) for found in report.faults.values())
    if arguments.damages:
        damaged = damage.run(folder, arguments.damages, arguments.seed)
        answer["damage"] = damaged.as_json()
        faults += len(damaged.served) + len(damaged.unclear) + len(damaged.unnamed)
    if arguments.deletions:
        if shim.loaded() is None:
            answer["deletions"] = "skipped: there is no C compiler"
        else:
            deleted = deletion.run(folder, arguments.broken)
            answer["deletions"] = deleted.as_json()
            faults += len(deleted.problems)
    if arguments.writes:
        if shim.loaded() is None:
            answer["writes"] = "skipped: there is no C compiler"
        else:
            failed = writes.run(folder, arguments.every)
            answer["writes"] = failed.as_json()
            faults += len(failed.problems)
    print(json.dumps(answer, indent=1))  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
