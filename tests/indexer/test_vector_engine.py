"""Which engine a process searches with: chosen by name, and by what is there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from indexer.errors import ArgumentError
from indexer.library import Library
from indexer.store import torch_scan, vector_engine
from indexer.store.torch_scan import TorchScan
from indexer.store.vector_engine import device_index, use
from indexer.store.vectors import ExactVectorIndex
from tests.contracts.vector_index import DIM, assert_same, halves

IDS, ROWS = np.arange(300), halves(np.random.default_rng(1), 300)


@pytest.fixture(autouse=True)
def own_choice() -> Iterator[None]:
    vector_engine._warn_once.cache_clear()
    vector_engine._may_have_gpu.cache_clear()
    yield
    use("auto")
    vector_engine._may_have_gpu.cache_clear()


def assert_answers(index) -> None:
    oracle = ExactVectorIndex(DIM)
    oracle.add(IDS, ROWS)
    assert_same(index, oracle, ROWS[3].astype(np.float32), 7)


def cuda_with(monkeypatch, free_bytes: int) -> None:
    """Let torch see a device of that much free memory; what is put there lies on the CPU."""
    monkeypatch.setattr(vector_engine, "_GPU_FILES", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 2**40))
    monkeypatch.setattr(torch_scan, "_usable", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch_scan, "fault_of", lambda device: None)


def test_without_a_gpu_the_cpus_own_engine_is_used_and_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(vector_engine, "_GPU_FILES", ("/nowhere",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert device_index(IDS, ROWS) is None
    use("faiss")
    assert device_index(IDS, ROWS) is None


def test_on_cuda_the_exact_scan_is_the_default_as_long_as_the_rows_fit(monkeypatch):
    cuda_with(monkeypatch, 2**30)
    index = device_index(IDS, ROWS)
    assert isinstance(index, TorchScan)
    assert_answers(index)
    use("faiss")
    assert device_index(IDS, ROWS) is None


def test_too_small_a_device_is_passed_over_with_one_warning(monkeypatch):
    cuda_with(monkeypatch, 2**20)
    with pytest.warns(RuntimeWarning, match="has 1 MiB free, the vectors need 256") as caught:
        assert device_index(IDS, ROWS) is None
        assert device_index(IDS, ROWS) is None
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("engine", "match"),
    [("torch", "sees no CUDA"), ("faiss-gpu", "FAISS cannot use a GPU"), ("faiss-gpu-ivf", "FAISS cannot use a GPU")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_engine_that_needs_a_gpu_falls_back_with_one_warning(engine, match):
    use(engine)
    with pytest.warns(RuntimeWarning, match=match) as caught:
        assert device_index(IDS, ROWS) is None
        assert device_index(IDS, ROWS) is None
    assert len(caught) == 1


def test_faiss_on_gpus_that_are_full_falls_back_with_the_reason(monkeypatch):
    from indexer.store import faiss_gpu

    def full():
        raise RuntimeError("Error in allocate: out of memory")

    monkeypatch.setattr(faiss_gpu, "GpuDevices", full)
    use("faiss-gpu")
    with pytest.warns(RuntimeWarning, match="out of memory.; searching on the CPU"):
        assert device_index(IDS, ROWS) is None


@pytest.mark.parametrize(("engine", "kind"), [("faiss-gpu", "flat"), ("faiss-gpu-ivf", "ivf")])
def test_faiss_on_gpus_takes_the_matrix_as_its_base(monkeypatch, engine, kind):
    from indexer.store import faiss_gpu

    asked = SimpleNamespace(kind=None)

    def from_base(ids, rows, *, kind):
        asked.kind = kind
        index = ExactVectorIndex(rows.shape[1])
        index.add(ids, rows)
        return index

    monkeypatch.setattr(faiss_gpu.FaissGpuIndex, "from_base", from_base)
    use(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_answers(device_index(IDS, ROWS))
    assert asked.kind == kind


def test_numpy_is_the_oracle_itself():
    use("numpy")
    index = device_index(IDS, ROWS)
    assert isinstance(index, ExactVectorIndex)
    assert_answers(index)


def test_a_name_that_is_none_is_refused_and_changes_nothing():
    use("numpy")
    with pytest.raises(ArgumentError, match="none of auto, faiss, torch"):
        use("gpu")
    assert isinstance(device_index(IDS, ROWS), ExactVectorIndex)


@pytest.mark.parametrize("engine", ["numpy", "torch", "faiss-gpu"])
def test_a_collection_answers_alike_with_every_engine(tmp_path, monkeypatch, engine):
    """Stored, deleted and newer notes, from memory and from derived files; devices are stood in for by the CPU."""
    from indexer.store import faiss_gpu
    from tests.indexer.made_collections import new, note, store, vector
    from tests.indexer.test_vectors_faiss_gpu import HostDevices

    cuda_with(monkeypatch, 2**30)
    monkeypatch.setattr(faiss_gpu, "GpuDevices", HostDevices)
    texts = ["Pain in the chest.", "No fever.", "Rounds on Sunday.", "Aorta is fine.", "Insulin."]

    def answers(chosen: str, home):
        use(chosen)
        found = []
        with new(home) as ward:
            store(ward, *(note(f"n{n}", text) for n, text in enumerate(texts * 3)))
            ward.publish()
        for _ in range(2):  # Once with what is on disk alone, once more with what came since.
            with Library(home).open("ward") as ward:
                for after in (False, True):
                    if after:
                        ward.delete_notes(["n0", "n6"])
                        store(ward, note("late", "Sunday pain."))
                    view = ward.view()
                    found.append([part.tolist() for part in view.search_vectors(vector("Pain on Sunday"), 9)])
        return found

    assert answers(engine, tmp_path / "one") == answers("faiss", tmp_path / "other")
