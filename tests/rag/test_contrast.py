"""Contrastive tuning: every option changes what it says it changes; memory that runs out and kills lose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from indexer.errors import ArgumentError
from rag.training.contrast import build_loss, rounded, tune
from rag.training.contrast_rows import contrast_dataset, contrast_rows, mine_negatives
from rag.training.memory import within_memory
from rag.training.pair_files import PairRow, write_pairs
from rag.training.pairs import build
from rag.training.settings import ContrastSettings
from rag.training.watch import DevWatch, model_encode
from tests.rag.made_training import WORDS, data_folder, unigram_model

ANCHORS = ["fever and cough", "pain", "发热 咳嗽", "a rash of the skin"]
POSITIVES = ["the patient is hot", "dolor intenso", "fever, cough", "皮疹"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = unigram_model(tmp_path_factory.mktemp("model"))
    config = json.loads((made / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that two runs can be compared
    (made / "config.json").write_text(json.dumps(config | still))
    return made


@pytest.fixture
def model(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    build(data_folder(tmp_path_factory.mktemp("data")), out)
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Own pairs alone, a dozen."""
    words = [(language, word) for language in ("en", "zh", "es") for word in WORDS[language][:5]]
    rows = [
        PairRow(str(n), "own", "pair", f"{word} {n}", language, f"the patient has {word}", "en", (f"no {word}",))
        for n, (language, word) in enumerate(words)
    ]
    out = tmp_path_factory.mktemp("few")
    write_pairs(rows, out / "mined.jsonl")
    return out


def silent(share, row) -> None:
    assert 0.0 <= share <= 1.0
    assert row


def loss_and_gradient(model, settings: ContrastSettings, *columns: list[str]) -> tuple[float, torch.Tensor]:
    """The loss of one batch and its gradient at the last layer's weights."""
    _, loss = build_loss(model, settings)
    model.zero_grad()
    value = loss([model.preprocess(list(texts)) for texts in columns], torch.zeros(len(columns[0])))
    value.backward()
    weight = model[0].auto_model.encoder.layer[-1].output.dense.weight
    return float(value.detach()), weight.grad.clone()


# the loss


def test_a_cached_batch_has_the_gradient_of_the_whole_batch(model):
    whole, gradient = loss_and_gradient(model, ContrastSettings(micro_batch=4), ANCHORS, POSITIVES)
    cached, in_parts = loss_and_gradient(model, ContrastSettings(micro_batch=1), ANCHORS, POSITIVES)
    assert cached == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(in_parts, gradient, atol=1e-5, rtol=1e-3)


def test_own_hard_negatives_raise_the_loss(model):
    plain, _ = loss_and_gradient(model, ContrastSettings(), ANCHORS, POSITIVES)
    harder, _ = loss_and_gradient(model, ContrastSettings(), ANCHORS, POSITIVES, [text + "." for text in ANCHORS])
    assert harder > plain


def test_a_guide_lets_a_passage_that_answers_as_well_be_no_negative(model, folder):
    # the second passage says what the first query says: no negative of it
    anchors, positives = ["fever and cough", "pain"], ["dolor intenso", "fever and cough"]
    free, _ = loss_and_gradient(model, ContrastSettings(), anchors, positives)
    guided, _ = loss_and_gradient(model, ContrastSettings(guide=str(folder)), anchors, positives)
    blind = build_loss(model, ContrastSettings(guide=str(folder)))[0]
    blind.margin = -10.0  # a guide that finds nothing near
    assert guided < free
    with torch.no_grad():
        features = [model.preprocess(anchors), model.preprocess(positives)]
        assert guided < float(blind(features, torch.zeros(2)))


def test_a_guide_may_be_named_as_any_encoder_is(model, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    anchors, positives = ["fever", "pain"], ["fiebre", "dolor"]
    by_path, _ = loss_and_gradient(model, ContrastSettings(guide=str(folder)), anchors, positives)
    by_name, _ = loss_and_gradient(model, ContrastSettings(guide="multiclinicalbert"), anchors, positives)
    assert by_name == by_path


def test_matryoshka_dimensions_are_trained_along(model):
    def reps(dim: int) -> list[list[torch.Tensor]]:
        rows = [torch.from_numpy(model.encode(texts, prompt=""))[:, :dim] for texts in (ANCHORS, POSITIVES)]
        return [[one] for one in rows]

    core, _ = build_loss(model, ContrastSettings())
    by_hand = sum(float(core.calculate_loss(reps(dim)).detach()) for dim in (32, 8))
    found, gradient = loss_and_gradient(model, ContrastSettings(dims=(32, 8)), ANCHORS, POSITIVES)
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert not torch.allclose(gradient, loss_and_gradient(model, ContrastSettings(), ANCHORS, POSITIVES)[1])


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_rounded_vectors_are_trained_along(model, kind):
    kept = [[rounded(torch.from_numpy(model.encode(texts, prompt="")), kind)] for texts in (ANCHORS, POSITIVES)]
    core, _ = build_loss(model, ContrastSettings())
    plain, gradient = loss_and_gradient(model, ContrastSettings(), ANCHORS, POSITIVES)
    found, other = loss_and_gradient(model, ContrastSettings(rounded=kind), ANCHORS, POSITIVES)
    assert found == pytest.approx(plain + float(core.calculate_loss(kept).detach()), rel=1e-4)
    assert not torch.allclose(gradient, other)


def test_rounding_by_hand():
    rows = torch.tensor([[1.0, -0.5, 0.003]])
    assert rounded(rows, "binary").tolist() == [[1.0, -1.0, 1.0]]
    np.testing.assert_allclose(rounded(rows, "int8"), [[1.0, -64 / 127, 0.0]], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (ContrastSettings(dims=(64, 8)), "contrast.dims"),
        (ContrastSettings(dims=(16, 8)), "contrast.dims"),
        (ContrastSettings(rounded="int4"), "contrast.rounded"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(model, settings, named):
    with pytest.raises(ArgumentError, match=named):
        build_loss(model, settings)


# the rows


def test_one_batch_mixes_rows_of_one_language_and_crossing_ones(pairs, model):
    rows = contrast_rows(pairs, 0)
    assert {row.kind for row in rows} == {"bitext", "terms", "questions", "titles"}
    crossing = [row.language != row.passage_language for row in rows]
    assert {True, False} == set(crossing)
    siblings = [row for row in rows if row.kind == "terms" and row.negatives]
    assert siblings
    for row in siblings:  # same-language hard negatives against the positive of another language
        assert row.negatives[0].split()[0] in " ".join(WORDS[row.language])
    data = contrast_dataset(rows, model, ContrastSettings(), 0)
    assert data.column_names == ["anchor", "positive", "negative_1"]
    first = next(number for number, row in enumerate(rows) if row.negatives)
    assert data[first]["negative_1"] == rows[first].negatives[0]
    assert contrast_rows(pairs, 0) == rows


def test_mined_negatives_are_of_the_querys_language_and_surely_no_answer(pairs, model):
    rows = contrast_rows(pairs, 0)[::7]
    settings = ContrastSettings(negatives=2, negatives_margin=0.999)
    mined = mine_negatives(rows, model, settings)
    assert any(mined)
    languages: dict[str, set[str]] = {}
    concepts: dict[str, set[str]] = {}
    for row in rows:
        for text, language in ((row.passage, row.passage_language), (row.query, row.language)):
            languages.setdefault(text, set()).add(language)
            concepts.setdefault(text, set()).update(row.concepts)
    vectors = dict(zip(texts := sorted(languages), model_encode(model)(texts, "passage"), strict=True))
    queries = model_encode(model)([row.query for row in rows], "query")
    for row, query, negatives in zip(rows, queries, mined, strict=True):
        assert len(negatives) <= 2
        for text in negatives:
            assert float(query @ vectors[text]) < 0.999 * float(query @ vectors[row.passage]) + 1e-4
            assert row.language in languages[text]
            assert text not in (row.query, row.passage)
            assert not concepts[text] & set(row.concepts)
    tight = mine_negatives(rows, model, ContrastSettings(negatives=2, negatives_margin=0.5))
    assert sum(map(len, tight)) < sum(map(len, mined))  # the margin keeps what scores near the positive out


def test_pairs_without_rows_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="no row"):
        contrast_rows(tmp_path, 0)


# the run


def _run(folder: Path, pairs: Path, out: Path, tell=silent, watch=None, **settings) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    chosen = ContrastSettings(
        **{"steps": 3, "batch": 6, "micro_batch": 4, "learning_rate": 1e-3, "max_length": 32, "checkpoint_steps": 1}
        | settings
    )
    out.mkdir(exist_ok=True)
    tune(folder, pairs, out / "model", out, chosen, 0, tell, watch)
    return load_file(out / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "settings", [{"negatives": 1, "dims": (32, 16), "rounded": "binary"}, {"guide": True}], ids=["all", "guided"]
)
def test_tuning_moves_the_body_and_leaves_embeddings_and_length_alone(folder, few, tmp_path, settings, capfd):
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    if "guide" in settings:
        settings = {"guide": str(folder)}
    before, after = load_file(folder / "model.safetensors"), _run(folder, few, tmp_path / "run", steps=2, **settings)
    assert capfd.readouterr().out == "", "standard output is the command's, which may print JSON there"
    words = next(name for name in before if name.endswith("word_embeddings.weight"))
    assert torch.equal(before[words], after[words])
    assert any(not torch.allclose(before[name], after[name]) for name in before if name != words)
    length = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu").max_seq_length
    assert length == 64  # cut to 32 in training alone


def test_a_killed_tuning_goes_on_and_ends_like_one_that_was_not(folder, few, tmp_path):
    class KilledError(Exception):
        pass

    def kill(share, row) -> None:
        if row["step"] == 3:
            raise KilledError

    whole = _run(folder, few, tmp_path / "whole")
    with pytest.raises(KilledError):
        _run(folder, few, tmp_path / "cut", kill)
    steps: list[int] = []
    again = _run(folder, few, tmp_path / "cut", lambda share, row: steps.append(row["step"]))
    assert min(steps) == 3
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


def test_out_of_memory_halves_the_micro_batch_and_the_result_is_the_same(folder, few, tmp_path, monkeypatch):
    import sentence_transformers

    whole = _run(folder, few, tmp_path / "whole", steps=2)
    forward = sentence_transformers.SentenceTransformer.forward
    told: list[dict] = []

    def small_machine(self, features, *args, **kwargs):
        if torch.is_grad_enabled() and len(features["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, features, *args, **kwargs)

    monkeypatch.setattr(sentence_transformers.SentenceTransformer, "forward", small_machine)
    tight = _run(folder, few, tmp_path / "tight", lambda share, row: told.append(row), steps=2)
    assert [row["micro_batch"] for row in told if "micro_batch" in row] == [2, 1]
    for name, value in whole.items():
        torch.testing.assert_close(tight[name], value, atol=1e-5, rtol=1e-3)


def test_a_step_that_never_fits_and_an_error_of_another_kind_are_told():
    def full() -> None:
        raise MemoryError

    def broken() -> None:
        raise RuntimeError("shapes differ")

    sizes = [4]

    def halve() -> bool:
        sizes.append(sizes[-1] // 2)
        return sizes[-1] > 0

    with pytest.raises(ArgumentError, match="one text does not fit"):
        within_memory(full, halve)
    assert sizes == [4, 2, 1, 0]
    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(broken, halve)


# scores while it trains


def test_a_run_is_watched_every_so_many_minutes_and_the_best_is_kept(folder, few, tmp_path):
    times = iter(range(0, 10_000, 40))
    scores = iter([0.2, 0.6, 0.4])
    told: list[dict] = []

    def score(encode) -> dict[str, float]:
        assert encode(["fever"], "query").shape == (1, 32)
        return {"own": next(scores), "tico same-language zh": 0.9}

    out = tmp_path / "run"
    out.mkdir()
    watch = DevWatch(score, 1.0, out, lambda share, row: told.append(row), lambda: float(next(times)))
    _run(folder, few, out, watch=watch, steps=6)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    looks = [row for row in rows if row["kind"] == "dev"]
    assert [row["mean"] for row in looks] == [0.2, 0.6, 0.4]  # the share of unrelated texts is no part of it
    assert len({row["step"] for row in looks}) == 3
    best = json.loads((out / "best.json").read_text())
    assert best["mean"] == 0.6
    assert (out / "best" / "modules.json").is_file()
    assert [row["dev"] for row in told] == [0.2, 0.6, 0.4]
    later = DevWatch(lambda encode: {"own": 0.5}, 1.0, out, silent)  # an interrupted run remembers
    later.look(7, 1.0, lambda texts, side: np.zeros((0, 1)), lambda to: pytest.fail("0.5 is no better"))


def test_held_out_pairs_score_what_an_encoder_finds():
    from rag.training.devscore import score_pairs

    rows = [PairRow(str(n), "s", "section", f"q{n}", "en", f"p{n}", "en", (f"x{n}",)) for n in range(4)]
    rows += [PairRow("c", "s", "label", "q0", "zh", "p3", "en")]

    def oracle(texts, side):
        found = np.zeros((len(texts), 5), dtype=np.float32)
        for row, text in enumerate(texts):
            found[row, int(text[1:]) if text[0] in "qp" else 4] = 1.0
        return found

    scored = {row.name: row for row in score_pairs(oracle, rows, 10)}
    assert {name: row.mean for name, row in scored.items()} == {"own section": 1.0, "own label crossing": 1.0}
    assert list(score_pairs(oracle, [], 10)) == []
