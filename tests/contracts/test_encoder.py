"""The encoder port's suite: every implementation runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.encoders.encoder import Encoder, HashingEncoder
from indexer.errors import ArgumentError

TEXTS = ["the patient has fever", "sin dolor", "患者発熱無", "жар 38.5", "a", "PAIN! no pain; 2.5 mg"]


class EncoderContract:
    """Subclass it with an `encoder` fixture."""

    def test_rows_are_float32_unit_vectors_in_the_order_of_the_texts(self, encoder: Encoder):
        rows = encoder.encode_passages(TEXTS)
        assert rows.shape == (len(TEXTS), encoder.spec.dim)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(encoder.encode_passages(TEXTS[::-1])[::-1], rows, atol=2e-2)

    def test_no_texts_give_no_rows_of_full_width(self, encoder: Encoder):
        for rows in (encoder.encode_passages([]), encoder.encode_queries([])):
            assert rows.shape == (0, encoder.spec.dim)
            assert rows.dtype == np.float32
        assert encoder.token_spans([]) == []

    def test_blank_text_is_a_zero_row_and_leaves_the_others_alone(self, encoder: Encoder):
        rows = encoder.encode_queries(["", "the patient", " \n\u3000"])
        assert not rows[0].any()
        assert not rows[2].any()
        np.testing.assert_allclose(np.linalg.norm(rows[1]), 1.0, atol=1e-5)

    def test_equal_texts_give_equal_rows(self, encoder: Encoder):
        first, second = encoder.encode_passages(["sin fiebre", "sin fiebre"])
        np.testing.assert_allclose(first, second, atol=1e-6)

    def test_an_overlong_text_is_refused_by_its_index_and_the_longest_is_taken(self, encoder: Encoder):
        fits = " ".join(["pain"] * encoder.max_tokens)
        assert len(encoder.token_spans([fits])[0]) == encoder.max_tokens
        assert encoder.encode_passages([fits]).shape == (1, encoder.spec.dim)
        with pytest.raises(ArgumentError, match=r"texts\[1\]"):
            encoder.encode_passages(["ok", fits + " pain pain"])

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(max_size=60))
    def test_token_spans_ascend_inside_the_text(self, encoder: Encoder, text: str):
        spans = encoder.token_spans([text])[0]
        assert spans.dtype == np.int64
        assert spans.shape[1] == 2
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (np.diff(spans[:, 0]) >= 0).all()
        assert not len(spans) or (spans[0, 0] >= 0 and spans[-1, 1] <= len(text))

    def test_the_fingerprint_is_stable_and_hexadecimal(self, encoder: Encoder):
        assert encoder.spec.fingerprint == encoder.spec.fingerprint
        assert len(encoder.spec.fingerprint) == 64


class TestHashing(EncoderContract):
    @pytest.fixture
    def encoder(self) -> Encoder:
        return HashingEncoder()

    def test_a_row_by_hand(self):
        rows = HashingEncoder(dim=64).encode_passages(["ab"])
        import zlib

        expected = np.zeros(64)
        for feature in (" ab ", " ab", "ab "):
            code = zlib.crc32(feature.encode())
            expected[code % 64] += 1.0 if (code // 64) % 2 == 0 else -1.0
        np.testing.assert_allclose(rows[0], expected / np.linalg.norm(expected), atol=1e-6)

    def test_shared_words_are_nearer_than_none(self, encoder: Encoder):
        apixaban, same, other = encoder.encode_passages(["apixaban 5 mg", "toma apixaban", "glucose normal"])
        assert apixaban @ same > apixaban @ other


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests import tiny_models

    root = tmp_path_factory.mktemp("models")
    folders = {}
    for name in ("bert", "modernbert", "roberta"):
        folder = root / name
        folder.mkdir()
        folders[name] = getattr(tiny_models, name)(folder)
    return folders


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestSentence(EncoderContract):
    @pytest.fixture(scope="class", params=["bert", "modernbert", "roberta"])
    def encoder(self, request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> Encoder:
        from indexer.encoders.catalog import load_encoder

        return load_encoder(str(tiny_folders[request.param]))

    def test_mean_pooling_and_length_come_from_the_config(self, tiny_folders: dict[str, Path]):
        from indexer.encoders.sentence import SentenceEncoder

        long = SentenceEncoder(tiny_folders["modernbert"])
        short = SentenceEncoder(tiny_folders["bert"])
        assert long.spec.pooling == short.spec.pooling == "mean"
        assert (long.spec.max_length, short.spec.max_length) == (1024, 64)
        assert long.spec.fingerprint != short.spec.fingerprint

    def test_mean_pooling_equals_the_mean_of_the_last_layer(self, tiny_folders: dict[str, Path]):
        import torch
        import transformers

        from indexer.encoders.sentence import SentenceEncoder

        folder = tiny_folders["bert"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        body = transformers.AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            states = body(**tokenizer(["the patient has fever"], return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0).numpy()
        row = SentenceEncoder(folder).encode_passages(["the patient has fever"])[0]
        assert float(row @ mean / np.linalg.norm(mean)) > 0.999


def _more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1}))


def _without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _more_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = words | {f"new{n}": len(words) + n for n in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_more_layers, "lacks 16 of the model's weights"),
        (_without_a_weight, "lacks 1 of the model's weights"),
        (_more_tokens, "the tokenizer in bert is another model's"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("null"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "cannot be loaded"),
        (lambda folder: (folder / "modules.json").write_text("null"), "cannot be loaded"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_not_filled_up(
    tiny_folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], reason: str
):
    from indexer.encoders.catalog import load_encoder
    from indexer.errors import EncoderUnavailableError

    folder = Path(shutil.copytree(tiny_folders["bert"], tmp_path / "bert"))
    damage(folder)
    with pytest.raises(EncoderUnavailableError, match=reason):
        load_encoder(str(folder))


@pytest.fixture(scope="session", params=["", "passage: "])
def static_encoder(
    request: pytest.FixtureRequest, tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Encoder:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    from indexer.encoders.catalog import load_encoder

    tokenizer = Tokenizer.from_file(str(tiny_folders["bert"] / "tokenizer.json"))
    torch.manual_seed(0)
    modules = [StaticEmbedding(tokenizer, embedding_dim=16), Normalize()]
    prompts = {"query": request.param, "passage": request.param}
    folder = tmp_path_factory.mktemp("static")
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder), create_model_card=False)
    return load_encoder(str(folder))


def test_a_table_whose_prompts_cannot_be_read_is_refused(tiny_folders: dict[str, Path], tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    from indexer.encoders.static import StaticEncoder
    from indexer.errors import EncoderUnavailableError

    shutil.copy(tiny_folders["bert"] / "tokenizer.json", tmp_path)
    save_file({"embedding.weight": torch.ones(200, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "modules.json").write_text('[{"path": "", "type": "StaticEmbedding"}]')
    assert StaticEncoder(tmp_path).spec.query_prompt == ""
    for damaged in ("{", "null", "[]"):
        (tmp_path / "config_sentence_transformers.json").write_text(damaged)
        with pytest.raises(EncoderUnavailableError, match="no readable config_sentence"):
            StaticEncoder(tmp_path)


class TestStatic(EncoderContract):
    @pytest.fixture
    def encoder(self, static_encoder: Encoder) -> Encoder:
        return static_encoder

    def test_the_folder_is_read_as_a_table_with_its_prompts(self, encoder: Encoder):
        from indexer.encoders.static import StaticEncoder

        assert isinstance(encoder, StaticEncoder)
        assert encoder.spec.query_prompt == encoder.spec.passage_prompt
        assert encoder.spec.query_prompt in {"", "passage: "}


def test_names_that_are_nothing_are_refused_with_the_mend():
    from indexer.encoders.catalog import load_encoder
    from indexer.errors import EncoderUnavailableError

    with pytest.raises(EncoderUnavailableError, match="no encoder 'compacct'"):
        load_encoder("compacct")
    with pytest.raises(EncoderUnavailableError, match="encoders fetch"):
        load_encoder("multiclinicalbert")


def test_a_folder_without_safetensors_is_refused_and_pickled_weights_are_not_read(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch
):
    import torch
    from safetensors.torch import load_file

    from indexer.encoders.catalog import load_encoder
    from indexer.errors import EncoderUnavailableError

    folder = shutil.copytree(tiny_folders["bert"], tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(EncoderUnavailableError, match="pickled ones are not loaded"):
        load_encoder(str(folder))
