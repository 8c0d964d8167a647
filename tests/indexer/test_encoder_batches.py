"""How texts reach a model: batches of alike lengths, made ahead, and the same rows whatever the batches are."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexer.encoders import batches
from indexer.encoders.batches import ahead, best_dtype, by_length, on_device, padded
from indexer.errors import ArgumentError, EncoderUnavailableError
from rag.training.export import export_packed
from rag.training.folder import write_pooling
from tests import tiny_models

WORDS = ["the", "patient", "has", "fever", "pain", "no", "sin", "dolor", "mg"]


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget):
    made = by_length(lengths, budget)
    assert sorted(place for batch in made for place in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget
    longest = [max(lengths[place] for place in batch) for batch in made]
    assert longest == sorted(longest)
    # No two neighbours would have fitted into one.
    assert all((len(one) + 1) * lengths[after[0]] > budget for one, after in itertools.pairwise(made))


def test_padding_is_at_the_right_and_masked():
    features = padded([[5, 6, 7], [8]])
    assert features["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert features["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_items_come_in_order_made_by_another_thread_before_they_are_asked_for():
    second_made = threading.Event()
    makers = set()

    def items():
        for number in range(9):
            makers.add(threading.current_thread())
            if number == 2:
                second_made.set()
            yield number

    coming = ahead(items(), 4)
    assert next(coming) == 0
    assert second_made.wait(30)  # Nobody has asked for it yet.
    assert list(coming) == list(range(1, 9))
    assert len(makers) == 1
    assert threading.current_thread() not in makers


def test_an_error_is_raised_at_its_place_and_leaves_no_thread():
    def items():
        yield 1
        raise ArgumentError("texts[1]", "is too long")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ArgumentError, match="too long"):
        next(coming)
    left = ahead(iter(range(100)))
    next(left)
    left.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clinrag-tokenizer")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tiny_models.bert(tmp_path_factory.mktemp("float"))
    write_pooling(made, 32, 64)
    return made


@pytest.fixture(scope="module", params=["sentence", "packed"])
def encoder(request, folder, tmp_path_factory):
    if request.param == "packed":
        from indexer.encoders.packed import PackedEncoder

        made = tmp_path_factory.mktemp("packed")
        export_packed(folder, made, "tiny")
        return PackedEncoder(made, torch.float32, "cpu")
    from indexer.encoders.sentence import SentenceEncoder

    return SentenceEncoder(folder, device="cpu", dtype=torch.float32)


def some_texts(n: int) -> list[str]:
    rng = np.random.default_rng(n)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 40))) for _ in range(n)]


def test_rows_are_those_of_each_text_alone_in_order_through_many_windows(encoder, monkeypatch):
    texts = some_texts(70)
    texts[11] = " \n"
    alone = np.concatenate([encoder.encode_passages([text]) for text in texts])
    assert np.count_nonzero(~alone.any(axis=1)) == sum(not text.strip() for text in texts) >= 1
    assert len(np.unique(alone.round(4), axis=0)) > 50
    np.testing.assert_allclose(encoder.encode_passages(texts), alone, atol=1e-5)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 16)
    np.testing.assert_allclose(encoder.encode_passages(texts), alone, atol=1e-5)


def test_an_overlong_text_is_named_by_its_place_in_the_call_in_any_window(encoder, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    texts = ["fever"] * 12
    texts[9] = " ".join(["pain"] * (encoder.max_tokens + 3))
    with pytest.raises(ArgumentError, match=r"texts\[9\]"):
        encoder.encode_queries(texts)
    assert encoder.encode_queries(texts[:9]).any(axis=1).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_rows_equal_what_sentence_transformers_gives(folder):
    from sentence_transformers import SentenceTransformer

    from indexer.encoders.sentence import SentenceEncoder

    texts = [text for text in some_texts(40) if text]
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = model.encode(texts, prompt=model.prompts.get("query") or None, normalize_embeddings=True)
    rows = SentenceEncoder(folder, device="cpu", dtype=torch.float32).encode_queries(texts)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_many_threads_embed_and_measure_at_once(encoder):
    texts = some_texts(12)
    want, spans = encoder.encode_passages(texts), encoder.token_spans(texts)
    problems = []

    def work() -> None:
        for _ in range(4):
            rows = encoder.encode_passages(texts)
            found = encoder.token_spans(texts)
            if not np.allclose(rows, want, atol=1e-5) or any((a != b).any() for a, b in zip(found, spans, strict=True)):
                problems.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_dtypes_of_devices():
    assert best_dtype("cpu") in (torch.bfloat16, torch.float32)
    if not torch.cuda.is_available():
        assert best_dtype("cuda") == best_dtype("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_falls_back_to_the_cpu_with_one_warning():
    with pytest.warns(RuntimeWarning, match="cuda cannot be used .there is none.; embedding on the CPU") as caught:
        assert on_device(lambda name: name, "cuda") == "cpu"
    assert len(caught) == 1
    assert on_device(lambda name: name, None) == "cpu"


def test_a_full_device_falls_back_to_the_cpu_with_one_warning(monkeypatch):
    monkeypatch.setattr(batches, "fault_of", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def load(name: str) -> str:
        if name == "cuda":
            raise torch.OutOfMemoryError("no room")
        return name

    with pytest.warns(RuntimeWarning, match="it is full") as caught:
        assert on_device(load, None) == "cpu"
    assert len(caught) == 1


def test_a_device_that_is_seen_and_does_not_work_is_replaced_before_anything_is_loaded(monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(batches, "fault_of", lambda device: "CUDA error: no kernel image is available for execution")
    with pytest.warns(RuntimeWarning, match="cuda cannot be used .CUDA error: no kernel image"):
        on_device(loaded.append, None)
    assert loaded == ["cpu"]


def test_a_device_that_only_emulates_bfloat16_computes_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert best_dtype("cuda") == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert best_dtype("cuda:1") == torch.bfloat16


def test_a_batch_that_does_not_fit_is_halved_until_it_does(encoder, monkeypatch):
    texts, forward, sizes = some_texts(40), type(encoder)._forward, []
    want = encoder.encode_passages(texts)

    def small(self, features):
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, features)

    monkeypatch.setattr(type(encoder), "_forward", small)
    np.testing.assert_allclose(encoder.encode_passages(texts), want, atol=1e-5)
    assert max(sizes) > 3

    def never(self, features):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(encoder), "_forward", never)
    with pytest.raises(EncoderUnavailableError, match="has no room for a text of 11 tokens"):
        encoder.encode_passages(["fever", "fever"])


def test_an_error_that_is_not_the_devices_is_not_hidden():
    def load(name: str) -> str:
        raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        on_device(load, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["sentence", "packed"])
def test_rows_on_a_gpu_are_near_those_of_the_cpu(folder, tmp_path, kind):
    from indexer.encoders.packed import PackedEncoder
    from indexer.encoders.sentence import SentenceEncoder

    assert batches.fault_of("cuda") is None
    texts = some_texts(300)
    if kind == "packed":
        export_packed(folder, tmp_path, "tiny")
        one, other = PackedEncoder(tmp_path), PackedEncoder(tmp_path, torch.float32, "cpu")
    else:
        one, other = SentenceEncoder(folder), SentenceEncoder(folder, device="cpu", dtype=torch.float32)
    assert one.device.startswith("cuda")
    want = other.encode_passages(texts)
    np.testing.assert_allclose(one.encode_passages(texts), want, atol=3e-2)
    np.testing.assert_allclose(one.encode_queries(texts[:1]), other.encode_queries(texts[:1]), atol=3e-2)
