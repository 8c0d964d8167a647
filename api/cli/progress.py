"""Progress of a long command, on stderr: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Task

    from indexer.build import Progress as IndexState

_LINE_EVERY_S = 5.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on which has no parts to count."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield


class ProgressLine:
    """Items, rate and time left. ``total`` may be learnt late or never; without one there is a rate alone."""

    def __init__(self, label: str, unit: str, total: int | None = None, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._label, self._unit, self._quiet = label, unit, quiet
        self._console = console
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        self.total = total
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                _Rate(unit),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, note="")

    @property
    def on_terminal(self) -> bool:
        """Whether a bar is drawn."""
        return self._bar is not None

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, note: str = "") -> None:
        """Say how far the work is; a plain line comes every few seconds at most."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=note)
            return
        now = time.monotonic()
        if self._quiet or now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        rate = done / max(now - self._started, 1e-9)
        of_total = f" of {self.total:,}" if self.total else ""
        left = f", about {(self.total - done) / rate:,.0f} s left" if self.total and rate and self.total >= done else ""
        line = f"{self._label}: {done:,}{of_total} {self._unit}, {rate:,.0f} {self._unit}/s{left}"
        self._console.print(Text(f"{line}; {note}" if note else line), soft_wrap=True)


class IndexProgress:
    """The progress of `clinrag index`.

    Inputs are streams, so their number of notes is not known before the end. For the time left on a terminal a second
    reader counts them beside the work, which is much faster than embedding them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        column_map: Mapping[str, str] | None,
        input_format: str | None,
        without: Sequence[Path] = (),
        *,
        quiet: bool,
    ) -> None:
        self._line = ProgressLine("indexing", "notes", quiet=quiet)
        self._reading = (paths, column_map, input_format, without)
        self._over = threading.Event()

    def __enter__(self) -> IndexProgress:
        self._line.__enter__()
        paths = self._reading[0]
        if self._line.on_terminal and all(path.is_file() or path.is_dir() for path in paths):  # a pipe is read once
            threading.Thread(target=self._count, name="clinrag-count", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._line.__exit__(kind, error, trace)

    def update(self, state: IndexState) -> None:
        """Show the state after a batch."""
        if state.total is not None:
            self._line.total = state.total
        if self._line.on_terminal:
            note = f"{state.rejected:,} rejected" if state.rejected else ""
        else:
            note = f"stored {state.stored:,}, skipped {state.skipped:,}, rejected {state.rejected:,}"
        self._line.show(state.done, note)

    def _count(self) -> None:
        from indexer.errors import ClinragError
        from indexer.readers import read_sources

        paths, column_map, input_format, without = self._reading
        n_items = 0
        try:
            for _ in read_sources(paths, column_map=column_map, input_format=input_format, without=without):
                n_items += 1
                if self._over.is_set():
                    return
        except ClinragError:
            return  # the reader that counts is the other one: it raises
        self._line.total = n_items
