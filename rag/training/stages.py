"""What each stage of a recipe does: from one sentence-transformers directory to the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders.catalog import COMPACT_FOLDER, PACKED_TYPE, model_folder
from indexer.errors import ArgumentError, EncoderUnavailableError
from rag.training.folder import PROMPTS
from rag.training.recipe import Recipe
from rag.training.settings import AlignSettings, ExportSettings, PruneSettings, TransplantSettings

if TYPE_CHECKING:
    from rag.training.watch import DevWatch

_TAUGHT = ("align", "synonyms", "contrast", "static", "correct")


@dataclass(frozen=True, slots=True)
class StageRun:
    """What a stage gets: its settings, the model so far, its own folder, pairs, data, and whom to tell."""

    settings: Any
    model: Path
    folder: Path
    pairs: Path
    data: Path
    recipe: Recipe
    tell: Callable[[float, Mapping[str, Any]], None]
    watch: DevWatch | None = None

    @property
    def result(self) -> Path:
        """Where the stage's model goes."""
        return self.folder / "model"


def start_model(recipe: Recipe, folder: Path, data: Path) -> Path:
    """Return the recipe's start as a sentence-transformers directory, made anew.

    A bare checkpoint gets mean (or the recipe's) pooling and e5's prompts, with which the stages train it.

    Raises:
        EncoderUnavailableError: not on this machine, or of an architecture that gives no token vectors; the message
            says how to mend it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.parent / "masked", ignore_errors=True)  # the prediction head of another start
    if recipe.start == "package":
        from rag.training.folder import import_package
        from rag.training.package_weights import installed_file

        import_package(installed_file(), folder)
        return folder
    if recipe.start == "compact":
        shutil.copytree(COMPACT_FOLDER, folder, ignore=shutil.ignore_patterns("__*", "README.md"))
        return folder
    if recipe.start == "scratch":
        from rag.training.scratch import write_scratch

        return write_scratch(_texts_to_count(data, recipe), folder, recipe.scratch, recipe.seed)
    source = model_folder(recipe.start)
    _check_architecture(source)
    if (source / "modules.json").is_file():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return folder
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    try:
        body = Transformer(str(source), model_kwargs={"local_files_only": True})
    except (OSError, ValueError, KeyError) as error:
        raise EncoderUnavailableError(
            f"{source.name} holds no model that can be loaded: {type(error).__name__}"
        ) from error
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=recipe.pooling)
    model = SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu", prompts=dict(PROMPTS))
    model.save(str(folder), create_model_card=False)
    return folder


def check_stages(recipe: Recipe, start: Path) -> None:
    """Refuse at the start what a later stage could not take, before hours are spent.

    Raises:
        ArgumentError: the recipe packs what is no BERT, trains what is packed, goes on with a static table, or trains
            on pairs that no stage has written.
    """
    kind = _architecture(start).get("model_type", "bert")
    kinds = [stage.kind for stage in recipe.stages]
    if "static" in kinds[:-1]:
        raise ArgumentError("stage.static", "makes a table that no stage can take; put it last")
    if kind == PACKED_TYPE and set(kinds) - {"pairs", "static"}:
        raise ArgumentError("start.from", "is packed, which only the stage static takes; start from float weights")
    if kind != "bert" and "export" in kinds:
        raise ArgumentError("stage.export", f"packs BERT alone and {recipe.start} is a {kind}; leave this stage out")
    before = kinds[: kinds.index("pairs")] if "pairs" in kinds else kinds
    taught = next((one for one in before if one in _TAUGHT), None)
    if taught is not None and not (start.parent / "pairs" / "manifest.json").is_file():
        raise ArgumentError(f"stage.{taught}", "needs a stage pairs before it")


def _check_architecture(source: Path) -> None:
    config = _architecture(source)
    if config.get("is_encoder_decoder") or config.get("is_decoder"):
        kind = config.get("model_type", "decoder")
        raise EncoderUnavailableError(f"{source.name} is a {kind}; name an encoder (BERT, RoBERTa, ModernBERT and kin)")


def _architecture(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _prune(run: StageRun) -> Path:
    from tokenizers import Tokenizer

    from rag.training.vocabulary import choose_tokens, piece_texts, prune_folder, token_shares

    settings: PruneSettings = run.settings
    tokenizer = Tokenizer.from_file(str(run.model / "tokenizer.json"))
    shares = []
    for language, texts in _texts_by_language(run.data, run.recipe):
        # a token seen once in a small corpus is no reason to keep it before a common one
        confidence = min(1.0, sum(len(text) for text, _ in texts) / 2e6)
        shares.append({token: share * confidence for token, share in token_shares(tokenizer, texts).items()})
        run.tell(0.5, {"language": language, "tokens": len(shares[-1])})
    if settings.word_counts:
        for path in sorted(Path(settings.word_counts).expanduser().glob("*.tsv")):
            shares.append(token_shares(tokenizer, _word_counts(path)))
            run.tell(0.8, {"language": path.stem, "tokens": len(shares[-1])})
    if not shares:  # no word of any alphabet would be kept whole
        raise ArgumentError("prune", "finds no text to count: no parallel/, notes/ or terms/ in the data, no own notes")
    content = json.loads((run.model / "tokenizer.json").read_text(encoding="utf-8"))
    special = [item["id"] for item in content["added_tokens"]]
    st_config = run.model / "config_sentence_transformers.json"
    if st_config.is_file():  # what stands before every text is no word of the data
        prompts = json.loads(st_config.read_text(encoding="utf-8")).get("prompts") or {}
        special += [number for prompt in prompts.values() for number in tokenizer.encode(prompt).ids]
    prune_folder(run.model, run.result, choose_tokens(piece_texts(content), shares, settings.size, special))
    return run.result


def _transplant(run: StageRun) -> Path:
    from rag.training.transplant import transplant

    settings: TransplantSettings = run.settings
    folder = run.folder / "donor"  # a prediction head that comes with the donor stays in here
    donor = start_model(replace(run.recipe, start=settings.donor), folder / "start", run.data)
    run.tell(1.0, dict(transplant(run.model, donor, run.result, settings)))
    shutil.rmtree(folder)
    return run.result


def _texts_by_language(data: Path, recipe: Recipe) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yield what words are counted on: the texts of the public layout and of the recipe's own notes, by language."""
    from rag.training.heldout import LANGUAGES, read_rows
    from rag.training.mining import own_texts

    for kind in ("parallel", "notes", "terms"):
        found: dict[str, list[tuple[str, float]]] = {language: [] for language in LANGUAGES}
        for path in sorted((data / kind).glob("*.jsonl.gz")):
            for row in read_rows(path):
                if kind == "parallel":
                    for language in LANGUAGES:
                        if isinstance(row.get(language), str):
                            found[language].append((row[language], 1.0))
                elif row.get("language") in found:
                    found[row["language"]].append((str(row.get("text", row.get("term", ""))), 1.0))
        yield from ((f"{language}/{kind}", texts) for language, texts in found.items() if texts)
    own = [data / name for stage in recipe.stages if stage.kind == "pairs" for name in stage.settings.notes]
    yield from ((f"{language}/own", [(text, 1.0) for text in texts]) for language, texts in own_texts(own).items())


def _texts_to_count(data: Path, recipe: Recipe) -> Iterator[tuple[str, str]]:
    from rag.training.heldout import HeldOut

    held_out = HeldOut(data)
    for name, texts in _texts_by_language(data, recipe):
        language = name.split("/")[0]
        yield from ((language, text) for text, _ in texts if text.strip() and not held_out.holds_text(text))


def _word_counts(path: Path) -> Iterator[tuple[str, float]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, _, count = line.rstrip("\n").partition("\t")
            if word and count:
                yield word, float(count)
                yield word.capitalize(), float(count) / 5


def _pairs(run: StageRun) -> None:
    from rag.training.own_pairs import build_pairs

    counts = build_pairs(run.data, run.pairs, run.settings, run.recipe.seed)
    run.tell(1.0, {kind: sum(found.values()) for kind, found in counts.items()})


def _align(run: StageRun) -> Path:
    from rag.training.align import align, save_average
    from rag.training.batches import Sampler, Sizes
    from rag.training.student import Student, Teacher

    settings: AlignSettings = run.settings
    student = Student(run.model, settings.max_length, bfloat16=settings.bfloat16)
    teacher = Teacher(Student(run.model, settings.max_length, bfloat16=settings.bfloat16))
    sampler = Sampler(run.pairs, Sizes(siblings=settings.siblings, prompts=student.prompts), seed=run.recipe.seed)
    without = [kind for kind in dict.fromkeys(settings.cycle) if not sampler.has(kind)]
    if without:
        raise ArgumentError("align.cycle", f"names {', '.join(without)}, of which the pairs stage wrote no row")
    average = align(student, teacher, sampler, settings, run.folder, lambda row: run.tell(row["share"], row), run.watch)
    save_average(run.model, average, run.result, settings.interpolate)
    return run.result


def _export(run: StageRun) -> Path:
    from rag.training.export import export_packed
    from rag.training.package_weights import PackageFile, installed_file

    settings: ExportSettings = run.settings
    kept = run.model / "kept_tokens.npy"
    groups = None
    if run.recipe.start == "package" and kept.is_file():
        file = PackageFile(installed_file())
        halves, steps = file.groups("emb.word", file.shape.vocabulary, file.shape.hidden)
        rows = np.load(kept)
        groups = halves[rows], steps[rows]
    size = export_packed(run.model, run.result, f"clinrag-{run.recipe.name}", groups, settings.max_length)
    run.tell(1.0, {"bytes": size})
    return run.result


def _mlm(run: StageRun) -> Path:
    from rag.training.mlm import pretrain

    source = run.model.parent / "masked"  # a pretraining stage just before this one left its prediction head there
    if run.model.name == "start" and run.recipe.start not in {"package", "scratch"}:
        local = model_folder(run.recipe.start)
        source = run.model if (local / "modules.json").is_file() else local
    return pretrain(
        run.model,
        run.data,
        run.result,
        run.folder,
        run.settings,
        run.recipe.seed,
        run.tell,
        source if source.is_dir() else None,
    )


def _synonyms(run: StageRun) -> Path:
    from rag.training.synonyms import align_synonyms

    return align_synonyms(run.model, run.pairs, run.result, run.settings, run.recipe.seed, run.tell)


def _contrast(run: StageRun) -> Path:
    from rag.training.contrast import tune

    return tune(run.model, run.pairs, run.result, run.folder, run.settings, run.recipe.seed, run.tell, run.watch)


def _static(run: StageRun) -> Path:
    from rag.training.static import make_static

    return make_static(run.model, run.pairs, run.result, run.folder, run.settings, run.recipe.seed, run.tell, run.watch)


def _correct(run: StageRun) -> Path:
    from rag.training.correction import correct

    return correct(run.model, run.pairs, run.result, run.settings, run.tell)


RUN: Mapping[str, Callable[[StageRun], Path | None]] = {
    "prune": _prune,
    "transplant": _transplant,
    "pairs": _pairs,
    "mlm": _mlm,
    "align": _align,
    "synonyms": _synonyms,
    "contrast": _contrast,
    "static": _static,
    "correct": _correct,
    "export": _export,
}
