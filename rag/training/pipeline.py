"""One recipe, one command: stage after stage, each skipped when done and gone on with when killed.

A run's folder::

    recipe.toml  progress.json      which stages are done, with what key
    pairs/                          rows that stages train on
    NN-KIND/                        a stage's checkpoints and log; NN-KIND/model is its result, NN-KIND/best its best
    model/                          the result: a sentence-transformers directory (with export: packed/ beside it)
    scores.json  curve.png  README.md
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import ArgumentError, SourceError
from rag.training.card import write_card, write_curve
from rag.training.checkpoint import told_when_full
from rag.training.devscore import dev_scores, mean_score
from rag.training.needs import check_needs
from rag.training.processes import SHARED, Team
from rag.training.recipe import Recipe, Stage, read_recipe
from rag.training.stages import RUN, StageRun, check_stages, start_model
from rag.training.watch import DevWatch, best_look, folder_score
from rag.training.watch import Score as WatchedScore

_TRAINED = ("prune", "transplant", "mlm", "align", "synonyms", "contrast", "correct")
Score = Callable[[Path], Mapping[str, float]]
Report = Callable[["TrainProgress"], None]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a run stands: stage ``number`` (from 1) of ``total``, a share of it, and what the stage last logged."""

    stage: str
    number: int
    total: int
    share: float
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run made."""

    model: Path
    packed: Path | None
    card: Path
    scores: Mapping[str, Mapping[str, float]]


def run_recipe(
    recipe_path: Path, out_dir: Path, data_dir: Path, score: Score | None = None, on_progress: Report | None = None
) -> TrainReport:
    """Run a recipe's stages and return what they made; a run that was cut off goes on where it stood.

    In several processes (``accelerate launch``) the first runs the recipe, and the others join its trainers.

    Args:
        recipe_path: the TOML file.
        out_dir: the run's folder; a run of the same recipe in it is continued, a changed stage is run again with all
            behind it.
        data_dir: the folder of training data.
        score: gives figures of a model folder; asked before the first and after every stage that trains. Without it
            the recipe's ``[dev]`` says what is scored.
        on_progress: told of every logged step.

    Raises:
        SourceError: recipe or data cannot be read; what the data folder lacks is told before anything is made.
        ArgumentError: a setting is not allowed, or the model is of a kind that a stage cannot take.
        StorageFullError: there is no room in ``out_dir``.
    """
    recipe = read_recipe(recipe_path)
    if not data_dir.is_dir():
        raise ArgumentError("data", f"is no folder: {data_dir.name}")
    _check_out(out_dir)
    check_needs(_to_run(recipe, _read(out_dir / "progress.json")), data_dir)
    team = Team()
    if not team.is_first:
        return _join(recipe, out_dir, data_dir, team)
    out_dir.mkdir(parents=True, exist_ok=True)
    with told_when_full(out_dir):
        return _lead(recipe, out_dir, data_dir, score, on_progress, team)


def _lead(
    recipe: Recipe, out_dir: Path, data_dir: Path, score: Score | None, on_progress: Report | None, team: Team
) -> TrainReport:
    """Run the stages, as the only or the first of several processes."""
    done = _read(out_dir / "progress.json")
    _write(out_dir / "progress.json", done)  # from here on the folder is a run's
    (out_dir / "recipe.toml").write_text(recipe.text, encoding="utf-8")
    names = {"start", *(f"{number:02d}-{stage.kind}" for number, stage in enumerate(recipe.stages, 1))}
    scores: dict[str, dict[str, float]] = {
        name: found for name, found in _read(out_dir / "scores.json").items() if name in names
    }
    watched = _own_score(recipe, data_dir, out_dir)
    if score is None and watched is not None:
        score = folder_score(watched)
    packed: Path | None = None
    key = _start_key(recipe)
    if done.get("start") != key:
        _unscore("start", scores, out_dir)
    model = start = _start(recipe, out_dir, data_dir, key, done)
    team.wait()
    for number, stage in enumerate(recipe.stages, 1):
        folder = out_dir / f"{number:02d}-{stage.kind}"
        key = stage.key(key)
        if done.get(folder.name) != key:
            _forget(out_dir, done, recipe, number, key)
            _unscore(folder.name, scores, out_dir)
            if stage.kind in _TRAINED:
                _score(score, start, "start", scores, out_dir)
            run = _stage_run(recipe, stage, folder, out_dir, data_dir, model, number, on_progress, watched)
            team.wait()
            result = RUN[stage.kind](run)
            team.wait()
            if stage.kind == "export":
                packed = result
            elif result is not None:
                model = result
            done[folder.name] = key
            done[folder.name + ".model"] = str(model.relative_to(out_dir))
            _write(out_dir / "progress.json", done)
            model = _judged(recipe, stage, folder, model, score, scores, done, out_dir)
            if number < len(recipe.stages):
                team.wait()
        else:
            model = out_dir / done[folder.name + ".model"]
            packed = folder / "model" if stage.kind == "export" else packed
            # a run may have been cut off while it was scored, or before the better weights were chosen
            model = _judged(recipe, stage, folder, model, score, scores, done, out_dir)
    final = _publish(model, out_dir / "model")
    if packed is not None:
        packed = _publish(packed, out_dir / "packed")
    write_curve(out_dir, scores)
    card = write_card(recipe, out_dir, scores, final)
    team.wait()
    return TrainReport(final, packed, card, scores)


def _join(recipe: Recipe, out_dir: Path, data_dir: Path, team: Team) -> TrainReport:
    """Take part in the stages that the first process runs with all; meet it before and after each of the others."""
    team.wait()
    key, model = _start_key(recipe), out_dir / "start"
    done = _read(out_dir / "progress.json")
    for number, stage in enumerate(recipe.stages, 1):
        name = f"{number:02d}-{stage.kind}"
        key = stage.key(key)
        if done.get(name) != key:
            done = {}  # what follows a stage that is run is run as well
            team.wait()
            if stage.kind in SHARED:
                run = _stage_run(recipe, stage, out_dir / name, out_dir, data_dir, model, number, None, None)
                RUN[stage.kind](run)
            team.wait()
            # the first writes which weights are handed on before it comes to the next stage
            if number < len(recipe.stages):
                team.wait()
        model = out_dir / _read(out_dir / "progress.json").get(name + ".model", "start")
    team.wait()
    packed = out_dir / "packed"
    return TrainReport(out_dir / "model", packed if packed.is_dir() else None, out_dir / "README.md", {})


def _check_out(out_dir: Path) -> None:
    """Refuse a folder with anything else in it: a run writes its own README.md there and replaces ``model``."""
    if (out_dir / "progress.json").is_file() or not out_dir.is_dir():
        return
    if any(one.name != "progress.new" for one in out_dir.iterdir()):
        raise ArgumentError("out", f"{out_dir} holds other files; name a new folder, or that of a run to go on with")


def _to_run(recipe: Recipe, done: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the stages from the first that is not done on."""
    key = _start_key(recipe)
    for number, stage in enumerate(recipe.stages, 1):
        key = stage.key(key)
        if done.get(f"{number:02d}-{stage.kind}") != key:
            return recipe.stages[number - 1 :]
    return ()


def _start_key(recipe: Recipe) -> str:
    return f"{recipe.start}/{recipe.seed}" + (f"/{recipe.scratch}" if recipe.start == "scratch" else "")


def _start(recipe: Recipe, out_dir: Path, data_dir: Path, key: str, done: dict[str, Any]) -> Path:
    """Return the start, made once; another start in the recipe, or one half made, is made anew."""
    folder = out_dir / "start"
    if done.get("start") != key:
        start_model(recipe, folder, data_dir)
        done["start"] = key
        _write(out_dir / "progress.json", done)
    check_stages(recipe, folder)
    return folder


def _own_score(recipe: Recipe, data_dir: Path, out_dir: Path) -> WatchedScore | None:
    dev = recipe.dev
    if dev is None:
        return None
    return lambda encode: dev_scores(encode, data_dir, out_dir / "pairs", dev.rows, dev.limit)


def _judged(
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    model: Path,
    score: Score | None,
    scores: dict[str, dict[str, float]],
    done: dict[str, Any],
    out_dir: Path,
) -> Path:
    """Score a stage's model once and return the weights that it hands on, which ``progress.json`` names."""
    if stage.kind not in _TRAINED:
        return model
    _score(score, model, folder.name, scores, out_dir)
    model = _better(recipe, folder, model, scores)
    if done[folder.name + ".model"] != (name := str(model.relative_to(out_dir))):
        done[folder.name + ".model"] = name
        _write(out_dir / "progress.json", done)
    return model


def _better(recipe: Recipe, folder: Path, model: Path, scores: Mapping[str, Mapping[str, float]]) -> Path:
    """Return the stage's best weights where the recipe takes them and they score above its last ones."""
    if recipe.dev is None or not recipe.dev.take_best or (best := best_look(folder)) is None:
        return model
    return folder / "best" if best["mean"] > mean_score(scores.get(folder.name, {})) else model


def _stage_run(  # noqa: PLR0913 - what a stage is told
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    out_dir: Path,
    data_dir: Path,
    model: Path,
    number: int,
    on_progress: Report | None,
    watched: WatchedScore | None,
) -> StageRun:
    def tell(share: float, row: Mapping[str, Any]) -> None:
        if on_progress is not None:
            on_progress(TrainProgress(stage.kind, number, len(recipe.stages), share, row))

    folder.mkdir(parents=True, exist_ok=True)
    watch = None
    if watched is not None and recipe.dev is not None and recipe.dev.minutes > 0:
        watch = DevWatch(watched, recipe.dev.minutes, folder, tell)
    return StageRun(stage.settings, model, folder, out_dir / "pairs", data_dir, recipe, tell, watch)


def _forget(out_dir: Path, done: dict[str, Any], recipe: Recipe, number: int, key: str) -> None:
    """Drop a stage's leftovers of other settings, and all stages behind it; the same settings go on."""
    for later, stage in enumerate(recipe.stages, 1):
        folder = out_dir / f"{later:02d}-{stage.kind}"
        if later < number:
            continue
        done.pop(folder.name, None)
        done.pop(folder.name + ".model", None)
        mark = folder / "key"
        if later > number or (mark.is_file() and mark.read_text(encoding="ascii") != key):
            shutil.rmtree(folder, ignore_errors=True)
        if later == number:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(key, encoding="ascii")


def _score(score: Score | None, model: Path, name: str, scores: dict[str, dict[str, float]], out_dir: Path) -> None:
    if score is None or name in scores:
        return
    found = dict(score(model))
    if not found:
        return
    scores[name] = found
    _write(out_dir / "scores.json", scores)


def _unscore(name: str, scores: dict[str, dict[str, float]], out_dir: Path) -> None:
    """Drop what the weights of other settings scored, also on disk: the run may be cut off before it scores again."""
    if scores.pop(name, None) is not None:
        _write(out_dir / "scores.json", scores)


def _publish(model: Path, target: Path) -> Path:
    """Copy a stage's result to its place: under a new name, then renamed, so that no half result ever stands there."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(model, new)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path.name} of the run is damaged; remove it, and its stages are run again") from error
    assert isinstance(content, dict)
    return content


def _write(path: Path, content: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
