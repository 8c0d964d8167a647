"""A recipe: which model to start from and which stages to run, read from one TOML file.

::

    name = "compact"                     # also the model's id
    languages = ["en", "zh"]             # what the model serves; for the card
    licence = "MIT"
    seed = 0
    [start]
    from = "package"                     # or "scratch", a folder, a catalog name, a hub id in the local cache
    pooling = "mean"                     # for a checkpoint that does not say it
    [dev]                                # scores while training; may be left out
    minutes = 10.0
    [[stage]]
    kind = "align"                       # one of STAGES; its other keys are that stage's settings
    minutes = 80.0
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from indexer.errors import ArgumentError, SourceError
from rag.training.bounds import POOLING, check_setting, typed
from rag.training.settings import STAGES, AlignSettings, DevSettings, MlmSettings, ScratchSettings

_ELEMENTS = {"tuple[str, ...]": str, "tuple[float, ...]": float, "tuple[int, ...]": int}
Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe."""

    kind: str
    settings: Any

    def key(self, before: str) -> str:
        """Return what tells whether a finished stage still stands: its settings and all that came before.

        Settings at their default are left out, so that a run is not made again for an option that came later.
        """
        default = type(self.settings)()
        chosen = {one.name: getattr(self.settings, one.name) for one in fields(self.settings)}
        chosen = {name: value for name, value in chosen.items() if value != getattr(default, name)}
        text = json.dumps([before, self.kind, chosen], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe."""

    name: str
    start: str
    stages: tuple[Stage, ...]
    pooling: str = "mean"
    scratch: ScratchSettings = field(default_factory=ScratchSettings)
    dev: DevSettings | None = None
    languages: tuple[str, ...] = ()
    licence: str = ""
    about: str = ""
    seed: int = 0
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the tables of a recipe."""

    name: str = ""
    languages: tuple[str, ...] = ()
    licence: str = ""
    about: str = ""
    seed: int = 0


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a TOML file.

    Raises:
        SourceError: not readable or no TOML.
        ArgumentError: a key or value that no recipe has; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"{path.name} cannot be read as a recipe: {error}") from error
    _known("recipe", content, {"name", "languages", "licence", "about", "seed", "start", "dev", "stage"})
    start = content.get("start")
    if not isinstance(start, dict) or not isinstance(start.get("from"), str):
        raise ArgumentError("start.from", "is missing: name a folder, a catalog encoder, 'package' or 'scratch'")
    shape = {key: value for key, value in start.items() if key not in {"from", "pooling"}}
    if start["from"] != "scratch":
        _known("start", start, {"from", "pooling"})
    if start.get("pooling", "mean") not in POOLING:
        raise ArgumentError("start.pooling", f"must be one of {', '.join(POOLING)}")
    stages = content.get("stage")
    if not isinstance(stages, list) or not stages:
        raise ArgumentError("stage", "is missing: a recipe has at least one [[stage]]")
    head = _settings("recipe", _Head, {key: content[key] for key in content.keys() - {"start", "dev", "stage"}})
    return Recipe(
        name=head.name or path.stem,
        start=start["from"],
        stages=tuple(_stage(number, table) for number, table in enumerate(stages)),
        pooling=start.get("pooling", "mean"),
        scratch=_settings("start", ScratchSettings, shape),
        dev=_settings("dev", DevSettings, content["dev"]) if "dev" in content else None,
        languages=head.languages,
        licence=head.licence,
        about=head.about,
        seed=head.seed,
        text=text,
    )


def recipe_path(name: str) -> Path:
    """Return the path of a file, or of the recipe of that very name that comes with the package.

    Raises:
        SourceError: neither is there.
    """
    if Path(name).is_file():
        return Path(name)
    if name in recipe_names():  # a path that ends so and is not there is a mistake, and another recipe takes hours
        return Path(__file__).parent / "recipes" / f"{name}.toml"
    raise SourceError(f"there is no recipe {name}; the package has {', '.join(recipe_names())}")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.toml"))


def _stage(number: int, table: object) -> Stage:
    where = f"stage[{number}]"
    values = dict(table) if isinstance(table, dict) else {}
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in STAGES:
        raise ArgumentError(f"{where}.kind", f"must be one of {', '.join(STAGES)}")
    found = _settings(where, STAGES[kind], values)
    _check_together(where, found)
    return Stage(kind, found)


def _check_together(where: str, settings: object) -> None:
    """Refuse what each setting alone may be, and these of one stage together not."""
    if isinstance(settings, AlignSettings) and (settings.steps > 0) == (settings.minutes > 0):
        raise ArgumentError(f"{where}.steps", "or minutes says how long the stage is: give one of them")
    if isinstance(settings, AlignSettings) and not settings.cycle:
        raise ArgumentError(f"{where}.cycle", "is empty")
    if isinstance(settings, MlmSettings):
        sources, shares = len(settings.sources), len(settings.shares)
        if not sources:
            raise ArgumentError(f"{where}.sources", "is empty; name files of the data folder such as notes/mtsamples")
        if shares not in (0, sources):
            raise ArgumentError(f"{where}.shares", f"has {shares} values for {sources} sources")


def _settings(where: str, kind: type[Settings], table: object) -> Settings:
    if not isinstance(table, dict):
        raise ArgumentError(where, "must be a table")
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    _known(where, table, set(known))
    defaults = kind()
    values = dict(table)
    for key, value in table.items():
        default = getattr(defaults, key)
        if isinstance(default, tuple):
            one_of = _ELEMENTS[str(known[key].type)]
            given = value if isinstance(value, list) else [value]
            values[key] = tuple(typed(f"{where}.{key}", one, one_of) for one in given)
        else:
            values[key] = typed(f"{where}.{key}", value, type(default))
        check_setting(f"{where}.{key}", key, values[key], default)
    return kind(**values)


def _known(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    strange = sorted(set(table) - known)
    if strange:
        raise ArgumentError(f"{where}.{strange[0]}", f"is unknown; known are {', '.join(sorted(known))}")
