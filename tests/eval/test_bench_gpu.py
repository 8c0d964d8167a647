"""The device benchmark runs anywhere, says where it ran, and names what it could not measure."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.bench import gpu


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_COPIED_BYTES", {"cuda": 2**20, "cpu": 2**20})
    monkeypatch.setattr(gpu, "_MATMUL", {"cuda": 128, "cpu": 128})
    monkeypatch.setattr(gpu, "_ROUNDS", 2)


def test_figures_of_this_device_at_each_size_and_why_others_are_missing(small, tmp_path: Path, capsys):
    options = ["--rows", "900", "2500", "--dim", "40", "--queries", "4", "--texts", "6", "--encoder", "hashing"]
    gpu.main([*options, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert said.startswith(f"device: {device} (")
    assert f"torch: {torch.__version__}" in said
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["rows"], row["dim"]) for row in record["scans"]} == {(900, 40), (2500, 40)}
    scans = {row["engine"]: row for row in record["scans"] if row["rows"] == 2500}
    for name in (f"torch float16 on {device}", f"torch bfloat16 on {device}", "FAISS flat on the CPU"):
        assert scans[name]["recall"] == 1.0
        assert scans[name]["floor_ms"] == pytest.approx(2500 * 40 * 2 / record["bytes_per_s"] * 1e3)
        assert (scans[name]["device_mib"] is None) == (device == "cpu")
    assert scans["FAISS flat on the CPU"]["batch_ms"] is None or scans["FAISS flat on the CPU"]["batch_ms"] > 0
    for name in ("FAISS flat on GPUs", "FAISS IVF+PQ on GPUs"):
        assert (name in scans) != (f"{name}, 2,500 rows" in record["absent"])
        assert name in said
    assert record["embedding"]["texts"] == 6
    assert record["embedding"]["tokens_per_s"] > 0
    assert record["embedding"]["tokenized_per_s"] > 0


@pytest.mark.parametrize("dim", [24, 384, 500])
def test_vectors_of_another_width_are_as_alike_as_before(dim):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = gpu.turned(vectors, dim, generator)
    assert found.shape == (50, dim)
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=1e-5 if dim >= 384 else 1.0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_an_index_that_fell_back_to_the_cpu_is_no_figure_of_the_device(small, monkeypatch):
    rows = gpu.rows_like(np.eye(16, dtype=np.float32), 300, "cpu")

    def fallen() -> gpu.Index:
        warnings.warn("cuda is too small for the vectors; searching on the CPU", RuntimeWarning, stacklevel=1)
        return gpu.engines(rows, "cpu")["torch float16 on cpu"]()

    monkeypatch.setattr(gpu, "engines", lambda rows, device: {"torch": fallen})
    scans, absent = gpu._scans(rows[:2].astype(np.float32), rows, "cpu", 1e9)
    assert (scans, absent) == ([], {"torch": "cuda is too small for the vectors; searching on the CPU"})


def test_work_of_an_encoder_is_counted_by_its_linear_layers():
    class Encoder:
        linear_weights = 1000
        device = "cpu torch.float32"

        class spec:  # noqa: N801
            model_id = "tiny"

        def token_spans(self, texts):
            return [[(0, 1)] * 5 for _ in texts]

        def encode_passages(self, texts):
            return texts

    made = gpu.embedding(Encoder(), ["a", "b"], 1e9)  # type: ignore[arg-type]
    assert made.tokens == 10
    assert made.tflops * 1e12 == pytest.approx(2 * 1000 * made.tokens_per_s)
    assert made.share_of_peak == pytest.approx(made.tflops * 1e12 / 1e9)
