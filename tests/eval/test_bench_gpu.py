"""The device benchmark runs anywhere, says where it ran, and names what it could not measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.bench import gpu


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_COPIED_BYTES", {"cuda": 2**20, "cpu": 2**20})
    monkeypatch.setattr(gpu, "_MATMUL", {"cuda": 128, "cpu": 128})
    monkeypatch.setattr(gpu, "_ROUNDS", 2)


def test_figures_of_this_device_and_why_others_are_missing(small, tmp_path: Path, capsys):
    options = ["--rows", "2500", "--queries", "4", "--texts", "6", "--encoder", "hashing"]
    gpu.main([*options, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert said.startswith(f"device: {device} (")
    record = json.loads((tmp_path / "gpu.json").read_text())
    scans = {row["engine"]: row for row in record["scans"]}
    for name in (f"torch float16 on {device}", f"torch bfloat16 on {device}", "FAISS flat on the CPU"):
        assert scans[name]["recall"] == 1.0
        assert scans[name]["floor_ms"] == pytest.approx(2500 * 384 * 2 / record["bytes_per_s"] * 1e3)
    assert scans["FAISS flat on the CPU"]["batch_ms"] is None or scans["FAISS flat on the CPU"]["batch_ms"] > 0
    for name in ("FAISS flat on GPUs", "FAISS IVF+PQ on GPUs"):
        assert (name in scans) != (name in record["absent"])
        assert name in said
    assert record["embedding"]["texts"] == 6
    assert record["embedding"]["tokens_per_s"] > 0


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
