"""The packed form of a tuned BERT: the port, equal vectors, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from indexer.encoders.packed import PackedEncoder
from indexer.errors import ArgumentError, EncoderUnavailableError
from rag.training.export import export_packed, to_groups
from rag.training.folder import write_pooling
from rag.training.package_weights import unpack_groups
from tests import tiny_models
from tests.contracts.test_encoder import TEXTS, EncoderContract


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tiny_models.bert(tmp_path_factory.mktemp("float"))
    write_pooling(folder, 32, 64)
    return folder


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    export_packed(source, folder, "tiny")
    return folder


class TestPacked(EncoderContract):
    @pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def encoder(self, request, packed) -> PackedEncoder:
        return PackedEncoder(packed, request.param)


def test_vectors_equal_those_of_the_float_model_up_to_the_rounding_of_the_layers(source, tmp_path):
    # the float model gets the word embeddings that the packed one can say, so only 8-bit layers differ
    folder = tmp_path / "grouped"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((source / name / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    words = next(name for name in weights if name.endswith("word_embeddings.weight"))
    groups = to_groups(weights[words].numpy())
    weights[words] = torch.from_numpy(unpack_groups(*groups))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export_packed(folder, tmp_path / "packed", "tiny", groups)
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, prompt_name="passage")
    rows = PackedEncoder(tmp_path / "packed", torch.float32).encode_passages(TEXTS)
    assert (rows * expected).sum(1).min() > 0.999


def test_sentence_transformers_reads_the_folder_and_gives_the_same_vectors(packed):
    from sentence_transformers import SentenceTransformer

    from indexer.encoders.packed_module import sentence_transformer

    rows = PackedEncoder(packed).encode_queries(TEXTS)
    ours = sentence_transformer(packed).encode(TEXTS, prompt_name="query")
    by_path = SentenceTransformer(str(packed), device="cpu", trust_remote_code=True).encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(ours, rows, atol=2e-2)
    np.testing.assert_allclose(by_path, ours, atol=1e-6)


def test_groups_round_trip_within_half_a_step_and_keep_what_they_can_say():
    values = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    halves, steps = to_groups(values)
    once = unpack_groups(halves, steps)
    bound = np.repeat(np.abs(steps.astype(np.float32)), 32, axis=1)
    # the level +8 does not exist: a value opposite to the extreme one may be a whole step off
    assert (np.abs(once - values) <= bound * 1.01).all()
    np.testing.assert_array_equal(unpack_groups(*to_groups(once)), once)


def test_embeddings_that_are_not_the_groups_are_refused(source, tmp_path):
    other = np.zeros((3, 32), dtype=np.float32)
    with pytest.raises(ArgumentError, match="not the model's word embeddings"):
        export_packed(source, tmp_path, "tiny", to_groups(other))


def test_another_architecture_is_refused(source, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    with pytest.raises(ArgumentError, match="only BERT"):
        export_packed(wrong, tmp_path / "out", "tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_named_and_nothing_is_loaded(packed, tmp_path, name, damage):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / name
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(EncoderUnavailableError, match=tmp_path.name):
        PackedEncoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": None}, "does not say heads"),
        ({"dim": 7}, "is another model's"),
        ({"max_length": 100_000}, "is another model's"),
    ],
)
def test_settings_that_are_not_of_these_weights_are_refused(packed, tmp_path, change, reason):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | change
    written = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(EncoderUnavailableError, match=reason):
        PackedEncoder(tmp_path)


def test_loading_needs_neither_transformers_nor_sentence_transformers():
    heavy = ("transformers", "sentence_transformers")
    code = f"import sys, indexer.encoders.packed; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fingerprint_changes_with_the_weights(packed, source, tmp_path):
    weights = load_file(source / "model.safetensors")
    first = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    for path in source.rglob("*.json"):
        target = tmp_path / "other" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    save_file({**weights, first: weights[first] * 1.5}, tmp_path / "other" / "model.safetensors")
    export_packed(tmp_path / "other", tmp_path / "packed", "tiny")
    assert PackedEncoder(tmp_path / "packed").spec.fingerprint != PackedEncoder(packed).spec.fingerprint
