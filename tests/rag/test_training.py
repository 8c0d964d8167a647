"""The pipeline on tiny random checkpoints: import, pruning, losses, stages, kill and resume, bad input."""

from __future__ import annotations

import errno
import json
import struct
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from indexer.errors import ArgumentError, ClinragError, SourceError, StorageFullError
from rag.training import losses
from rag.training.align import AlignSettings, align, save_average
from rag.training.batches import Sampler, Sizes
from rag.training.checkpoint import load_checkpoint, save_checkpoint, told_when_full
from rag.training.correction import measure, shift
from rag.training.package_weights import PackageFile, unpack_groups
from rag.training.pairs import build
from rag.training.pipeline import run_recipe
from rag.training.recipe import STAGES, read_recipe, recipe_names, recipe_path
from rag.training.student import Student, Teacher
from rag.training.synonyms import graded, multi_similarity
from rag.training.vocabulary import choose_tokens, prune_folder, prune_tokenizer, token_shares
from rag.training.watch import DevWatch, student_encode
from tests.rag.made_training import data_folder, unigram_model

SIZES = Sizes(bitext_characters=200, terms=6, statements=3, questions=4, titles=3, keep=4)
ALL_KINDS = ("bitext", "terms", "statements", "questions", "titles", "keep")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    build(data, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return unigram_model(tmp_path_factory.mktemp("model"))


# import


def _package_file(path: Path, version: bytes = b"E5S1") -> Path:
    rng = np.random.default_rng(0)
    tensors = {"emb.word": rng.integers(0, 256, (3, 1, 18), dtype=np.uint8), "x": np.arange(3, dtype="<f4")}
    tensors["emb.word"][:, :, :2] = np.full((3, 1), 0.5, dtype="<f2").view(np.uint8)[:, None, :].reshape(3, 1, 2)
    pieces = [piece.encode() for piece in ("<s>", "<pad>", "</s>")]
    bounds = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    head = version + struct.pack("<I7ifi5iQ", 1, 32, 1, 2, 64, 3, 8, 2, 1e-12, 32, 3, 0, 2, 1, 0, int(bounds[-1]))
    head += bounds.tobytes() + np.zeros(3, dtype="<f4").tobytes() + b"".join(pieces) + struct.pack("<iI", 0, 0)
    entries, blob = b"", b""
    size = len(head) + 4 + sum(2 + len(name) + 21 for name in tensors)
    for name, value in tensors.items():
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", 1, value.size, size + len(blob), value.nbytes)
        blob += value.tobytes()
    path.write_bytes(head + struct.pack("<i", len(tensors)) + entries + blob)
    return path


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


# losses


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_contrast_by_hand_and_equal_keys_are_no_negatives():
    rows = unit([1.0, 0.0], [0.0, 1.0])
    # each row: its partner at 1, the other partner and the own neighbour at 0
    expected = float(torch.log(1 + 2 * torch.exp(torch.tensor(-5.0))))
    assert float(losses.contrast(rows, rows, ["a", "b"], 5.0)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.contrast(rows, rows, ["a", "a"], 5.0)) == pytest.approx(0.0, abs=1e-6)


def test_contrast_punishes_vectors_that_say_the_language_first():
    meaning_first = unit([1.0, 0.2], [0.2, 1.0]), unit([1.0, 0.3], [0.3, 1.0])
    language_first = unit([1.0, 0.0, 5.0], [0.0, 1.0, 5.0]), unit([1.0, 0.0, -5.0], [0.0, 1.0, -5.0])
    assert losses.contrast(*language_first, ["a", "b"], 20.0) > 2 * losses.contrast(*meaning_first, ["a", "b"], 20.0)


def test_kept_structure_is_nought_for_the_teacher_itself_and_grows():
    rows = unit([1.0, 0.1, 0.0], [0.2, 1.0, 0.3], [0.0, 0.4, 1.0])
    other = unit([1.0, 0.9, 0.0], [0.2, 1.0, 0.3], [0.9, 0.4, 1.0])
    assert float(losses.kept_structure(rows, rows, rows, rows, 40.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.kept_structure(other, other, rows, rows, 40.0)) > 0.01


def test_multi_similarity_falls_when_names_of_a_concept_come_together():
    apart = unit([1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0])
    together = unit([1.0, 0.0], [1.0, 0.05], [0.0, 1.0], [0.05, 1.0])
    assert multi_similarity(together, "aabb") < multi_similarity(apart, "aabb")


def test_grades_are_ordered_synonym_parent_sibling_unrelated():
    relations = [(0, 1, "synonym"), (0, 2, "parent"), (0, 3, "sibling"), (0, 4, "unrelated")]
    angles = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.6])
    right = torch.stack([torch.cos(angles), torch.sin(angles)], 1)
    assert float(graded(right, relations)) == 0.0
    for first, second in ((1, 2), (2, 3), (3, 4)):
        swapped = right.clone()
        swapped[[first, second]] = right[[second, first]]
        assert float(graded(swapped, relations)) > 0.0


# student, teacher, alignment


def test_a_vector_does_not_depend_on_its_neighbours_and_order_is_kept(model):
    student = Student(model).eval()
    texts = ["fever", "a long text of cough and pain and rash", "発熱", "x"]
    with torch.inference_mode():
        together = student.encode(texts, "query: ")
        alone = torch.cat([student.encode([text], "query: ") for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_teacher_remembers_and_stays_as_it_was(model):
    teacher = Teacher(Student(model))
    first = teacher.encode(["fever", "pain"], "query: ")
    torch.testing.assert_close(teacher.encode(["pain", "fever"], "query: "), first.flip(0))
    assert not first.requires_grad


def test_alignment_brings_translations_nearer_and_leaves_embeddings_alone(model, pairs, tmp_path):
    sampler = Sampler(pairs, SIZES)
    student, teacher = Student(model, 48), Teacher(Student(model, 48))
    frozen = student.body.get_input_embeddings().weight.clone()
    rows: list[dict] = []
    settings = AlignSettings(cycle=("bitext",), steps=30, learning_rate=3e-3, average=0.5)
    average = align(student, teacher, sampler, settings, tmp_path, rows.append)
    first, last = [np.mean([sum(row["loss"].values()) for row in part]) for part in (rows[:5], rows[-5:])]
    assert last < first
    assert torch.equal(student.body.get_input_embeddings().weight, frozen)
    save_average(model, average, tmp_path / "out", 1.0)
    save_average(model, average, tmp_path / "start", 0.0)
    with torch.inference_mode():
        start = Student(model).eval().encode(["fever"], "")
        torch.testing.assert_close(Student(tmp_path / "start").eval().encode(["fever"], ""), start)
        assert not torch.allclose(Student(tmp_path / "out").eval().encode(["fever"], ""), start, atol=1e-3)


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(model, pairs, tmp_path):
    settings = AlignSettings(cycle=ALL_KINDS, steps=12, learning_rate=1e-3, checkpoint_minutes=0.0)

    class KilledError(Exception):
        pass

    def kill(row: dict) -> None:
        if row["step"] == 7:
            raise KilledError

    def run(folder: Path, on_step=None) -> Path:
        return align(Student(model, 48), Teacher(Student(model, 48)), Sampler(pairs, SIZES), settings, folder, on_step)

    whole = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "cut", kill)
    seen: list[dict] = []
    again = run(tmp_path / "cut", seen.append)
    assert seen[0]["step"] == 7
    assert again.read_bytes() == whole.read_bytes()


def test_a_checkpoint_is_of_one_moment_wherever_its_writing_is_cut_off(tmp_path, monkeypatch):
    weights = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)

    def step() -> None:
        weights["w"].sum().backward()
        optimizer.step()

    def state() -> list[float]:
        return [*weights["w"].tolist(), *optimizer.state[weights["w"]]["exp_avg"].tolist()]

    step()
    save_checkpoint(tmp_path, {"weight": weights}, optimizer, {"step": 1})
    first = state()
    step()
    for name in ("replace", "rename", "write_text"):  # whatever comes after the new tensors are written

        def cut_off(self, *rest, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, name, cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"weight": weights}, optimizer, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, {"weight": weights}, optimizer) == {"step": 1}
    assert state() == first
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"checkpoint\.safetensors is damaged; remove it"):
        load_checkpoint(tmp_path, {"weight": weights}, optimizer)


def test_a_full_disk_is_told_as_such_and_other_errors_are_left_alone(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, RuntimeError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(StorageFullError, match="make room, and the same command goes on"), told_when_full(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="shape"), told_when_full(tmp_path):
        raise RuntimeError("shape")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(StorageFullError), told_when_full(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")  # torch.save
    with pytest.raises(SourceError), told_when_full(tmp_path):
        raise SourceError("a file")


def test_alignment_out_of_memory_reads_smaller_chunks_and_ends_the_same(model, pairs, tmp_path, monkeypatch):
    settings = AlignSettings(cycle=("bitext", "keep"), steps=2, learning_rate=1e-3)

    def run(folder: Path) -> dict[str, torch.Tensor]:
        teacher = Teacher(Student(model, 48))
        return load_file(align(Student(model, 48), teacher, Sampler(pairs, SIZES), settings, folder))

    whole = run(tmp_path / "whole")
    forward, refused = transformers.BertModel.forward, []

    def small_machine(self, input_ids, **options):
        if torch.is_grad_enabled() and len(input_ids) > 2:
            refused.append(len(input_ids))
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.BertModel, "forward", small_machine)
    tight = run(tmp_path / "tight")
    assert refused
    for name, value in whole.items():
        torch.testing.assert_close(tight[name], value, atol=1e-5, rtol=1e-3)


def test_alignment_is_watched_on_its_averaged_weights(model, pairs, tmp_path):
    settings = AlignSettings(cycle=("bitext",), steps=3, learning_rate=1e-2, average=0.9)
    scores, seen = iter([0.5, 0.7, 0.6]), []

    def score(encode) -> dict[str, float]:
        seen.append(encode(["fever"], "query"))
        return {"own": next(scores)}

    watch = DevWatch(score, 1.0, tmp_path, lambda share, row: None, iter(range(0, 10_000, 100)).__next__)
    average = align(
        Student(model, 48), Teacher(Student(model, 48)), Sampler(pairs, SIZES), settings, tmp_path, None, watch
    )
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    save_average(model, average, tmp_path / "out")
    last = student_encode(Student(tmp_path / "out"))(["fever"], "query")
    np.testing.assert_allclose(seen[2], last, atol=1e-5)
    best = student_encode(Student(tmp_path / "best"))(["fever"], "query")
    np.testing.assert_allclose(seen[1], best, atol=1e-5)
    assert not np.allclose(best, last, atol=1e-4)


def test_a_model_is_tuned_and_scored_with_its_own_prompts(model, tmp_path):
    import shutil

    vectors = []
    for number, prompts in enumerate(({"query": "ask ", "document": "text "}, {})):
        folder = tmp_path / str(number)
        shutil.copytree(model, folder)
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))
        student = Student(folder)
        assert student.prompts == (prompts.get("query", ""), prompts.get("document", ""))
        vectors.append(student_encode(student)(["fever"], "passage"))
    bare = Student(model).eval()
    with torch.inference_mode():
        for found, text in zip(vectors, ("text fever", "fever"), strict=True):
            np.testing.assert_allclose(found, bare.encode([text], ""), atol=1e-5)


def test_a_checkpoint_of_another_architecture_is_refused(model, pairs, tmp_path):
    other = unigram_model(tmp_path / "other", hidden=16)
    settings = AlignSettings(cycle=("bitext",), steps=1)
    for folder, told in ((model, None), (other, "another architecture")):
        with pytest.raises(ArgumentError, match=told) if told else nullcontext():
            align(Student(folder), Teacher(Student(folder)), Sampler(pairs, SIZES), settings, tmp_path / "run")


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
