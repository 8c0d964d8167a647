"""A model from nothing: its vocabulary, and the prediction head that the first pretraining goes on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from indexer.errors import ArgumentError
from rag.training.pipeline import run_recipe
from rag.training.recipe import read_recipe
from rag.training.scratch import SPECIAL, train_wordpiece, write_scratch
from rag.training.settings import ScratchSettings
from rag.training.stages import start_model
from rag.training.student import Student
from tests.rag.made_training import unigram_model

START = """
[start]
from = "scratch"
vocabulary = 400
hidden = 16
layers = 1
heads = 2
feed_forward = 32
positions = 32
"""
PRETRAINING = """
[[stage]]
kind = "mlm"
sources = ["notes/aci_bench"]
steps = 2
batch = 2
max_length = 24
duplication = 1
"""
SHAPE = ScratchSettings(vocabulary=60, hidden=16, layers=1, heads=2, feed_forward=32, positions=32, characters=20)


def recipe(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_model_from_nothing_is_pretrained_with_the_head_that_it_was_made_with(data, tmp_path):
    model = run_recipe(recipe(tmp_path, START + PRETRAINING), tmp_path / "run", data).model
    before, after = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("masked", "01-mlm/masked"))
    name = "cls.predictions.transform.dense.weight"
    moved = (after[name] - before[name]).abs().max()
    assert 0 < float(moved) < 1e-3  # two small steps, not another head
    assert Student(model).encode(["fever"], "").shape == (1, 16)


def test_a_vocabulary_is_counted_on_so_much_of_each_language_and_han_stand_alone(tmp_path):
    texts = [("en", "fever cough"), ("en", "fever fever"), ("en", "nausea"), ("zh", "发热")]
    write_scratch(texts, tmp_path / "start", SHAPE, 0)
    pieces = Tokenizer.from_file(str(tmp_path / "start" / "tokenizer.json"))
    assert {"fever", "发", "热"} <= set(pieces.get_vocab())
    assert pieces.encode("发热").tokens == ["[CLS]", "发", "热", "[SEP]"]
    assert "[UNK]" in pieces.encode("nausea").tokens  # twenty characters of English were read before
    write_scratch(texts, tmp_path / "again", SHAPE, 0)
    write_scratch(texts, tmp_path / "other", SHAPE, 1)
    one, again, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("start", "again", "other"))
    assert one == again != other


def test_no_text_and_a_width_that_the_heads_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="no text"):
        train_wordpiece([], 100)
    with pytest.raises(ArgumentError, match=r"start\.heads"):
        write_scratch([("en", "fever")], tmp_path, replace(SHAPE, heads=3), 0)
    assert len(SPECIAL) == len(set(SPECIAL))


def test_the_head_of_another_model_is_not_pretrained_instead(data, tmp_path):
    """Of a start that was replaced, and of a donor from nothing, nothing is left that a pretraining would take up."""
    scratch = read_recipe(recipe(tmp_path, START + PRETRAINING))
    start_model(scratch, tmp_path / "run" / "start", data)
    start_model(replace(scratch, start="compact"), tmp_path / "run" / "start", data)
    assert not (tmp_path / "run" / "masked").exists()
    body = unigram_model(tmp_path / "body", hidden=24)
    given = '[[stage]]\nkind = "transplant"\ndonor = "scratch"\nneighbours = 3\n'
    text = f'[start]\nfrom = "{body.as_posix()}"\n{given}{PRETRAINING}'
    made = run_recipe(recipe(tmp_path, text), tmp_path / "other", data).model
    assert json.loads((made / "config.json").read_text())["hidden_size"] == 24
