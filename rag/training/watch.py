"""Scores while a stage trains: every so many minutes, told, logged, drawn, and the best weights kept.

A stage's folder holds ``log.jsonl`` (rows with ``score`` beside those with ``loss``), ``best.json`` and ``best``, a
model directory.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from indexer.encoders.catalog import is_packed
from rag.training.devscore import Encode, mean_score
from rag.training.student import Student, both_prompts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Score = Callable[[Encode], Mapping[str, float]]
Tell = Callable[[float, Mapping[str, Any]], None]
_TEXTS = 128


class DevWatch:
    """Looks at a model in training when it is time; goes on with what an interrupted run found best."""

    def __init__(
        self, score: Score, minutes: float, folder: Path, tell: Tell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take what scores an encoder and where the stage's files lie; the first look is after ``minutes``."""
        self._score, self._seconds, self._folder, self._tell, self._clock = score, minutes * 60, folder, tell, clock
        self._last = clock()
        best = best_look(folder)
        self._best = float("-inf") if best is None else float(best["mean"])

    def due(self) -> bool:
        """Whether it is time for a look."""
        return self._seconds > 0 and self._clock() - self._last >= self._seconds

    def look(self, step: int, share: float, encode: Encode, save: Callable[[Path], object]) -> None:
        """Score the model as it is; ``save`` writes it to a folder where it is the best so far."""
        scores = {name: round(value, 4) for name, value in self._score(encode).items()}
        mean = mean_score(scores)
        row = {"step": step, "kind": "dev", "score": scores, "mean": round(mean, 4)}
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if mean > self._best:
            self._best = mean
            half = self._folder / "best.half"
            shutil.rmtree(half, ignore_errors=True)
            save(half)
            (self._folder / "best.json.new").write_text(json.dumps(row), encoding="utf-8")
            half.rename(self._folder / "best.new")
            best_look(self._folder)
        self._tell(share, {"step": step, "dev": round(mean, 4), **scores})
        self._last = self._clock()  # a look's own time is not counted


def best_look(folder: Path) -> dict[str, Any] | None:
    """Return the row of a stage's best look, whose weights lie in ``best``; ``None`` where there is none.

    Weights that were whole when the run was cut off (``best.new``) are put in their place first.
    """
    new, best, record = folder / "best.new", folder / "best", folder / "best.json"
    if new.is_dir():
        if (told := folder / "best.json.new").is_file():
            told.replace(record)
        shutil.rmtree(best, ignore_errors=True)
        new.rename(best)
    if not (record.is_file() and best.is_dir()):
        return None
    row: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return row


def student_encode(student: Student) -> Encode:
    """Return the model in training as an encoder of texts; it is left in the mode it was in."""

    def encode(texts: Any, side: str) -> Any:
        training = student.training
        student.eval()
        prompt = student.prompts[side == "passage"]
        with torch.inference_mode():
            parts = [student.encode(texts[at : at + _TEXTS], prompt) for at in range(0, len(texts), _TEXTS)]
        student.train(training)
        return torch.cat(parts).float().cpu().numpy()

    return encode


def model_encode(model: SentenceTransformer) -> Encode:
    """Return a sentence-transformers model as an encoder of texts; it is left in the mode it was in."""
    prompts = both_prompts(model.prompts or {})

    def encode(texts: Any, side: str) -> Any:
        training = model.training
        rows = model.encode(
            list(texts),
            prompt=prompts[side == "passage"],
            batch_size=_TEXTS,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        model.train(training)
        return np.asarray(rows, dtype=np.float32)

    return encode


def folder_score(score: Score) -> Callable[[Path], Mapping[str, float]]:
    """Return what scores a model directory by loading it."""

    def scored(folder: Path) -> Mapping[str, float]:
        from sentence_transformers import SentenceTransformer

        if is_packed(folder):
            from indexer.encoders.packed_module import sentence_transformer

            return score(model_encode(sentence_transformer(folder)))
        return score(model_encode(SentenceTransformer(str(folder), local_files_only=True)))

    return scored
