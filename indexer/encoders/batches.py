"""How texts reach a model: alike lengths together, tokenised ahead of the device, rows in the order of the texts."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.errors import EncoderUnavailableError

Features = Mapping[str, Any]
"""What a model takes for one batch: padded tensors by name, and perhaps plain values."""

Batch = tuple[Sequence[int], Features]
"""The places of some texts in the call, and what the model takes for them."""

Item = TypeVar("Item")

WINDOW_TEXTS = 1024
"""So many texts are sorted by length together; the next ones are tokenised while these are embedded."""

DEVICE_TOKENS = 32_768
"""Tokens of one batch on a GPU, padding included: enough to fill it, little enough for a small one."""

_AHEAD = 4  # Batches that wait for the device.


def by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the places of the lengths in batches, short ones first; none is over ``batch_tokens`` with its padding.

    A text that is longer than that is a batch of its own.

    >>> by_length([5, 1, 9, 2], 8)
    [[1, 3], [0], [2]]
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if batches and (len(batches[-1]) + 1) * lengths[place] <= batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def padded(ids: Sequence[Sequence[int]]) -> Features:
    """Return token ids and mask (1 is a token) as ``(B, T)`` tensors, filled up with 0 at the right."""
    width = max(map(len, ids), default=0)
    tokens = np.zeros((len(ids), width), dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}


def embedded(
    texts: Sequence[str],
    dim: int,
    device: torch.device,
    batches_of: Callable[[Sequence[int]], Iterator[Batch]],
    forward: Callable[[Features], torch.Tensor],
) -> NDArray[np.float32]:
    """Return ``(n, dim)`` float32 rows in the order of the texts; a blank text is a row of zeros.

    ``batches_of`` tokenises the texts at some places (it runs on a thread of its own where there are many), ``forward``
    gives a batch's rows. On a GPU nothing waits for a result before the last batch is under way, and a batch that is
    too large for what is free there is halved.

    Raises:
        EncoderUnavailableError: the device has no room for a single text.
    """
    rows = np.zeros((len(texts), dim), dtype=np.float32)
    filled = [place for place, text in enumerate(texts) if text.strip()]
    windows = [filled[at : at + WINDOW_TEXTS] for at in range(0, len(filled), WINDOW_TEXTS)]
    coming = (batch for window in windows for batch in batches_of(window))
    found: list[tuple[Sequence[int], torch.Tensor]] = []
    with torch.inference_mode():
        for places, features in ahead(coming) if len(windows) > 1 or device.type == "cuda" else coming:
            found.append((places, _forwarded(features, len(places), device, forward)))
    for places, vectors in found:
        rows[places] = vectors[:, :dim].float().cpu().numpy()
    return rows


def ahead(items: Iterator[Item], depth: int = _AHEAD) -> Iterator[Item]:
    """Yield the items in their order; a thread of its own makes them, ``depth`` ahead. Its error is raised here."""
    end = object()
    with ThreadPoolExecutor(1, "clinrag-tokenizer") as thread:
        coming = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def _forwarded(
    features: Features, n: int, device: torch.device, forward: Callable[[Features], torch.Tensor]
) -> torch.Tensor:
    """Return the rows of a batch of n texts."""
    try:
        return forward(_moved(features, device))
    except torch.OutOfMemoryError as error:
        if n == 1:
            raise EncoderUnavailableError(
                f"{device} has no room for a text of {max(map(_width, features.values()))} tokens; end what else uses "
                "it, or hide it (CUDA_VISIBLE_DEVICES=) to embed on the CPU"
            ) from error
    # Behind the except block: the error's frames hold what did fit.
    torch.cuda.empty_cache()
    return torch.cat(
        [
            _forwarded({name: _part(value, part) for name, value in features.items()}, n_part, device, forward)
            for part, n_part in ((slice(n // 2), n // 2), (slice(n // 2, None), n - n // 2))
        ]
    )


def _part(value: Any, part: slice) -> Any:
    return value[part] if isinstance(value, torch.Tensor) else value


def _width(value: Any) -> int:
    return int(value.shape[-1]) if isinstance(value, torch.Tensor) else 0


def _moved(features: Features, device: torch.device) -> Features:
    """Return a batch on the device. From pinned memory a GPU fetches it itself, and torch keeps that until it has."""
    if device.type != "cuda":
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
    return {
        name: value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }


def linear_weights(module: torch.nn.Module) -> int:
    """Return how many weights a token is multiplied with: those of the linear layers, the bulk of a model's work."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))


def best_device() -> str:
    """Return ``cuda`` where there is a device, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: str) -> torch.dtype:
    """Return what the device multiplies fastest: bfloat16 or float16 on a GPU, bfloat16 or float32 on a processor."""
    if device.startswith("cuda") and torch.cuda.is_available():
        # torch also counts devices that only emulate bfloat16, many times slower than their float16
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="ascii", errors="ignore") if info.exists() else ""
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else torch.float32


def fault_of(device: str) -> str | None:
    """Return why a device cannot be used, ``None`` where it can: some work is done on it.

    A device that torch sees may be busy, full, or older than what this torch was built for, which only a try tells.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is none"
    try:
        rows = torch.ones((8, 16), dtype=torch.float16, device=device)
        (rows @ rows.T).topk(2).values.cpu()
    except RuntimeError as error:
        return reason_of(error)
    return None


def reason_of(error: Exception) -> str:
    """Return what a message about a device says of an error: its first line, as others are for who debugs kernels."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def on_device(load: Callable[[str], Item], device: str | None) -> Item:
    """Return what ``load`` makes on the device; on the CPU, with a warning, where that one does not work or is full."""
    wanted = device or best_device()
    reason = fault_of(wanted) if wanted.startswith("cuda") else None
    if reason is None:
        try:
            return load(wanted)
        except RuntimeError as error:  # what torch raises for a full and for an unsuitable device
            if wanted == "cpu":
                raise
            reason = "it is full" if isinstance(error, torch.OutOfMemoryError) else reason_of(error)
    # Behind the except block: the error's frames hold what did fit on the device.
    warnings.warn(f"{wanted} cannot be used ({reason}); embedding on the CPU", RuntimeWarning, stacklevel=3)
    return load("cpu")
