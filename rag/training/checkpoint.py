"""What a stage that was cut off goes on from.

Our own loops keep everything in one file, written under another name and renamed: weights of one step never meet the
moments of another. transformers' trainer writes a folder file by file; what a kill left half written is passed over.
"""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
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


def without_card(model: Any) -> None:
    """Have a sentence-transformers model write no card into its trainer's checkpoints: it quotes rows it was taught."""
    model._create_model_card = lambda *_, **__: None


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


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint that transformers' trainer left in a folder, ``None`` without one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((str(path) for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        for path in checkpoint.rglob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    pickled = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in checkpoint.rglob(pattern))
    return all(map(zipfile.is_zipfile, pickled))


def _flat(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]
