"""What a loop of our own that was cut off goes on from, and what a full disk is told as.

Everything is in one file, written under another name and renamed: weights of one step never meet another's moments.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.errors import ArgumentError, ClinragError, SourceError, StorageFullError

_NAME = "checkpoint.safetensors"
_ROOM = 1 << 20


def save_checkpoint(
    folder: Path, sets: Mapping[str, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write sets of tensors by name, what the optimizer remembers, and ``facts`` (JSON) as one file of ``folder``."""
    tensors = {f"{kind}/{name}": value.detach().contiguous() for kind, of in sets.items() for name, value in of.items()}
    for number, value in enumerate(_flat(optimizer)):  # none of a parameter that the vector does not pass
        tensors |= {f"optimizer/{number}/{key}": one for key, one in optimizer.state[value].items()}
    write_tensors(folder / _NAME, tensors, {"facts": json.dumps(dict(facts))})


def load_checkpoint(
    folder: Path, sets: Mapping[str, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put what `save_checkpoint` wrote into the tensors and the optimizer; return its facts, ``None`` without a file.

    Raises:
        ArgumentError: the file is of another architecture.
        SourceError: the file is damaged.
    """
    path = folder / _NAME
    if not path.is_file():
        return None
    try:
        saved = load_file(path)
        with safe_open(path, "pt") as opened:
            facts: dict[str, Any] = json.loads(opened.metadata()["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder.name}/{_NAME} is damaged; remove it, and this stage begins anew") from error
    whole = {f"{kind}/{name}": value for kind, of in sets.items() for name, value in of.items()}
    shapes = {name: value.shape for name, value in saved.items() if not name.startswith("optimizer/")}
    if {name: value.shape for name, value in whole.items()} != shapes:
        raise ArgumentError("out", f"holds a checkpoint of another architecture; remove {folder.name} or name another")
    with torch.no_grad():
        for name, value in whole.items():
            value.copy_(saved[name])
    flat = _flat(optimizer)
    for name, value in saved.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            optimizer.state[flat[int(number)]][key] = value
    return facts


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file under another name and rename it."""
    new = path.with_suffix(".new")
    save_file(dict(tensors), new, metadata=dict(facts or {}))
    new.replace(path)


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Tell a full disk as such: safetensors and torch have errors of their own for it.

    Raises:
        StorageFullError: what failed inside failed because there is no room in ``folder``.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if isinstance(error, ClinragError) or not (full or shutil.disk_usage(folder).free < _ROOM):
            raise
        raise StorageFullError(f"no room is left in {folder.name}; make room, and the same command goes on") from error


def _flat(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]
