"""The stages that hand the work to transformers' and sentence-transformers' trainers, and the quick scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from indexer.errors import ArgumentError
from rag.training.devscore import score_rows
from rag.training.heldout import is_held_out_concept, read_rows
from rag.training.mlm import MARKS, Masker, packed_rows, pretrain
from rag.training.settings import MlmSettings
from rag.training.student import Student
from tests import tiny_models
from tests.rag.made_training import WORDS, unigram_model, write_rows


@pytest.fixture(scope="module")
def tokenizer(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def silent(share, row) -> None:
    assert 0.0 <= share <= 1.0
    assert row


@pytest.mark.parametrize("whole_words", [False, True])
def test_masking_asks_for_at_most_twenty_of_128_and_never_for_special_tokens(tokenizer, whole_words):
    ids = tokenizer("fever cough pain rash edema nausea asthma anemia " * 4)["input_ids"][:128]
    batch = Masker(tokenizer, MlmSettings(masked=0.9, whole_words=whole_words), 0)(
        [{"input_ids": ids, "draw": draw} for draw in range(3)]
    )
    asked = batch["labels"] != -100
    assert asked.any(1).all()
    assert int(asked.sum(1).max()) <= 20 * len(ids) / 128
    assert not asked[:, 0].any()
    assert torch.equal(batch["labels"][asked], torch.tensor(ids).expand(3, -1)[asked])
    if whole_words:  # a word is hidden from its first piece to its last
        starts = [piece.startswith("▁") for piece in tokenizer.convert_ids_to_tokens(ids)]
        for row in asked:
            for at in range(2, len(ids) - 1):
                if not starts[at]:
                    assert bool(row[at]) == bool(row[at - 1])


@pytest.mark.parametrize("text", ["发热咳嗽" * 10, "thrombocytopenia", "fever" * 30])
def test_words_are_hidden_of_a_text_without_blanks_and_of_one_long_word(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    settings = MlmSettings(whole_words=True)
    asked = Masker(tokenizer, settings, 0)([{"input_ids": ids, "draw": draw} for draw in range(8)])["labels"] != -100
    assert asked.sum(1).tolist() == [max(1, min(int(len(ids) * 20 / 128), round(0.15 * (len(ids) - 2))))] * 8


def test_text_that_the_vocabulary_does_not_know_is_left_out(data, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models.bert(tmp_path / "bert"))
    write_rows(tmp_path / "notes" / "strange.jsonl.gz", [{"id": "1", "language": "en", "text": "☃ ☂ ☀ ☁ " * 10}])
    assert packed_rows(tmp_path, MlmSettings(sources=("notes/strange",)), tokenizer, 48, 0) == []


def test_rows_hold_whole_sentences_mixed_by_share_and_nothing_evaluated(data, tokenizer):
    one = MlmSettings(sources=("notes/aci_bench",))
    rows = packed_rows(data, one, tokenizer, 48, 0)
    assert rows
    assert max(map(len, rows)) <= 48
    twice = MlmSettings(sources=("notes/aci_bench",), shares=(2.0,))
    assert len(packed_rows(data, twice, tokenizer, 48, 0)) == 2 * len(rows)
    with pytest.raises(ArgumentError, match="shares"):
        packed_rows(data, MlmSettings(sources=("notes/aci_bench",), shares=(1.0, 1.0)), tokenizer, 48, 0)


def test_parallel_text_is_read_a_language_at_a_time_without_what_is_evaluated(data, tokenizer):
    rows = packed_rows(data, MlmSettings(sources=("parallel/tico19",)), tokenizer, 48, 0)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
    own = {key: set(WORDS[key]) - {"anemia"} for key in ("en", "zh", "es")}  # that one is Spanish as well
    spoken = [{key for key, words in own.items() if any(word in text for word in words)} for text in texts]
    assert [len(languages) for languages in spoken] == [1] * len(texts)
    assert set().union(*spoken) == {"en", "zh", "es"}
    held_out = [row["en"] for row in read_rows(data / "parallel" / "tico19.jsonl.gz") if "PubMed_10" in row["id"]]
    assert held_out
    assert not any(sentence in text for sentence in held_out for text in texts)


def test_pretraining_goes_on_after_a_kill_and_keeps_marks_whole(model, data, tmp_path):
    from transformers import AutoTokenizer

    settings = MlmSettings(
        sources=("notes/aci_bench",),
        steps=4,
        batch=4,
        max_length=32,
        duplication=1,
        learning_rate=1e-3,
        checkpoint_steps=2,
    )

    class KilledError(Exception):
        pass

    def kill(share, row) -> None:
        if row["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(model, data, tmp_path / "out", tmp_path, settings, 0, kill)
    # a second kill, in the middle of writing the next checkpoint
    half = tmp_path / "checkpoints" / "checkpoint-4"
    shutil.copytree(tmp_path / "checkpoints" / "checkpoint-2", half)
    (half / "optimizer.pt").write_bytes((half / "optimizer.pt").read_bytes()[:100])
    steps: list[int] = []
    pretrain(model, data, tmp_path / "out", tmp_path, settings, 0, lambda share, row: steps.append(row["step"]))
    assert min(steps) == 3
    (tmp_path / "whole").mkdir()
    whole = pretrain(model, data, tmp_path / "whole" / "out", tmp_path / "whole", settings, 0, silent)
    for name, value in load_file(whole / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for mark in MARKS:
        assert len(tokenizer(mark, add_special_tokens=False)["input_ids"]) <= 2
    assert Student(tmp_path / "out").encode(["fever"], "").shape == (1, 32)


def test_pretraining_out_of_memory_reads_a_batch_in_parts_and_ends_the_same(data, tmp_path, monkeypatch):
    model = unigram_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config | still))
    settings = MlmSettings(sources=("notes/aci_bench",), steps=2, batch=4, max_length=32, duplication=1)
    told: list[dict] = []

    def run(folder: Path) -> dict[str, torch.Tensor]:
        folder.mkdir()
        tell = lambda share, row: told.append(row)  # noqa: E731 - one line
        return load_file(pretrain(model, data, folder / "out", folder, settings, 0, tell) / "model.safetensors")

    whole = run(tmp_path / "whole")
    forward = transformers.BertForMaskedLM.forward

    def small_machine(self, input_ids=None, **options):
        if torch.is_grad_enabled() and len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.BertForMaskedLM, "forward", small_machine)
    tight = run(tmp_path / "tight")
    assert [row["micro_batch"] for row in told if "micro_batch" in row] == [2, 1]
    losses = [row["loss"]["mlm"] for row in told if "loss" in row]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-4)
    for name, value in whole.items():  # Adam's first steps are all of one size: what has no slope may go either way
        torch.testing.assert_close(tight[name], value, atol=3e-4, rtol=0)


def test_a_model_whose_prediction_head_is_of_several_parts_is_pretrained_too(data, tmp_path):
    model = unigram_model(tmp_path / "model")
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    config = transformers.DistilBertConfig(
        vocab_size=vocabulary, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    transformers.DistilBertModel(config).save_pretrained(model)
    settings = MlmSettings(sources=("notes/aci_bench",), steps=2, batch=2, max_length=32, duplication=1)
    told: list[float] = []
    out = pretrain(model, data, tmp_path / "out", tmp_path, settings, 0, lambda _, row: told.append(row["loss"]["mlm"]))
    assert all(0 < loss < 20 for loss in told)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
    name = "transformer.layer.0.ffn.lin1.weight"
    assert not torch.equal(before[name], after[name])


def test_two_stages_of_pretraining_hand_on_the_prediction_head(model, data, tmp_path, capfd):
    from rag.training.pipeline import run_recipe

    stage = '[[stage]]\nkind = "mlm"\nsources = ["notes/aci_bench"]\nsteps = 1\nbatch = 2\nmax_length = 32\n'
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[start]\nfrom = "{model.as_posix()}"\n{stage}{stage}learning_rate = 1e-9\n')
    run_recipe(recipe, tmp_path / "run", data)
    assert capfd.readouterr().out == "", "standard output is the command's, which may print JSON there"
    heads = [load_file(tmp_path / "run" / name / "masked" / "model.safetensors") for name in ("01-mlm", "02-mlm")]
    names = [name for name in heads[0] if name.startswith("cls.")]
    assert names
    for name in names:
        torch.testing.assert_close(heads[0][name], heads[1][name], atol=1e-6, rtol=1e-4)


def test_the_rows_of_held_out_terms_are_perfect_for_an_oracle_and_chance_for_noise(data):
    words = {word: number for words in WORDS.values() for number, word in enumerate(words)}

    def oracle(texts, side):
        rows = np.zeros((len(texts), 60), dtype=np.float32)
        for row, text in enumerate(texts):
            rows[row, int(text.split()[-1]) if text.split()[-1].isdigit() else words.get(text, 0)] = 1.0
        return rows

    rows = list(score_rows(oracle, data, 50, ["hpo"]))
    scored = {row.name: row for row in rows if len(row.values)}
    assert set(scored) == {"hpo zh->en", "hpo ja->en", "hpo es->en"}
    assert all(row.mean == 1.0 for row in scored.values())
    assert len(scored["hpo zh->en"].values) == sum(is_held_out_concept(f"HP:{n}") for n in range(60))


def test_the_log_of_a_stage_can_be_drawn(tmp_path):
    from rag.training.card import write_curve

    (tmp_path / "01-align").mkdir()
    rows = [{"step": n, "kind": "bitext", "loss": {"contrast": 1.0 / (n + 1)}} for n in range(5)]
    (tmp_path / "01-align" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_curve(tmp_path, {"start": {"a": 0.1}, "01-align": {"a": 0.3}})
    assert path is not None
    assert path.stat().st_size > 1000
