"""What a recipe reads, looked for before anything is made: a name that is wrong costs no hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from indexer.encoders.catalog import model_folder
from indexer.errors import SourceError
from rag.training import pairs
from rag.training.recipe import Stage
from rag.training.settings import ContrastSettings, MlmSettings, PairsSettings, PruneSettings, TransplantSettings

_NAMED = 3
_STARTS = ("package", "compact", "scratch")


def check_needs(stages: Sequence[Stage], data: Path) -> None:
    """Return if all is there that these stages, those that are still to be run, read in the data folder and beside it.

    Raises:
        SourceError: a file or folder is not there; the message names the first few.
        EncoderUnavailableError: a model that a stage takes beside its own is not.
    """
    lacking = list(dict.fromkeys(path for stage in stages for path in _read_by(stage, data) if not path.exists()))
    if lacking:
        short = (path.relative_to(data) if path.is_relative_to(data) else path for path in lacking[:_NAMED])
        named = ", ".join(map(str, short))
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise SourceError(f"{named}{more}: not there; the recipe reads them in the data folder {data}")

    for stage in stages:
        if isinstance(stage.settings, ContrastSettings) and stage.settings.guide:
            model_folder(stage.settings.guide)
        if isinstance(stage.settings, TransplantSettings) and stage.settings.donor not in _STARTS:
            model_folder(stage.settings.donor)


def _read_by(stage: Stage, data: Path) -> Iterator[Path]:
    settings = stage.settings
    if isinstance(settings, PairsSettings):
        own = (*settings.notes, *settings.labels, *settings.parallel, *settings.pairs)
        yield from (data / name for name in own)
        if settings.public or not own:
            yield from (data / name for name in pairs.FILES)
    elif isinstance(settings, MlmSettings):
        yield from (data / f"{name}.jsonl.gz" for name in settings.sources)
    elif isinstance(settings, PruneSettings) and settings.word_counts:
        yield Path(settings.word_counts).expanduser()
