"""Every backbone of the catalog, as a tiny random checkpoint of its architecture: loaded, pruned, tuned, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from indexer.encoders.catalog import CATALOG, load_encoder
from indexer.errors import ArgumentError
from rag.training.pipeline import TrainReport, run_recipe
from rag.training.settings import TransplantSettings
from rag.training.student import Student
from rag.training.transplant import transplant
from tests import tiny_models
from tests.rag.made_training import data_folder, unigram_model

PRESETS = [(entry.name, kind) for entry in CATALOG.values() if entry.hub_id for kind in entry.architectures]
TEXTS = ["the patient has fever", "el paciente: dolor", "患者発熱無", "жар 38.5"]
SERVED = ["fever rash", "fiebre: dolor", "疼痛 12", "痛み"]  # words of the training data
RECIPE = """
[start]
from = "{start}"
[[stage]]
kind = "mlm"
sources = ["notes/aci_bench"]
steps = 1
batch = 2
max_length = 24
duplication = 1
[[stage]]
kind = "prune"
size = {size}
[[stage]]
kind = "pairs"
[[stage]]
kind = "align"
steps = 2
learning_rate = 1e-3
max_length = 32
bfloat16 = false
cycle = ["terms", "bitext"]
[[stage]]
kind = "contrast"
steps = 2
batch = 6
micro_batch = 3
learning_rate = 1e-3
max_length = 32
"""


def tiny(preset: str, architecture: str) -> str:
    """Return which tiny checkpoint stands for a preset: MultiClinicalBERT's and mmBERT's vocabulary is Gemma's."""
    return "mmbert" if architecture == "modernbert" and preset in {"multiclinicalbert", "mmbert"} else architecture


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), concepts=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_models.checkpoint(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture(scope="module")
def trained(data, folders, tmp_path_factory) -> Callable[[str, str], tuple[Path, TrainReport]]:
    """Run the recipe from a preset once for each architecture: presets of one differ in nothing but their name."""
    done: dict[str, tuple[Path, TrainReport]] = {}

    def run(preset: str, name: str) -> tuple[Path, TrainReport]:
        if name not in done:
            out = tmp_path_factory.mktemp("run")
            size = len(json.loads((folders[name] / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) - 3
            text = RECIPE.format(start=preset, size=size)
            if name == "bert":
                text += '[[stage]]\nkind = "export"\n'
            (out / "r.toml").write_text(text)
            done[name] = out, run_recipe(out / "r.toml", out / "run", data)
        return done[name]

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("preset", "architecture"), PRESETS)
def test_a_preset_is_loaded_pretrained_pruned_tuned_and_exported(preset, architecture, folders, trained, monkeypatch):
    name = tiny(preset, architecture)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folders[name]))
    raw = load_encoder(preset)
    assert (raw.spec.pooling, raw.spec.max_length, raw.spec.dim) == ("mean", 64, 32)
    assert np.linalg.norm(raw.encode_passages(TEXTS), axis=1) == pytest.approx(1.0, abs=1e-5)
    out, report = trained(preset, name)
    start, pruned = out / "run" / "01-mlm" / "model", out / "run" / "02-prune" / "model"
    before, after = Student(start).eval(), Student(pruned).eval()
    kept = np.load(pruned / "kept_tokens.npy")
    assert len(kept) < before.tokenizer.get_vocab_size()
    for text in SERVED:
        ids = before.token_ids([text], "query: ")[0]
        assert [kept[number] for number in after.token_ids([text], "query: ")[0]] == ids
        with torch.inference_mode():
            torch.testing.assert_close(after.encode([text], "query: "), before.encode([text], "query: "))
    tuned = load_encoder(str(report.model))
    rows = tuned.encode_passages(TEXTS)
    assert tuned.spec.max_length == raw.spec.max_length  # tuned on short texts, it still reads long ones
    assert not np.allclose(rows, load_encoder(str(start)).encode_passages(TEXTS), atol=1e-3)
    again = load_encoder(str(report.model))
    assert again.spec.fingerprint == tuned.spec.fingerprint
    np.testing.assert_array_equal(again.encode_passages(TEXTS), rows)
    if report.packed is not None:
        packed = load_encoder(str(report.packed)).encode_passages(TEXTS)
        assert (packed * rows).sum(1) == pytest.approx(1.0, abs=0.05)


def test_every_architecture_of_the_catalog_is_among_the_tested():
    assert {tiny(*case) for case in PRESETS} == set(tiny_models.ARCHITECTURES)


def test_the_longest_input_comes_from_the_config_and_nothing_of_it_is_cut(tmp_path):
    folder, shorter = (tiny_models.checkpoint("modernbert", tmp_path / str(n), length=n) for n in (8192, 1536))
    encoder = load_encoder(str(folder))
    assert encoder.spec.max_length == 8192
    assert encoder.max_tokens > 8100
    text = " patient" * encoder.max_tokens
    assert len(encoder.token_spans([text])[0]) == encoder.max_tokens
    assert len(Student(folder, 8192).token_ids([text], "")[0]) == encoder.max_tokens + 2
    encoder = load_encoder(str(shorter))
    text, ends_otherwise = " patient" * encoder.max_tokens, " patient" * (encoder.max_tokens - 400) + " fever" * 400
    whole, other = (encoder.encode_passages([one])[0] for one in (text, ends_otherwise))
    assert float(whole @ other) < 0.9999


# transplanting a vocabulary


@pytest.fixture(scope="module")
def english(folders, tmp_path_factory) -> Path:
    """A body whose vocabulary is to be changed, as a sentence-transformers directory."""
    from rag.training.recipe import Recipe
    from rag.training.stages import start_model

    out = tmp_path_factory.mktemp("body") / "start"
    return start_model(Recipe("r", str(folders["bert"]), ()), out, out)


def embeddings(folder: Path) -> torch.Tensor:
    return Student(folder).body.get_input_embeddings().weight.detach()


def number(folder: Path, piece: str) -> int:
    return int(Student(folder).tokenizer.token_to_id(piece))


@pytest.mark.parametrize("method", ["similar", "map"])
@pytest.mark.parametrize("body", ["bert", "roberta", "modernbert"])
def test_tokens_that_both_have_embed_as_before_on_the_donors_vocabulary(method, body, folders, tmp_path):
    from rag.training.recipe import Recipe
    from rag.training.stages import start_model

    start = start_model(Recipe("r", str(folders[body]), ()), tmp_path / "start", tmp_path)
    donor = start_model(Recipe("r", str(folders["mmbert"]), ()), tmp_path / "donor", tmp_path)
    counts = transplant(start, donor, tmp_path / "out", TransplantSettings(method=method))
    before, after = Student(start).eval(), Student(tmp_path / "out").eval()
    assert counts["shared"] > 20 < counts["new"]
    assert len(embeddings(tmp_path / "out")) == counts["shared"] + counts["new"]
    assert torch.isfinite(embeddings(tmp_path / "out")).all()
    single = 0
    for word in (" patient", " fever", " pain", " fiebre", " жар", "患", "熱"):
        ids = [one.tokenizer.encode(word).ids for one in (before, after)]
        if len(ids[0]) == len(ids[1]) == 3:  # one token in both: the same row between the same special tokens
            single += 1
            with torch.inference_mode():
                torch.testing.assert_close(after([ids[1]]), before([ids[0]]))
    assert single >= 3
    assert np.linalg.norm(load_encoder(str(tmp_path / "out")).encode_passages(TEXTS), axis=1) == pytest.approx(1.0)


def test_a_new_token_gets_the_row_of_those_it_lies_near_in_the_donor(english, tmp_path):
    from safetensors.torch import load_file, save_file

    donor = unigram_model(tmp_path / "donor")
    weights = load_file(donor / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    new, shared = number(donor, "боль"), number(donor, "▁the")
    weights[name][new] = 3.0 * weights[name][shared]
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    transplant(english, donor, out, TransplantSettings(neighbours=3, temperature=0.01))
    rows, wanted = embeddings(out), embeddings(english)[number(english, "the")]
    torch.testing.assert_close(rows[number(out, "▁the")], wanted)
    torch.testing.assert_close(rows[number(out, "боль")], wanted, atol=1e-4, rtol=1e-4)


def test_a_donor_that_shares_too_little_and_an_unknown_method_are_refused(english, tmp_path):
    donor = unigram_model(tmp_path / "donor")
    with pytest.raises(ArgumentError, match="too few"):
        transplant(english, donor, tmp_path / "out", TransplantSettings(neighbours=10_000))
    with pytest.raises(ArgumentError, match="similar and map"):
        transplant(english, donor, tmp_path / "out", TransplantSettings(method="magic"))


def test_a_recipe_transplants_and_goes_on_with_pretraining(english, data, tmp_path):
    donor = unigram_model(tmp_path / "donor")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[start]\nfrom = "{english.as_posix()}"\n[[stage]]\nkind = "transplant"\ndonor = "{donor.as_posix()}"\n'
        '[[stage]]\nkind = "mlm"\nsources = ["notes/aci_bench"]\nsteps = 1\nbatch = 2\nmax_length = 32\n'
    )
    report = run_recipe(recipe, tmp_path / "run", data)
    assert number(report.model, "▁the") == number(donor, "▁the")
    assert Student(report.model).encode(TEXTS, "").shape == (4, 32)
