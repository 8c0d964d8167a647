"""Logs: one JSON object a line on stderr, with ids, counts and times; never text of a note, a query or an answer."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType

ACCESS = logging.getLogger("clinrag.access")
SERVER = logging.getLogger("clinrag.server")

_OURS = ("clinrag", "indexer", "uvicorn")
"""Whose messages hold names, numbers and places alone; what a damaged file is called is the store's to say."""


class JsonLines(logging.Formatter):
    """A record as one JSON object: ``time``, ``level``, ``event`` and the fields given as ``extra={"fields": ...}``.

    Of an exception the type and the places are kept and the message is not: a foreign message can hold text of a note.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name.startswith(_OURS):
            line["event"] = record.getMessage()
            line.update(getattr(record, "fields", {}))
        else:
            # What another library says is not known to be free of text: only that it spoke, and where.
            line.update(event="library", logger=record.name, place=f"{record.filename}:{record.lineno}")
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = places(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False)


def places(trace: TracebackType | None) -> list[str]:
    """Return where an exception passed, innermost last, without source lines or values."""
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def set_up(level: str) -> None:
    """Send the log of this process to stderr, as JSON lines; threads that fail are logged the same way."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("clinrag").setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # it would log paths and query strings: ours does not
    threading.excepthook = _thread_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread is not None else "unknown"
    error = (failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    SERVER.error("thread failed", exc_info=error, extra={"fields": {"thread": name}})
