"""The pipeline on tiny random checkpoints: import, pruning, recipes and their runs, kill and resume, bad input."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.encoders.catalog import load_encoder
from indexer.errors import ArgumentError, ClinragError, SourceError
from rag.training.correction import measure, shift
from rag.training.export import export_packed
from rag.training.folder import import_package
from rag.training.package_weights import PackageFile, unpack_groups
from rag.training.pipeline import run_recipe
from rag.training.recipe import read_recipe, recipe_names, recipe_path
from rag.training.settings import STAGES
from rag.training.student import Student
from rag.training.vocabulary import choose_tokens, prune_folder, prune_tokenizer, token_shares

# import


def _grouped(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A matrix as it lies in the file: a float16 step and 16 bytes a group."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    blocks[:, :, :2] = np.full((rows, columns // 32, 1), 0.01, dtype="<f2").view(np.uint8)
    return blocks


def _package_file(
    path: Path,
    version: bytes = b"E5S1",
    texts: tuple[str, ...] = ("<s>", "<pad>", "</s>"),
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    rng = np.random.default_rng(0)
    tensors = {"emb.word": _grouped(rng, len(texts), 32), "x": np.arange(3, dtype="<f4"), **(more or {})}
    pieces = [piece.encode() for piece in texts]
    bounds = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    unknown = texts.index("<unk>") if "<unk>" in texts else 0
    shape = (32, 1, 2, 64, len(texts), 8, 2, 1e-12, 32)
    head = version + struct.pack("<I7ifi5iQ", 1, *shape, len(texts), 0, 2, 1, unknown, int(bounds[-1]))
    head += bounds.tobytes() + np.zeros(len(texts), dtype="<f4").tobytes() + b"".join(pieces)
    head += struct.pack("<iI", 0, 0)
    entries, blob = b"", b""
    size = len(head) + 4 + sum(2 + len(name) + 21 for name in tensors)
    for name, value in tensors.items():
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", 1, value.size, size + len(blob), value.nbytes)
        blob += value.tobytes()
    path.write_bytes(head + struct.pack("<i", len(tensors)) + entries + blob)
    return path


def test_the_package_file_becomes_a_model_and_its_embeddings_are_packed_as_they_were(tmp_path):
    rng = np.random.default_rng(1)
    shapes = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "fi": (64, 32), "fo": (32, 64)}
    more = {f"l0.{name}.w": _grouped(rng, *shape) for name, shape in shapes.items()}
    more |= {f"l0.{name}.b": np.zeros(rows, dtype="<f4") for name, (rows, _) in shapes.items()}
    for norm in ("emb.ln", "l0.aln", "l0.oln"):
        more |= {f"{norm}.w": np.ones(32, dtype="<f4"), f"{norm}.b": np.zeros(32, dtype="<f4")}
    places = {"emb.pos": rng.normal(size=8 * 32).astype("<f4"), "emb.type": np.zeros(32, dtype="<f4")}
    texts = ("<s>", "<pad>", "</s>", "<unk>", "▁fever", "▁query:", "▁", "<mask>")
    source = _package_file(tmp_path / "w.bin", texts=texts, more=more | places)
    import_package(source, tmp_path / "model")
    student = Student(tmp_path / "model").eval()
    assert student.token_ids(["fever"], "query: ") == [[0, 5, 4, 2]]
    file = PackageFile(source)
    words = student.body.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(words, file.matrix("emb.word", 8, 32))
    with torch.inference_mode():
        vector = student.encode(["fever"], "query: ").numpy()
    export_packed(tmp_path / "model", tmp_path / "packed", "tiny", file.groups("emb.word", 8, 32))
    found = load_encoder(str(tmp_path / "packed")).encode_queries(["fever"])
    np.testing.assert_allclose(found, vector, atol=0.05)


def test_the_package_file_is_read_back(tmp_path):
    file = PackageFile(_package_file(tmp_path / "w.bin"))
    assert (file.shape.hidden, file.shape.vocabulary, file.pieces.texts) == (32, 3, ["<s>", "<pad>", "</s>"])
    np.testing.assert_array_equal(file.vector("x"), [0, 1, 2])
    halves, steps = file.groups("emb.word", 3, 32)
    matrix = file.matrix("emb.word", 3, 32)
    assert matrix[1, 0] == (int(halves[1, 0, 0]) % 16 - 8) * float(steps[1, 0])
    assert matrix[1, 16] == (int(halves[1, 0, 0]) // 16 - 8) * float(steps[1, 0])


def test_another_file_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match="E5S1"):
        PackageFile(_package_file(tmp_path / "w.bin", b"GGUF"))
    with pytest.raises(SourceError, match="none"):
        PackageFile(tmp_path / "none.bin")


def test_groups_by_hand():
    halves = np.zeros((1, 1, 16), dtype=np.uint8)
    halves[0, 0, 0] = 0xF0
    row = unpack_groups(halves, np.array([[2.0]], dtype=np.float16))[0]
    assert (row[0], row[16], row[1]) == (-16.0, 14.0, -16.0)


# vocabulary


def test_kept_tokens_embed_as_before(model, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = [piece for piece, _ in content["model"]["vocab"]]
    special = [item["id"] for item in content["added_tokens"]]
    shares = [token_shares(tokenizer, [("fever and pain", 1.0), ("cough", 2.0)])]
    keep = choose_tokens(pieces, shares, len(pieces) - 3, special)
    assert pieces.index("ب") not in keep  # no script of the served languages
    assert {pieces.index("熱"), pieces.index("ж"), *special} <= set(keep)
    prune_folder(model, tmp_path / "pruned", keep)
    texts = ["fever", "発熱 咳嗽", "a rash: 12"]
    before, after = Student(model), Student(tmp_path / "pruned")
    for text in texts:
        old = [before.tokenizer.id_to_token(one) for one in before.token_ids([text], "query: ")[0]]
        assert [after.tokenizer.id_to_token(one) for one in after.token_ids([text], "query: ")[0]] == old
    with torch.inference_mode():
        torch.testing.assert_close(after.encode(texts, "query: "), before.encode(texts, "query: "))


def test_pruning_refuses_a_lost_special_token_and_other_tokenizers(model):
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    with pytest.raises(ArgumentError, match="<pad>"):
        prune_tokenizer(content, np.array([0, 2, 3, 4]))
    with pytest.raises(ArgumentError, match="WordLevel"):
        prune_tokenizer({"model": {"type": "WordLevel"}}, np.array([0]))
    with pytest.raises(ArgumentError, match="whatever their count"):
        choose_tokens(["熱", "咳"], [], 1, [])


# recipes and the whole run


def test_the_recipes_that_ship_can_be_read():
    assert {"compact", "multiclinicalbert"} <= set(recipe_names())
    for name in recipe_names():
        recipe = read_recipe(recipe_path(name))
        assert recipe.stages
        assert {stage.kind for stage in recipe.stages} <= set(STAGES)
    for name in ("nosuch", "away/compact.toml", "compact.toml"):
        with pytest.raises(SourceError, match="compact"):
            recipe_path(name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[stage]]\nkind = "pairs"', "start.from"),
        ('[start]\nfrom = "package"', "stage"),
        ('[start]\nfrom = "package"\n[[stage]]\nkind = "magic"', r"stage\[0\].kind"),
        ('[start]\nfrom = "package"\n[[stage]]\nkind = "align"\nstepz = 3', r"stage\[0\].stepz"),
        ('[start]\nfrom = "package"\n[[stage]]\nkind = "align"\nsteps = "3"', r"stage\[0\].steps"),
        ('colour = 1\n[start]\nfrom = "package"', "recipe.colour"),
        *(
            (f'{line}\n[start]\nfrom = "package"\n[[stage]]\nkind = "pairs"', named)
            for line, named in (
                ('seed = "x"', "recipe.seed must be of type int"),
                ("seed = -1", "recipe.seed must not be below 0"),
                ("languages = [1]", "recipe.languages"),
                ("dev = 5", "dev must be a table"),
            )
        ),
        ('[start]\nfrom = "package"\npooling = "median"\n[[stage]]\nkind = "pairs"', "start.pooling .* mean,"),
        ('[start]\nfrom = "package"\n[dev]\nrows = ["hbo"]\n[[stage]]\nkind = "pairs"', "dev.rows .* hpo"),
        *(
            (f'[start]\nfrom = "package"\n[[stage]]\nkind = {stage}', rf"stage\[0\]\.{named}")
            for stage, named in (
                ('["pairs"]', "kind"),
                ('"pairs"\nnotes = [1]', "notes must be of type str"),
                ('"pairs"\ndev = 1.5', "dev must lie between 0 and 1"),
                ('"contrast"\nbatch = 0', "batch must be above 0"),
                ('"contrast"\nepochs = nan', "epochs must be above 0"),
                ('"contrast"\nrounded = "int4"', "rounded is 'int4'; known are int8, binary"),
                ('"contrast"\ndims = ["8"]', "dims must be of type int"),
                ('"transplant"\nmethod = "best"', "method is 'best'"),
                ('"mlm"', "sources is empty"),
                ('"mlm"\nsources = ["a"]\nshares = [1, 2]', "shares has 2 values for 1 sources"),
                ('"align"', "steps or minutes"),
                ('"align"\nsteps = 3\nminutes = 1', "steps or minutes"),
                ('"align"\nsteps = 3\ncycle = ["word"]', "cycle is 'word'; known are bitext"),
                ('"align"\nsteps = 3\ninterpolate = 65', "interpolate must lie between 0 and 1"),
            )
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_key(tmp_path, text, named):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=named):
        read_recipe(path)


def test_a_recipe_that_is_no_toml_is_refused(tmp_path):
    (tmp_path / "r.toml").write_text("[start\n")
    with pytest.raises(SourceError, match=r"r\.toml"):
        read_recipe(tmp_path / "r.toml")


RECIPE = """
name = "tiny"
languages = ["en", "zh"]
licence = "MIT"
[start]
from = "{start}"
[[stage]]
kind = "prune"
size = {size}
[[stage]]
kind = "pairs"
[[stage]]
kind = "synonyms"
steps = 2
batch = 8
graded = true
[[stage]]
kind = "align"
steps = {steps}
max_length = 32
bfloat16 = false
cycle = ["bitext", "terms", "keep"]
[[stage]]
kind = "correct"
pairs = 8
[[stage]]
kind = "export"
"""


def _recipe(folder: Path, model: Path, steps: int = 3) -> Path:
    size = len(json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) - 2
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(start=model.as_posix(), size=size, steps=steps))
    return path


def test_a_recipe_runs_from_start_to_packed_model_with_scores_card_and_picture(model, data, tmp_path):
    from sentence_transformers import SentenceTransformer

    from indexer.encoders.catalog import load_encoder
    from indexer.encoders.packed import PackedEncoder
    from rag.training.correction import read_offsets

    seen: list[str] = []
    asked: list[Path] = []

    def score(folder: Path) -> dict[str, float]:
        asked.append(folder)
        return {"made": len(asked) / 10}

    report = run_recipe(
        _recipe(tmp_path, model), tmp_path / "run", data, score, lambda progress: seen.append(progress.stage)
    )
    assert list(dict.fromkeys(seen)) == ["prune", "pairs", "synonyms", "align", "correct", "export"]
    assert list(report.scores) == ["start", "01-prune", "03-synonyms", "04-align", "05-correct"]
    vector = SentenceTransformer(str(report.model), device="cpu").encode(["fever"], prompt_name="passage")
    assert report.packed is not None
    packed = PackedEncoder(report.packed, torch.float32).encode_passages(["fever"])
    assert isinstance(load_encoder(str(report.packed)), PackedEncoder)
    assert float((vector * packed).sum()) > 0.99
    card = report.card.read_text(encoding="utf-8")
    for piece in ("CC0 1.0", "## Scores", "sha256", 'kind = "align"', "language: [en, zh]"):
        assert piece in card
    assert (tmp_path / "run" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    log = json.loads((tmp_path / "run" / "05-correct" / "log.jsonl").read_text())
    kept = log["score"]["mixed pool on"] > log["score"]["mixed pool off"]
    assert bool(read_offsets(report.model)) == kept


def test_a_languages_offset_is_found_taken_off_and_kept_only_where_it_helps():
    chance = np.random.default_rng(0)
    meanings = chance.normal(size=(60, 8)).astype(np.float32)
    marks = {"en": np.zeros(8), "zh": chance.normal(size=8) * 4}

    def encode(texts, side):
        rows = np.stack([meanings[int(text.split()[1])] + marks[text.split()[0]] * strength for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    rows = [{"en": f"en {n}", "zh": f"zh {n}"} for n in range(60)]
    strength = 1.0  # the language before the meaning
    found = measure(encode, rows, 30)
    assert found.on > found.off
    moved = shift(encode(["zh 1", "zh 1"], "passage"), ["zh", "xx"], found.offsets)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(moved[1:], encode(["zh 1"], "passage"))
    assert not np.allclose(moved[0], moved[1], atol=0.1)
    strength = 0.0
    alike = measure(encode, rows, 30)
    assert alike.off == alike.on == 1.0
    with pytest.raises(ArgumentError, match=r"correct\.pairs"):
        measure(encode, rows, 60)


def test_finished_stages_are_not_run_again_and_a_changed_one_is_with_all_behind_it(model, data, tmp_path):
    def run(steps: int) -> list[str]:
        seen: list[str] = []
        path = _recipe(tmp_path, model, steps)
        run_recipe(path, tmp_path / "run", data, None, lambda progress: seen.append(progress.stage))
        return list(dict.fromkeys(seen))

    assert "prune" in run(2)
    assert run(2) == []
    assert run(3) == ["align", "correct", "export"]


def test_a_run_killed_in_a_stage_goes_on_in_that_stage(model, data, tmp_path):
    class KilledError(Exception):
        pass

    def kill(progress) -> None:
        if progress.stage == "align" and progress.row["step"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_recipe(_recipe(tmp_path, model), tmp_path / "run", data, None, kill)
    seen: list[str] = []
    run_recipe(_recipe(tmp_path, model), tmp_path / "run", data, None, lambda progress: seen.append(progress.stage))
    assert "synonyms" not in seen
    assert (tmp_path / "run" / "model" / "modules.json").is_file()


def test_a_start_that_is_not_there_and_data_that_is_not_there_are_named(model, data, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[start]\nfrom = "nosuch"\n[[stage]]\nkind = "pairs"\n')
    with pytest.raises(ClinragError, match="nosuch"):
        run_recipe(path, tmp_path / "run", data)
    with pytest.raises(ArgumentError, match="data"):
        run_recipe(path, tmp_path / "run", tmp_path / "away")


def test_the_command_line_runs_a_recipe_and_says_how_to_take_the_result(model, data, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from api.cli.main import cli

    monkeypatch.delenv("CLINRAG_DATA", raising=False)
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[start]\nfrom = "{model.as_posix()}"\n[[stage]]\nkind = "pairs"\n[[stage]]\nkind = "export"\n')
    arguments = ["--home", str(tmp_path / "home"), "train", str(recipe), "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 2
    assert "--data" in refused.output
    done = CliRunner().invoke(cli, [*arguments, "--data", str(data), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert Path(found["packed"], "model.safetensors").is_file()
    assert "pairs 1/2" in done.stderr
