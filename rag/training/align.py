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
from rag.training.student import Student, Teacher
from rag.training.watch import DevWatch, student_encode


@dataclass(frozen=True, slots=True)
class AlignSettings:
    """One stage of alignment. ``cycle`` names the kinds of consecutive steps; exactly one of steps, minutes is set.

    ``contrast`` weighs the contrastive parts; at 0 the steps distil alone.
    """

    cycle: tuple[str, ...]
    steps: int = 0
    minutes: float = 0.0
    learning_rate: float = 8e-5
    warmup: float = 0.04
    layer_decay: float = 1.0
    contrast: float = 1.0
    scale: float = 50.0
    keep_scale: float = 40.0
    distil_bitext: float = 10.0
    distil_terms: float = 4.0
    average: float = 0.99
    max_length: int = 112
    checkpoint_minutes: float = 3.0
    seed: int = 0


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
) -> Path:
    """Tune ``student`` in place and return the file of its averaged weights; go on from ``folder``'s checkpoint.

    Out of memory, a step is done again in smaller chunks. ``watch`` looks at the averaged weights.

    Raises:
        ArgumentError: the checkpoint is of another architecture, or not even one text fits into memory.
        SourceError: the checkpoint is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = student.trained()
    optimizer = torch.optim.AdamW(_groups(parameters, settings), betas=(0.9, 0.98), weight_decay=0.01)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    kept = {"weight": parameters, "average": average}
    progress = Progress(**(load_checkpoint(folder, kept, optimizer) or {}))
    student.train()
    last_saved = time.monotonic()
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        while (share := _share(progress, settings)) < 1.0:
            began = time.monotonic()
            rate = _rate(share, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * group["scale"] * rate
            kind = settings.cycle[progress.step % len(settings.cycle)]
            batch = sampler.draw(kind, progress.step)

            def step(kind: str = kind, batch: Batch = batch) -> tuple[dict[str, Tensor], int]:
                optimizer.zero_grad(set_to_none=True)
                parts, tokens = step_loss(student, teacher, kind, batch, settings)
                torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
                return parts, tokens

            parts, tokens = within_memory(step, student.shrink)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
            if math.isfinite(norm):
                optimizer.step()
            with torch.no_grad():
                keep = min(settings.average, (progress.step + 1) / (progress.step + 10))
                for name, value in parameters.items():
                    average[name].lerp_(value, 1.0 - keep)
            progress.step += 1
            progress.tokens += tokens
            progress.seconds += time.monotonic() - began
            row = {
                "step": progress.step,
                "kind": kind,
                "loss": {name: round(part.item(), 4) for name, part in parts.items()},
                "norm": round(norm, 3),
                "rate": round(rate, 4),
                "tokens": tokens,
                "seconds": round(time.monotonic() - began, 2),
                "share": round(share, 4),
            }
            log.write(json.dumps(row) + "\n")
            log.flush()
            if on_step is not None:
                on_step(row)
            if watch is not None and watch.due():
                with _averaged(parameters, average):
                    watch.look(progress.step, share, student_encode(student), student.save)
            if time.monotonic() - last_saved > settings.checkpoint_minutes * 60:
                save_checkpoint(folder, kept, optimizer, asdict(progress))
                last_saved = time.monotonic()
    save_checkpoint(folder, kept, optimizer, asdict(progress))
    write_tensors(folder / "average.safetensors", average)
    return folder / "average.safetensors"


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


@contextmanager
def _averaged(parameters: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Put the averaged weights in place for as long as the block lasts."""
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(average[name])
    yield
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(kept[name])


def _share(progress: Progress, settings: AlignSettings) -> float:
    if settings.minutes:
        return progress.seconds / (settings.minutes * 60)
    return progress.step / settings.steps


def _rate(share: float, warmup: float) -> float:
    """Return the learning rate's factor: a linear rise, then half a cosine to a fiftieth."""
    if share < warmup:
        return (share + 0.002) / (warmup + 0.002)
    return 0.02 + 0.49 * (1.0 + math.cos(math.pi * (share - warmup) / (1.0 - warmup)))


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
