"""Domain-adaptive pretraining: masked language modelling on notes, cut into sentences and packed.

transformers' trainer does the work (checkpoints, mixed precision, ``accelerate launch``). Ours is the text: sources
mixed by shares, notes split into sections and sentences and packed to the length, marks of de-identification kept as
whole tokens, at most twenty predictions in 128 tokens.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from indexer.errors import ArgumentError
from indexer.text.language import identify
from indexer.text.sections import split_sections
from indexer.text.sentences import split_sentences
from rag.training.heldout import LANGUAGES, HeldOut, read_rows
from rag.training.memory import within_memory
from rag.training.settings import MlmSettings
from rag.training.trainers import Tell, on_one_gpu, run_trainer, shared_arguments

MARKS = ("[**", "**]", "___")
_PREDICTIONS_PER_TOKEN = 20 / 128
_HEADS = {"cls", "lm_head", "head"}  # what turns states into tokens: BERT, RoBERTa and its kin, ModernBERT
_SENTENCES_A_PAGE = 40
_LONGEST_WORD = 10  # pieces; what is longer is a sentence of a script without blanks


def pretrain(
    model: Path,
    data: Path,
    out: Path,
    folder: Path,
    settings: MlmSettings,
    seed: int,
    tell: Tell,
    source: Path | None = None,
) -> Path:
    """Write the model after masked language modelling; checkpoints in ``folder`` are gone on from.

    Args:
        model: the sentence-transformers directory so far; its pooling and prompts are kept.
        data: the data folder; ``settings.sources`` are files under it without ``.jsonl.gz``.
        out: where the result goes.
        folder: the stage's own folder.
        settings: see `MlmSettings`.
        seed: of mixing, masking and order.
        tell: told of every logged step.
        source: the checkpoint as published, where it has the prediction head that ``model`` lost.

    Raises:
        ArgumentError: no text is left, or shares and sources do not match.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    torch.manual_seed(seed)  # a checkpoint without a prediction head gets a random one
    tokenizer = AutoTokenizer.from_pretrained(source or model, local_files_only=True)
    net = AutoModelForMaskedLM.from_pretrained(source or model, local_files_only=True, dtype=torch.float32)
    if tokenizer.add_tokens(list(MARKS)):
        net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    length = min(settings.max_length, int(getattr(net.config, "max_position_embeddings", settings.max_length)) - 2)
    rows = [ids for ids in packed_rows(data, settings, tokenizer, length, seed) for _ in range(settings.duplication)]
    if not rows:
        raise ArgumentError("mlm.sources", "give no text; name files of the data folder such as notes/mtsamples")
    arguments = _arguments(folder, settings, seed)
    trainer = _masked_trainer(net, settings, tell)(
        model=net,
        args=arguments,
        train_dataset=Draws(rows, settings.steps * arguments.train_batch_size * arguments.world_size),
        data_collator=Masker(tokenizer, settings, seed),
    )
    if not run_trainer(trainer, "mlm", folder, tell):
        return out
    net.save_pretrained(out.parent / "masked")  # with its head, for a pretraining stage that follows
    tokenizer.save_pretrained(out.parent / "masked")
    shutil.copytree(model, out, dirs_exist_ok=True)
    body = getattr(net, net.base_model_prefix)
    body.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _arguments(folder: Path, settings: MlmSettings, seed: int) -> Any:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        **shared_arguments(folder / "checkpoints", seed),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=0.06,
        save_steps=settings.checkpoint_steps,
        logging_steps=max(1, min(50, settings.steps // 10)),
        bf16=settings.bfloat16,
        use_cpu=not torch.cuda.is_available(),  # else bfloat16 asks for a GPU
        remove_unused_columns=False,
    )
    return on_one_gpu(arguments)


def _masked_trainer(net: Any, settings: MlmSettings, tell: Tell) -> Any:
    """Return the class of a trainer whose steps take what memory there is."""
    from transformers import Trainer

    head = next((part for name, part in net.named_children() if name in _HEADS), None)
    size = [settings.batch]

    def shrink() -> bool:
        size[0] //= 2
        tell(0.0, {"micro_batch": size[0]})
        return size[0] > 0

    class MaskedTrainer(Trainer):  # type: ignore[misc,unused-ignore]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
            # the head reads hidden positions alone: a vocabulary-wide row for each of the others would cost as much
            # again as the body of a small model
            labels, share = inputs.pop("labels"), inputs.pop("share", 1.0)
            hidden = labels != -100  # (B, T)
            if head is None:  # one of several parts, such as DistilBERT's: every position is read
                scores = model(**inputs).logits[hidden]  # (hidden, V)
            else:
                hook = head.register_forward_pre_hook(lambda _, states: (states[0][hidden],))
                try:
                    scores = model(**inputs).logits
                finally:
                    hook.remove()
            loss: torch.Tensor = torch.nn.functional.cross_entropy(scores.float(), labels[hidden]) * share
            return loss

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            # a batch that does not fit is read in parts, each weighted by what is asked of it: the same gradient
            def step() -> torch.Tensor:
                model.zero_grad()
                asked = int((inputs["labels"] != -100).sum())
                losses = []
                for at in range(0, len(inputs["labels"]), size[0]):
                    part = {name: value[at : at + size[0]] for name, value in inputs.items()}
                    share = int((part["labels"] != -100).sum()) / asked
                    losses.append(super(MaskedTrainer, self).training_step(model, part | {"share": share}))
                total: torch.Tensor = torch.stack(losses).sum()
                return total

            return within_memory(step, shrink)

    return MaskedTrainer


class Draws(torch.utils.data.Dataset[dict[str, Any]]):
    """All rows that a run will read, round after round; each knows its number, whatever was read before it."""

    def __init__(self, rows: Sequence[list[int]], count: int) -> None:
        """Take the rows and how many are read in all."""
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self._rows[number % len(self._rows)], "draw": number}


class Masker:
    """Pads a batch and hides tokens, or whole words; never more than twenty in 128 tokens.

    What is hidden of a row is told by the seed and the number of its draw: a run that goes on hides the same.
    """

    def __init__(self, tokenizer: Any, settings: MlmSettings, seed: int) -> None:
        """Take the tokenizer whose special tokens are never hidden."""
        self._tokenizer = tokenizer
        self._settings = settings
        self._seed = seed
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is asked), each ``(B, T)``.

        Args:
            rows: token ids under ``input_ids``, and under ``draw`` a number of their own.
        """
        width = max(len(row["input_ids"]) for row in rows)
        tokens = torch.full((len(rows), width), int(self._tokenizer.pad_token_id))
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for number, row in enumerate(rows):
            ids = torch.tensor(row["input_ids"])
            tokens[number, : len(ids)] = ids
            mask[number, : len(ids)] = 1
            chance = random.Random(f"{self._seed}/mask/{row['draw']}")  # noqa: S311 - no secret
            for at in self._hidden(row["input_ids"], chance):
                labels[number, at] = ids[at]
                draw = chance.random()
                if draw < 0.8:
                    tokens[number, at] = int(self._tokenizer.mask_token_id)
                elif draw < 0.9:
                    tokens[number, at] = chance.randrange(len(self._tokenizer))
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    def _hidden(self, ids: Sequence[int], chance: random.Random) -> list[int]:
        """Return the positions to hide, whole words together where asked; at least one, of a row that has any."""
        groups: list[list[int]] = []
        pieces = self._tokenizer.convert_ids_to_tokens(list(ids))
        for at, (number, piece) in enumerate(zip(ids, pieces, strict=True)):
            if number in self._special:
                continue
            goes_on = piece.startswith("##") or (not piece.startswith(("▁", "Ġ")) and self._has_word_marks(pieces))
            if self._settings.whole_words and goes_on and groups and groups[-1][-1] == at - 1:
                groups[-1].append(at)
            else:
                groups.append([at])
        groups = [
            one for group in groups for one in ([group] if len(group) <= _LONGEST_WORD else [[at] for at in group])
        ]
        most = max(1, int(len(ids) * _PREDICTIONS_PER_TOKEN))
        wanted = min(most, max(1, round(self._settings.masked * sum(map(len, groups)))))
        chance.shuffle(groups)
        hidden: list[int] = []
        for group in groups:
            if len(hidden) + len(group) <= wanted:
                hidden.extend(group)
        return hidden or groups[0][:wanted]  # each word of a short row may be longer than may be hidden of it

    @staticmethod
    def _has_word_marks(pieces: Sequence[str]) -> bool:
        return any(piece.startswith(("▁", "Ġ")) for piece in pieces)


def packed_rows(data: Path, settings: MlmSettings, tokenizer: Any, length: int, seed: int) -> list[list[int]]:
    """Return token ids of whole sentences packed up to ``length``, mixed from the sources by their shares.

    Raises:
        ArgumentError: shares and sources do not match.
        SourceError: a source is not there or damaged.
    """
    shares = settings.shares or (1.0,) * len(settings.sources)
    if len(shares) != len(settings.sources):
        raise ArgumentError("mlm.shares", f"has {len(shares)} values for {len(settings.sources)} sources")
    held_out = HeldOut(data)
    special = set(tokenizer.all_special_ids)
    chance = random.Random(f"{seed}/mix")  # noqa: S311 - no secret
    found: list[list[int]] = []
    for name, share in zip(settings.sources, shares, strict=True):
        packed = _pack(_sentences(data / f"{name}.jsonl.gz", held_out), tokenizer, length)
        rows = [row for row in packed if not special.issuperset(row)]  # all unknown: nothing could be asked of it
        whole, rest = divmod(share, 1.0)
        found += rows * int(whole)
        found += chance.sample(rows, int(len(rows) * rest))
    chance.shuffle(found)
    return found


def _sentences(path: Path, held_out: HeldOut) -> Iterator[list[str]]:
    pages: dict[str, list[str]] = {}  # parallel text: one language's sentences in a row make a text of their own
    for row in read_rows(path):
        if path.parent.name == "parallel":
            for language in LANGUAGES:
                sentence = row.get(language)
                if isinstance(sentence, str) and not held_out.holds_text(sentence):
                    page = pages.setdefault(language, [])
                    page.append(sentence.strip())
                    if len(page) == _SENTENCES_A_PAGE:
                        yield pages.pop(language)
            continue
        text = str(row.get("text") or row.get("text_b") or "")
        if held_out.holds_note(str(row.get("id", "")), text):
            continue
        written = row.get("language") or identify(text)
        sentences = []
        for section in split_sections(text, written):
            for span in split_sentences(text, written, section.span):
                sentences.append(text[span.start : span.end].strip())
        yield [sentence for sentence in sentences if sentence]
    yield from pages.values()


def _pack(notes: Iterator[list[str]], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Yield rows of whole sentences of one note; a sentence longer than a row is cut."""
    edges = tokenizer("")["input_ids"]
    first, last = edges[: len(edges) // 2], edges[len(edges) // 2 :]
    room = length - len(edges)
    for sentences in notes:
        row: list[int] = []
        for ids in tokenizer(sentences, add_special_tokens=False)["input_ids"] if sentences else []:
            if row and len(row) + len(ids) > room:
                yield [*first, *row, *last]
                row = []
            row += ids[:room]
        if len(row) > 8:
            yield [*first, *row[:room], *last]
