"""What a recipe reads is looked for before anything is made, and what it counts words on is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from indexer.errors import ArgumentError, EncoderUnavailableError, SourceError
from rag.training import pipeline
from rag.training.batches import Sampler
from rag.training.bounds import CYCLE, SCORED
from rag.training.devscore import score_rows
from rag.training.pairs import FILES, build
from rag.training.pipeline import run_recipe
from rag.training.recipe import recipe_names, recipe_path


def recipe(folder: Path, start: Path, stages: str) -> Path:
    path = folder / "r.toml"
    path.write_text(f'[start]\nfrom = "{start.as_posix()}"\n{stages}', encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_a_folder_without_the_data_is_named_before_anything_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "start_model", lambda *_: pytest.fail("the start was made first"))
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceError, match=r"\.jsonl\.gz, .* and \d+ more: not there; .* data folder .*/data"):
        run_recipe(recipe_path(name), tmp_path / "run", tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_the_files_that_are_asked_for_are_those_that_are_read(data, tmp_path):
    alone = tmp_path / "data"
    for name in FILES:
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / name, alone / name)
    build(alone, tmp_path / "pairs")
    for name in FILES:
        (alone / name).rename(alone / "away")
        with pytest.raises((SourceError, FileNotFoundError), match=Path(name).name):
            build(alone, tmp_path / "pairs")
        (alone / "away").rename(alone / name)


@pytest.mark.parametrize(
    ("stages", "error", "named"),
    [
        (
            '[[stage]]\nkind = "pairs"\nnotes = ["a.jsonl", "b/c.jsonl"]',
            SourceError,
            r"a\.jsonl, b/c\.jsonl: not there",
        ),
        ('[[stage]]\nkind = "mlm"\nsources = ["notes/nosuch"]\nsteps = 1', SourceError, r"notes/nosuch\.jsonl\.gz"),
        ('[[stage]]\nkind = "prune"\nword_counts = "/nosuch/counts"', SourceError, "/nosuch/counts: not there"),
        ('[[stage]]\nkind = "transplant"\ndonor = "nosuch"', EncoderUnavailableError, "nosuch"),
        ('[[stage]]\nkind = "transplant"\ndonor = "no/such/folder"', EncoderUnavailableError, "no/such/folder"),
        (
            '[[stage]]\nkind = "pairs"\n[[stage]]\nkind = "contrast"\nguide = "nosuch"',
            EncoderUnavailableError,
            "nosuch",
        ),
    ],
)
def test_what_a_later_stage_reads_is_looked_for_at_the_start(model, data, tmp_path, stages, error, named):
    with pytest.raises(error, match=named):
        run_recipe(recipe(tmp_path, model, stages), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_trains_on_pairs_has_some(model, data, tmp_path):
    contrast = '[[stage]]\nkind = "contrast"\n'
    for stages in (contrast, contrast + '[[stage]]\nkind = "pairs"\n'):
        with pytest.raises(ArgumentError, match=r"stage\.contrast needs a stage pairs before it"):
            run_recipe(recipe(tmp_path, model, stages), tmp_path / "run", data)


def test_a_folder_of_other_files_is_not_written_into(model, data, tmp_path):
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "weights").write_text("of another year")
    stages = recipe(tmp_path, model, '[[stage]]\nkind = "pairs"\n')
    with pytest.raises(ArgumentError, match="mine holds other files; name a new folder"):
        run_recipe(stages, mine, data)
    assert [path.name for path in mine.iterdir()] == ["model"]
    assert (mine / "model" / "weights").read_text() == "of another year"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_recipe(stages, empty, data).model.is_dir()
    assert run_recipe(stages, empty, data).model.is_dir()


def test_a_finished_stage_asks_for_its_files_no_more(model, data, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    said = {"language": "en", "passage_language": "en"}
    rows = [{"query": f"fever {n}?", "passage": f"Of fever {n}.", **said} for n in range(8)]
    (own / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = '[[stage]]\nkind = "pairs"\npairs = "asked.jsonl"\n'
    run_recipe(recipe(tmp_path, model, pairs), tmp_path / "run", own)
    (own / "asked.jsonl").unlink()
    run_recipe(recipe(tmp_path, model, pairs + '[[stage]]\nkind = "export"\n'), tmp_path / "run", own)
    with pytest.raises(SourceError, match=r"asked\.jsonl: not there"):
        run_recipe(recipe(tmp_path, model, pairs.replace("asked", "./asked")), tmp_path / "run", own)


def test_words_are_counted_on_own_notes_and_nothing_to_count_is_refused(model, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    text = "The fever came on in the night. The cough as well. The patient denies pain."
    notes = [{"id": f"n{n}", "patient_id": f"p{n}", "language": "en", "text": f"{text} {n}"} for n in range(8)]
    (own / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
    prune = '[[stage]]\nkind = "prune"\nsize = 100000\n'
    pairs = '[[stage]]\nkind = "pairs"\nnotes = "notes.jsonl"\n'
    report = run_recipe(recipe(tmp_path, model, prune + pairs), tmp_path / "run", own)
    kept = {piece for piece, _ in json.loads((report.model / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]}
    assert "▁the" in kept, "a word of the notes"
    assert "боль" not in kept, "a word of no note"
    with pytest.raises(ArgumentError, match="prune finds no text to count"):
        run_recipe(recipe(tmp_path, model, prune), tmp_path / "other", own)
    (tmp_path / "counts").mkdir()
    (tmp_path / "counts" / "ru.tsv").write_text("боль\t9\nno count\n", encoding="utf-8")
    counted = prune + f'word_counts = "{(tmp_path / "counts").as_posix()}"\n'
    report = run_recipe(recipe(tmp_path, model, counted), tmp_path / "counted", own)
    kept = {piece for piece, _ in json.loads((report.model / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]}
    assert "▁боль" in kept or "боль" in kept


def test_the_names_that_a_recipe_may_give_are_those_that_are_known(data, tmp_path):
    build(data, tmp_path)
    sampler = Sampler(tmp_path, seed=0)
    for kind in CYCLE:
        assert sampler.draw(kind, 0)
    with pytest.raises(LookupError):
        sampler.draw("nosuch", 0)
    for name in SCORED:
        with pytest.raises((SourceError, OSError)):
            list(score_rows(lambda texts, _: pytest.fail("no text is there"), tmp_path / "nosuch", only=[name]))
