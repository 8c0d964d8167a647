"""A static encoder: made of a teacher by a recipe, loaded without sentence-transformers, with the same vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from indexer.encoders.catalog import load_encoder
from indexer.encoders.static import StaticEncoder, is_static
from indexer.errors import ArgumentError, EncoderUnavailableError
from rag.training import static
from rag.training.heldout import HeldOut, normalised
from rag.training.pairs import build
from rag.training.pipeline import run_recipe
from rag.training.static import principal, start_table, static_rows, taught_texts, token_texts
from tests.rag.made_training import WORDS, data_folder, sentence, unigram_model

TEXTS = ["fever and cough", "发热", "", "  ", "dolor intenso de cabeza", "fever", "a" * 300]
RECIPE = """
languages = ["en", "zh"]
[start]
from = "{start}"
[[stage]]
kind = "pairs"
pairs = "asked.jsonl"
[[stage]]
kind = "static"
dim = 8
texts = 150
batch = 64
distil_steps = 40
distil_rate = 0.001
sif = 0.1
steps = 3
learning_rate = 0.01
draws = 1
dims = [8, 4]
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return unigram_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"), concepts=20)


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    build(data, folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A user's own questions with their passages alone."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"query": f"{word} {n}?", "passage": f"the {word} of {sentence('en', n)}"}
        for n, word in enumerate([word for language in ("en", "es") for word in WORDS[language]] * 6)
    ]
    rows = [{**row, "language": "en", "passage_language": "en"} for row in rows]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(start, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    path.write_text(RECIPE.format(start=start.as_posix()))
    return path


@pytest.fixture(scope="module")
def run(recipe, own, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_recipe(recipe, folder, own)
    return folder


def test_the_table_is_loaded_with_the_vectors_of_sentence_transformers(run):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(run / "model"), device="cpu")
    ours = load_encoder(str(run / "model"))
    assert isinstance(ours, StaticEncoder)
    assert ours.spec.dim == theirs.get_embedding_dimension() == 8
    filled = [text for text in TEXTS if text.strip()]
    np.testing.assert_allclose(ours.encode_queries(filled), theirs.encode(filled), atol=1e-6)
    rows = ours.encode_passages(TEXTS)
    assert not rows[[2, 3]].any()
    alone = np.concatenate([ours.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(rows, alone, atol=1e-6)


def test_both_parts_are_told_and_drawn(run):
    log = [json.loads(line) for line in (run / "02-static" / "log.jsonl").read_text().splitlines()]
    assert {kind: sum(row["kind"] == kind for row in log) for kind in ("distil", "contrast")} == {
        "distil": 10,
        "contrast": 3,
    }
    assert 'kind = "static"' in (run / "README.md").read_text(encoding="utf-8")


def test_distillation_brings_texts_nearer_to_the_teachers_vectors(run):
    tokenizer = Tokenizer.from_file(str(run / "model" / "tokenizer.json"))
    texts = [text for text, _ in taught_texts(run / "pairs", 150, 0)]
    with np.load(run / "02-static" / "taught.npz") as taught:
        targets, tokens = (taught[name].astype(np.float32) for name in ("targets", "tokens"))
    centre, directions = principal(targets, 8)
    wanted = (targets - centre) @ directions
    start = start_table(tokenizer, tokens, directions, texts, 0.1)
    distilled = load_file(run / "02-static" / "distilled.safetensors")["embedding.weight"].numpy()
    ids = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def cosine(table: np.ndarray) -> float:
        rows = np.stack([table[one].mean(0) for one in ids])
        return float(np.mean((rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)))

    assert cosine(distilled) > cosine(start) + 0.1


def test_a_run_cut_off_in_the_contrast_goes_on_without_the_teacher_and_ends_the_same(
    run, recipe, own, tmp_path, monkeypatch
):
    class KilledError(Exception):
        pass

    def kill(progress) -> None:
        if progress.row["step"] == 2:
            raise KilledError

    # the run as it stands when distillation is done
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for name in ("contrast", "model", "log.jsonl"):
        path = tmp_path / "02-static" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    done = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps({key: done[key] for key in done if "static" not in key}))
    monkeypatch.setattr(static, "load_encoder", None)
    with pytest.raises(KilledError):
        run_recipe(recipe, tmp_path, own, None, kill)
    told: list[tuple[str, int]] = []
    run_recipe(recipe, tmp_path, own, None, lambda progress: told.append((progress.row["kind"], progress.row["step"])))
    assert told == [("contrast", 2), ("contrast", 3)]
    once, again = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path))
    torch.testing.assert_close(again, once)


def test_nothing_but_the_gated_pairs_is_taught(data, pairs):
    held_out = HeldOut(data)
    known = "\n".join(path.read_text(encoding="utf-8") for path in sorted(pairs.glob("*.jsonl")))
    taught = [text for both in taught_texts(pairs, 10_000, 0) for text in both]
    for text in taught[::40]:
        assert json.dumps(text, ensure_ascii=False)[1:-1] in known
    for text in [*taught, *(text for both in static_rows(pairs, 1, 0) for text in both)]:
        assert not held_out.holds_text(text), text
    assert normalised(sentence("en", 108)) in set(map(normalised, taught))


def test_what_is_said_in_several_languages_stands_for_its_english(pairs):
    texts = dict(taught_texts(pairs, 10_000, 0))
    bitext = [json.loads(line)["texts"] for line in (pairs / "bitext.jsonl").read_text(encoding="utf-8").splitlines()]
    assert bitext
    for row in bitext[:20]:
        assert {texts[text] for text in row.values()} == {row["en"]}
    targets = {target for _, target in taught_texts(pairs, 7, 0)}
    assert 0 < len(targets) <= 7


def test_a_start_table_by_hand(start):
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    names = token_texts(tokenizer)
    assert names[tokenizer.token_to_id("<pad>")] == ""
    assert names[tokenizer.token_to_id("▁the")] == "the"
    tokens = np.zeros((len(names), 3), dtype=np.float32)
    common, rare = tokenizer.token_to_id("ever"), tokenizer.token_to_id("боль")
    tokens[common], tokens[rare] = [1.0, 2.0, 0.0], [3.0, 2.0, 0.0]
    once = tokenizer.encode("ever", add_special_tokens=False).ids
    table = start_table(tokenizer, tokens, np.eye(3, 2, dtype=np.float32), ["ever"], 0.5)
    share = once.count(common) / len(once)
    expected = np.zeros((len(names), 2))
    expected[common], expected[rare] = [-0.5 / (0.5 + share), 0.0], [1.0, 0.0]
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_the_first_principal_direction_is_where_rows_differ_most():
    chance = np.random.default_rng(0)
    rows = (chance.normal(size=(500, 3)) * [0.1, 5.0, 1.0] + [7.0, 0.0, 0.0]).astype(np.float32)
    centre, directions = principal(rows, 2)
    np.testing.assert_allclose(centre, rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(np.abs(directions), [[0, 0], [1, 0], [0, 1]], atol=0.05)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ('[[stage]]\nkind = "static"\n[[stage]]\nkind = "contrast"\n', "stage.static makes a table"),
        (
            '[[stage]]\nkind = "pairs"\n[[stage]]\nkind = "static"\ndim = 33\n',
            r"static.dim must lie between 1 and .* 32",
        ),
        ('[[stage]]\nkind = "pairs"\n[[stage]]\nkind = "static"\ndim = 8\ndims = [4]\ntexts = 9\n', r"static.dims"),
    ],
)
def test_what_cannot_be_made_is_refused(start, data, tmp_path, stages, words):
    path = tmp_path / "r.toml"
    path.write_text(f'[start]\nfrom = "{start.as_posix()}"\n{stages}')
    with pytest.raises(ArgumentError, match=words):
        run_recipe(path, tmp_path / "run", data)


def test_only_a_static_table_starts_from_packed_weights(data, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[start]\nfrom = "compact"\n[[stage]]\nkind = "contrast"\n')
    with pytest.raises(ArgumentError, match="packed"):
        run_recipe(path, tmp_path / "run", data)


def test_files_of_model2vec_with_shared_rows_and_weights_are_read(run, tmp_path):
    for name in ("modules.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((run / "model" / name).read_bytes())
    table = load_file(run / "model" / "model.safetensors")["embedding.weight"]
    place = json.loads((tmp_path / "modules.json").read_text())[0]["path"]
    assert place == ""
    chance = torch.Generator().manual_seed(0)
    shared = torch.randint(0, len(table), (len(table),), generator=chance)
    weights = torch.rand(len(table), generator=chance) + 0.1
    save_file({"embeddings": table, "mapping": shared, "weights": weights}, tmp_path / "model.safetensors")
    theirs = StaticEncoder(tmp_path).encode_queries(["fever and cough"])
    save_file({"embedding.weight": table[shared] * weights[:, None]}, tmp_path / "model.safetensors")
    np.testing.assert_allclose(StaticEncoder(tmp_path).encode_queries(["fever and cough"]), theirs, atol=1e-6)


def test_a_folder_with_another_model_or_too_few_rows_is_not_taken(run, start, tmp_path):
    assert not is_static(start)
    assert not is_static(tmp_path)
    for name in ("modules.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((run / "model" / name).read_bytes())
    assert is_static(tmp_path)
    with pytest.raises(EncoderUnavailableError, match="no readable table"):
        load_encoder(str(tmp_path))
    save_file({"embedding.weight": torch.ones(3, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderUnavailableError, match="fewer rows"):
        load_encoder(str(tmp_path))
