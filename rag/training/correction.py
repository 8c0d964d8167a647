"""Language mean correction: what a language adds to every passage vector is taken off again (SHIFT).

Of parallel pairs, the mean of ``other - English`` is the language's offset. It is written beside the model as
``offsets.safetensors`` (one ``(D,)`` row a language); `shift` applies it to passage vectors. Whether it helps is
measured; the shipped retriever goes without unless it wins.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rag.training.recipe import CorrectSettings
from rag.training.student import Student

_FILE = "offsets.safetensors"
Floats = NDArray[np.float32]


def correct(
    model: Path, pairs: Path, out: Path, settings: CorrectSettings, tell: Callable[[float, Mapping[str, Any]], None]
) -> Path:
    """Write the model with its languages' offsets, measured on the first pairs of each language."""
    student = Student(model).eval()
    texts: dict[str, list[tuple[str, str]]] = {}
    with (pairs / "bitext.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)["texts"]
            for language, text in row.items():
                if language != "en" and len(texts.setdefault(language, [])) < settings.pairs:
                    texts[language].append((text, row["en"]))
    found = {}
    for number, (language, rows) in enumerate(sorted(texts.items()), 1):
        with torch.inference_mode():
            other = student.encode([text for text, _ in rows], "passage: ")
            english = student.encode([text for _, text in rows], "passage: ")
        found[language] = (other - english).mean(0).contiguous()
        tell(number / len(texts), {"language": language, "length": round(float(found[language].norm()), 4)})
    shutil.copytree(model, out, dirs_exist_ok=True)
    save_file(found, out / _FILE)
    return out


def read_offsets(model: Path) -> dict[str, Floats]:
    """Return the offsets of a corrected model; none where it has no file of them."""
    path = model / _FILE
    return {name: value.numpy() for name, value in load_file(path).items()} if path.is_file() else {}


def shift(rows: Floats, languages: Sequence[str], offsets: Mapping[str, Floats]) -> Floats:
    """Return unit rows ``(n, D)`` less the offset of each row's language; a language without one stays as it is."""
    moved = rows.copy()
    for number, language in enumerate(languages):
        if language in offsets:
            moved[number] -= offsets[language]
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return (moved / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
