"""The tuning loop: one batch of one kind a step, a teacher's vectors, checkpoints that a killed run goes on from."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rag.training import losses
from rag.training.batches import Batch, Pairs, Questions, Sampler
from rag.training.checkpoint import load_checkpoint, save_checkpoint, write_tensors
from rag.training.memory import within_memory
from rag.training.settings import AlignSettings
from rag.training.student import Student, Teacher
from rag.training.watch import DevWatch, student_encode

_WARMUP = 0.04  # of a stage


@dataclass(slots=True)
class Progress:
    """Where a run stands; kept in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


def align(
    student: Student,
    teacher: Teacher,
    sampler: Sampler,
    settings: AlignSettings,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    watch: DevWatch | None = None,
    checkpoint_minutes: float = 3.0,
) -> Path:
    """Tune ``student`` in place and return the file of its averaged weights; go on from ``folder``'s checkpoint.

    Out of memory, a step is done again in smaller chunks. ``watch`` looks at the averaged weights.

    Raises:
        ArgumentError: the checkpoint is of another architecture, or not even one text fits into memory.
        SourceError: the checkpoint is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tuning = _Tuning(student, teacher, settings)
    progress = tuning.go_on(folder)
    student.train()
    last_saved = time.monotonic()
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        while (share := _share(progress, settings)) < 1.0:
            began = time.monotonic()
            kind = settings.cycle[progress.step % len(settings.cycle)]
            row = tuning.step(kind, sampler.draw(kind, progress.step), share)
            seconds = time.monotonic() - began
            progress.seconds += seconds
            row |= {"seconds": round(seconds, 2), "share": round(share, 4)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            if on_step is not None:
                on_step(row)
            if watch is not None and watch.due():
                with tuning.averaged():
                    watch.look(progress.step, share, student_encode(student), student.save)
            if time.monotonic() - last_saved > checkpoint_minutes * 60:
                tuning.save(folder)
                last_saved = time.monotonic()
    tuning.save(folder)
    write_tensors(folder / "average.safetensors", tuning.average)
    return folder / "average.safetensors"


class _Tuning:
    """What changes from step to step: weights, their average, the optimizer's memory, and where the run stands."""

    def __init__(self, student: Student, teacher: Teacher, settings: AlignSettings) -> None:
        self._student, self._teacher, self._settings = student, teacher, settings
        self._parameters = student.trained()
        self._optimizer = torch.optim.AdamW(_groups(self._parameters, settings), betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._kept = {"weight": self._parameters, "average": self.average}
        self._progress = Progress()

    def go_on(self, folder: Path) -> Progress:
        """Take up the folder's checkpoint, if there is one, and return where that stands."""
        self._progress = Progress(**(load_checkpoint(folder, self._kept, self._optimizer) or {}))
        return self._progress

    def save(self, folder: Path) -> None:
        save_checkpoint(folder, self._kept, self._optimizer, asdict(self._progress))

    def step(self, kind: str, batch: Batch, share: float) -> dict[str, Any]:
        """Tune on one batch and return what the log says of it."""
        rate = _rate(share)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * group["scale"] * rate

        def backward() -> tuple[dict[str, Tensor], int]:
            self._optimizer.zero_grad(set_to_none=True)
            parts, tokens = step_loss(self._student, self._teacher, kind, batch, self._settings)
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
            return parts, tokens

        parts, tokens = within_memory(backward, self._student.shrink)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0))
        if math.isfinite(norm):
            self._optimizer.step()
        with torch.no_grad():
            keep = min(self._settings.average, (self._progress.step + 1) / (self._progress.step + 10))
            for name, value in self._parameters.items():
                self.average[name].lerp_(value, 1.0 - keep)
        self._progress.step += 1
        self._progress.tokens += tokens
        return {
            "step": self._progress.step,
            "kind": kind,
            "loss": {name: round(part.item(), 4) for name, part in parts.items()},
            "norm": round(norm, 3),
            "rate": round(rate, 4),
            "tokens": tokens,
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in place for as long as the block lasts."""
        kept = {name: value.detach().clone() for name, value in self._parameters.items()}
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(self.average[name])
        yield
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(kept[name])


def step_loss(
    student: Student, teacher: Teacher, kind: str, batch: Batch, settings: AlignSettings
) -> tuple[dict[str, Tensor], int]:
    """Return the weighted parts of a batch's loss and the tokens that the student read."""
    length = settings.max_length
    if isinstance(batch, Pairs):
        return _pairs_loss(student, teacher, kind, batch, settings)
    if isinstance(batch, Questions):
        queries, n_queries = _encode(student, batch.questions, student.prompts[0], length)
        passages, n_passages = _encode(student, batch.passages, student.prompts[1], length)
        parts = {"retrieval": settings.contrast * losses.retrieval(queries, passages, batch.same, settings.scale)}
        if batch.english:
            parts["distil"] = 2.0 * (
                losses.distance(queries, teacher.encode(batch.english, student.prompts[0], length))
                + losses.distance(passages, teacher.encode(batch.passages, student.prompts[1], length))
            )
        return parts, n_queries + n_passages
    queries, n_queries = _encode(student, batch.queries, student.prompts[0], length)
    passages, n_passages = _encode(student, batch.passages, student.prompts[1], length)
    old_queries = teacher.encode(batch.taught_queries, student.prompts[0], length)
    old_passages = teacher.encode(batch.taught_passages, student.prompts[1], length)
    parts = {"keep": losses.kept_structure(queries, passages, old_queries, old_passages, settings.keep_scale)}
    if batch.language == "en" or kind == "crossing":
        parts["pin"] = settings.distil_bitext * (
            losses.distance(queries, old_queries) + losses.distance(passages, old_passages)
        )
    return parts, n_queries + n_passages


def _pairs_loss(
    student: Student, teacher: Teacher, kind: str, batch: Pairs, settings: AlignSettings
) -> tuple[dict[str, Tensor], int]:
    length = settings.max_length
    left, n_left = _encode(student, batch.left, batch.prompts[0], length)
    right, n_right = _encode(student, batch.right, batch.prompts[1], length)
    target_left = teacher.encode(batch.english, batch.prompts[0], length)
    target_right = (
        target_left if batch.prompts[0] == batch.prompts[1] else teacher.encode(batch.english, batch.prompts[1], length)
    )
    weight = settings.distil_bitext if kind == "bitext" else settings.distil_terms
    parts = {
        "contrast": settings.contrast * losses.contrast(left, right, batch.same, settings.scale),
        "distil": weight * (losses.distance(left, target_left) + losses.distance(right, target_right)),
    }
    return parts, n_left + n_right


def _encode(student: Student, texts: Sequence[str], prompt: str, max_length: int) -> tuple[Tensor, int]:
    ids = student.token_ids(texts, prompt, max_length)
    rows: Tensor = student(ids)
    return rows, sum(map(len, ids))


def _share(progress: Progress, settings: AlignSettings) -> float:
    if settings.minutes:
        return progress.seconds / (settings.minutes * 60)
    return progress.step / settings.steps


def _rate(share: float) -> float:
    """Return the learning rate's factor: a linear rise, then half a cosine to a fiftieth."""
    if share < _WARMUP:
        return (share + 0.002) / (_WARMUP + 0.002)
    return 0.02 + 0.49 * (1.0 + math.cos(math.pi * (share - _WARMUP) / (1.0 - _WARMUP)))


def _groups(parameters: dict[str, Tensor], settings: AlignSettings) -> list[dict[str, Any]]:
    """Return one group a layer, with its factor of the learning rate."""
    groups: dict[int, list[Tensor]] = {}
    numbers = {name: _layer(name) for name in parameters}
    top = max(numbers.values())
    for name, value in parameters.items():
        groups.setdefault(numbers[name], []).append(value)
    return [
        {"params": values, "scale": settings.layer_decay ** (top - layer), "lr": settings.learning_rate}
        for layer, values in sorted(groups.items())
    ]


def _layer(name: str) -> int:
    parts = name.split(".")
    named = [at for at, part in enumerate(parts) if part in {"layer", "layers"}]  # BERT and its kin, ModernBERT
    return int(parts[named[0] + 1]) + 1 if named else 0


def save_average(start: Path, average: Path, out: Path, share: float = 1.0) -> None:
    """Write ``start`` with the averaged weights; ``share`` below 1 goes only that far from the start's weights.

    A point between the untuned and the tuned weights often keeps more of what the start could than it loses of what
    tuning brought (WiSE-FT); 1 takes the tuned weights as they are.
    """
    student = Student(start)
    tuned = load_file(average)
    with torch.no_grad():
        for name, value in student.body.named_parameters():
            if name in tuned:
                value.lerp_(tuned[name].to(value.dtype), share)
    shutil.copytree(start, out, dirs_exist_ok=True)
    student.body.save_pretrained(out)
