"""Which engine searches vectors in this process: the CPU's, or a device's index over a collection's matrix.

The engine is the process's, as its hardware is: nothing of it is kept with a collection, whose derived files any engine
can take up. A device that is not here, or is too small, is replaced by the CPU, with one warning.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from indexer.errors import ArgumentError, MissingExtraError
from indexer.store.vectors import ExactVectorIndex, Ids, Rows, VectorIndex

Engine = Literal["auto", "faiss", "torch", "faiss-gpu", "faiss-gpu-ivf", "numpy"]
"""``auto``: ``torch`` where there is a CUDA device that the rows fit on, ``faiss`` (on the CPU) otherwise."""

_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of them is there where a GPU may be: without one, torch need not be imported to find that out.

The first card of a machine, ``nvidia0``, may not be the one that a container is given.
"""

_GROWTH = 1.25  # Room on a device beyond the rows of now.
_WORKING_BYTES = 256 * 2**20  # What a scoped search gathers, and what the device's library of products takes.

_chosen: Engine = "auto"


def use(engine: str) -> None:
    """Search with an engine from here on, in every collection that is opened.

    Raises:
        ArgumentError: there is none of that name.
    """
    global _chosen
    if engine not in get_args(Engine):
        raise ArgumentError("vector engine", f"is none of {', '.join(get_args(Engine))}")
    _chosen = engine  # type: ignore[assignment]


def device_index(ids: Ids, rows: Rows) -> VectorIndex | None:
    """Return the chosen engine's index over a float16 matrix, ``None`` where the CPU's own is to be used.

    The matrix may be memory-mapped and must not change.
    """
    if _chosen == "auto":
        return _in_torch(ids, rows) if _may_have_gpu() else None
    if _chosen == "torch":
        return _in_torch(ids, rows, wanted=True)
    if _chosen == "numpy":
        index = ExactVectorIndex(rows.shape[1])
        index.add(ids, np.asarray(rows))
        return index
    return None if _chosen == "faiss" else _in_faiss(ids, rows, inverted=_chosen == "faiss-gpu-ivf")


def _in_torch(ids: Ids, rows: Rows, *, wanted: bool = False) -> VectorIndex | None:
    from indexer.store.torch_scan import TorchScan, free_bytes

    free = free_bytes()
    if free is None:
        if wanted:
            _warn_once("torch sees no CUDA device; searching on the CPU")
        return None
    needed = int(rows.size * 2 * _GROWTH) + _WORKING_BYTES
    if needed > free:
        _warn_once(f"the CUDA device has {free >> 20} MiB free, the vectors need {needed >> 20}; searching on the CPU")
        return None
    return TorchScan.from_matrix(ids, rows, "cuda")


def _in_faiss(ids: Ids, rows: Rows, *, inverted: bool) -> VectorIndex | None:
    try:
        from indexer.store.faiss_gpu import FaissGpuIndex

        return FaissGpuIndex.from_base(ids, rows, kind="ivf" if inverted else "flat")
    except MissingExtraError:
        reason = "it has no GPU part; install clinrag[gpu] in the place of clinrag[cpu]"
    except RuntimeError as error:  # what FAISS raises for a missing and for a full device
        reason = (str(error).splitlines() or ["no reason given"])[-1]
    _warn_once(f"FAISS cannot use a GPU ({reason}); searching on the CPU")
    return None


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


@cache
def _may_have_gpu() -> bool:
    return any(Path(name).exists() for name in _GPU_FILES)
