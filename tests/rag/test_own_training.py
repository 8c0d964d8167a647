"""A run on a user's own notes alone, from the recipe to the model: what is told, kept, refused and gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from indexer.errors import ArgumentError, EncoderUnavailableError, SourceError
from rag.training.pipeline import TrainProgress, run_recipe
from rag.training.recipe import read_recipe
from rag.training.watch import best_look
from tests.rag.made_training import WORDS, unigram_model

RECIPE = """
[start]
from = "{start}"
[dev]
minutes = 0.00001
[[stage]]
kind = "pairs"
notes = "notes.jsonl"
pairs = ["asked.jsonl"]
dev = 0.4
licence = "of the hospital"
[[stage]]
kind = "contrast"
steps = {steps}
batch = 4
micro_batch = 4
max_length = 32
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return unigram_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hospital(tmp_path) -> Path:
    folder = tmp_path / "hospital"
    folder.mkdir()
    notes = [
        {
            "id": f"n{n}",
            "patient_id": f"p{n}",
            "language": "en",
            "text": f"COMPLAINT: {word} since {n} days, worse when lying down.\nPLAN: rest, {word} diary, {n} weeks.",
        }
        for n, word in enumerate(WORDS["en"] * 2)
    ]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
    asked = [{"query": f"{word} {n}?", "passage": f"Of {word}: {n}."} for n, word in enumerate(WORDS["en"] * 2)]
    rows = [{**row, "language": "en", "passage_language": "en"} for row in asked]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _recipe(tmp_path: Path, start: Path, steps: int = 2) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(start=start.as_posix(), steps=steps))
    return path


def test_the_recipe_that_the_documentation_shows_can_be_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "own.toml"
    path.write_text(shown, encoding="utf-8")
    recipe = read_recipe(path)
    assert [stage.kind for stage in recipe.stages] == ["pairs", "contrast"]
    assert recipe.stages[0].settings.pairs == ("asked.jsonl",)
    assert recipe.dev is not None
    assert recipe.dev.take_best


def test_own_notes_make_a_model_with_scores_on_own_patients_that_never_trained(start, hospital, tmp_path):
    told: list[TrainProgress] = []
    report = run_recipe(_recipe(tmp_path, start), tmp_path / "run", hospital, on_progress=told.append)
    assert (report.model / "modules.json").is_file()
    looks = [progress.row for progress in told if progress.stage == "contrast" and "dev" in progress.row]
    assert looks
    assert "own pair" in looks[0]
    assert set(report.scores) == {"start", "02-contrast"}
    assert set(report.scores["start"]) == set(report.scores["02-contrast"]) >= {"own pair"}
    card = report.card.read_text(encoding="utf-8")
    for piece in ("notes: `notes.jsonl` | of the hospital", "02-contrast: step", "02-contrast/best", "own pair"):
        assert piece in card
    assert (tmp_path / "run" / "02-contrast" / "best" / "modules.json").is_file()


def test_text_of_the_notes_stands_in_the_pairs_alone(start, hospital, tmp_path):
    path = _recipe(tmp_path, start)
    for stage in ("contrast", "static"):
        text = path.read_text(encoding="utf-8").replace("max_length = 32", "max_length = 32\ncheckpoint_steps = 1")
        if stage == "static":
            text = text[: text.index('[[stage]]\nkind = "contrast"')]
            text += '[[stage]]\nkind = "static"\ndim = 8\ntexts = 40\nbatch = 8\ndistil_steps = 1\nsteps = 1\n'
        path.write_text(text, encoding="utf-8")
        run_recipe(path, tmp_path / stage, hospital)
        files = [file for file in (tmp_path / stage).rglob("*") if file.is_file()]
        assert any("checkpoint-" in str(file) for file in files)
        holding = {file.parent.name for file in files if b"worse when lying" in file.read_bytes()}
        assert holding == {"pairs"}


def test_a_wrong_row_is_named_nothing_is_lost_and_the_mended_file_goes_on(start, hospital, tmp_path):
    path = _recipe(tmp_path, start)
    content = (hospital / "asked.jsonl").read_text(encoding="utf-8")
    (hospital / "asked.jsonl").write_text(content + '{"query": "", "passage": "x"}\n', encoding="utf-8")
    with pytest.raises(SourceError, match=r"asked\.jsonl line 17: query is empty"):
        run_recipe(path, tmp_path / "run", hospital)
    made = (tmp_path / "run" / "start" / "model.safetensors").stat().st_mtime_ns
    (hospital / "asked.jsonl").write_text(content, encoding="utf-8")
    run_recipe(path, tmp_path / "run", hospital)
    assert (tmp_path / "run" / "start" / "model.safetensors").stat().st_mtime_ns == made


def test_the_best_weights_are_handed_on_where_the_recipe_says_so(start, hospital, tmp_path, monkeypatch):
    from rag.training import pipeline

    scores = iter([0.1, 0.9, 0.2, 0.3])  # the start, two looks, the last weights
    monkeypatch.setattr(pipeline, "dev_scores", lambda *_: {"own pair": next(scores)})
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(start=start.as_posix(), steps=2).replace("[dev]", "[dev]\ntake_best = true"))
    report = run_recipe(path, tmp_path / "run", hospital)
    best = (tmp_path / "run" / "02-contrast" / "best" / "model.safetensors").read_bytes()
    assert (report.model / "model.safetensors").read_bytes() == best


def test_a_run_cut_off_while_it_is_scored_does_not_train_again(start, hospital, tmp_path):
    class KilledError(Exception):
        pass

    asked: list[str] = []

    def score(model: Path) -> dict[str, float]:
        asked.append(model.parent.name)
        if asked == ["run", "02-contrast"]:
            raise KilledError
        return {"made": 0.5}

    path = _recipe(tmp_path, start)
    with pytest.raises(KilledError):
        run_recipe(path, tmp_path / "run", hospital, score)
    told: list[str] = []
    report = run_recipe(path, tmp_path / "run", hospital, score, lambda progress: told.append(progress.stage))
    assert told == []
    assert report.scores == {"start": {"made": 0.5}, "02-contrast": {"made": 0.5}}


def test_a_run_cut_off_before_it_chose_its_best_weights_chooses_them(start, hospital, tmp_path, monkeypatch):
    from rag.training import pipeline

    class KilledError(Exception):
        pass

    def killed(*_) -> Path:
        raise KilledError

    def scores_of(*found: float) -> None:
        left = iter(found)
        monkeypatch.setattr(pipeline, "dev_scores", lambda *_: {"own pair": next(left)})

    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(start=start.as_posix(), steps=2).replace("[dev]", "[dev]\ntake_best = true"))
    scores_of(0.1, 0.9, 0.2, 0.3)  # the start, two looks, the last weights
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(pipeline, "_better", killed)
        run_recipe(path, tmp_path / "run", hospital)
    scores_of()
    report = run_recipe(path, tmp_path / "run", hospital)
    best = (tmp_path / "run" / "02-contrast" / "best" / "model.safetensors").read_bytes()
    assert (report.model / "model.safetensors").read_bytes() == best


def test_scores_of_other_settings_are_not_told_of_the_new_ones(start, hospital, tmp_path):
    class KilledError(Exception):
        pass

    made = iter([0.1, 0.2])
    path = _recipe(tmp_path, start)
    run_recipe(path, tmp_path / "run", hospital, lambda model: {"made": next(made)})

    def killed(model: Path) -> dict[str, float]:
        raise KilledError

    path = _recipe(tmp_path, start, steps=3)
    with pytest.raises(KilledError):
        run_recipe(path, tmp_path / "run", hospital, killed)
    report = run_recipe(path, tmp_path / "run", hospital, lambda model: {"made": 0.7})
    assert report.scores == {"start": {"made": 0.1}, "02-contrast": {"made": 0.7}}
    # another start, in a recipe that has lost a stage
    text = path.read_text(encoding="utf-8")
    other = unigram_model(tmp_path / "other", hidden=64)
    path.write_text(text.replace(start.as_posix(), other.as_posix()).replace('kind = "contrast"', 'kind = "export"'))
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("steps = ")], encoding="utf-8")
    report = run_recipe(path, tmp_path / "run", hospital, lambda model: {"made": 0.8})
    assert report.scores == {}


def test_best_weights_that_were_whole_when_the_run_was_cut_off_are_put_in_place(tmp_path):
    def put(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(text)

    assert best_look(tmp_path) is None
    put("best.half", "of a look that was not written to its end")
    assert best_look(tmp_path) is None
    put("best", "old")
    (tmp_path / "best.json").write_text('{"step": 1, "mean": 0.1}')
    put("best.new", "new")
    (tmp_path / "best.json.new").write_text('{"step": 2, "mean": 0.2}')
    for _ in range(2):
        assert best_look(tmp_path) == {"step": 2, "mean": 0.2}
        assert (tmp_path / "best" / "weights").read_text() == "new"
    assert not (tmp_path / "best.new").exists()


def test_another_start_in_the_recipe_is_taken_and_not_the_one_of_before(start, hospital, tmp_path):
    other = unigram_model(tmp_path / "other", hidden=16)
    pairs_only = RECIPE[: RECIPE.index('[[stage]]\nkind = "contrast"')]
    for folder, width in ((start, 32), (other, 16)):
        path = tmp_path / "own.toml"
        path.write_text(pairs_only.format(start=folder.as_posix()))
        report = run_recipe(path, tmp_path / "run", hospital)
        assert json.loads((report.model / "config.json").read_text())["hidden_size"] == width


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, EncoderUnavailableError, "is a t5; name an encoder"),
        ({"model_type": "modernbert"}, ArgumentError, "stage.export.*BERT alone"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_before_anything_is_trained(
    start, hospital, tmp_path, config, error, told
):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(start, other)
    (other / "config.json").write_text(json.dumps(config))
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(start=other.as_posix(), steps=2) + '[[stage]]\nkind = "export"\n')
    with pytest.raises(error, match=told):
        run_recipe(path, tmp_path / "run", hospital)
    assert not (tmp_path / "run" / "pairs").exists()


def test_alignment_on_rows_that_there_are_not_is_refused_by_their_kind(start, hospital, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        f'[start]\nfrom = "{start.as_posix()}"\n[[stage]]\nkind = "pairs"\npairs = "asked.jsonl"\n'
        '[[stage]]\nkind = "align"\nsteps = 1\ncycle = ["bitext", "keep"]\n'
    )
    with pytest.raises(ArgumentError, match="names bitext, keep, of which the pairs stage wrote no row"):
        run_recipe(path, tmp_path / "run", hospital)


def test_a_run_is_not_made_again_for_an_option_that_came_later(tmp_path, start):
    plain = read_recipe(_recipe(tmp_path, start))
    path = tmp_path / "same.toml"
    path.write_text(RECIPE.format(start=start.as_posix(), steps=2) + 'rounded = ""\n')  # the default, written out
    assert read_recipe(path).stages[1].key("x") == plain.stages[1].key("x")
    path.write_text(RECIPE.format(start=start.as_posix(), steps=3))
    assert read_recipe(path).stages[1].key("x") != plain.stages[1].key("x")
