"""A small BERT from nothing: a vocabulary counted on the texts at hand and random weights, ready for pretraining."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from indexer.errors import ArgumentError
from rag.training.folder import write_pooling
from rag.training.settings import ScratchSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_scratch(texts: Iterable[tuple[str, str]], folder: Path, settings: ScratchSettings, seed: int) -> Path:
    """Write a random BERT over a WordPiece vocabulary as a sentence-transformers directory and return it.

    Its prediction head goes to ``masked`` beside ``folder``, where a first pretraining stage looks for it.

    Args:
        texts: ``(language, text)``; of each language at most ``settings.characters`` are counted, so that a language
            with little text keeps its words.
        folder: where the directory goes.
        settings: the model's shape.
        seed: of the weights.

    Raises:
        ArgumentError: there is no text to count, or the heads do not divide the width.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    if settings.hidden % settings.heads:
        raise ArgumentError("start.heads", f"must divide the width: {settings.hidden} / {settings.heads}")
    inner = train_wordpiece(_capped(texts, settings.characters), settings.vocabulary)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=inner, model_max_length=settings.positions, model_input_names=inputs, **names
    )
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=inner.get_vocab_size(),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=settings.feed_forward,
            max_position_embeddings=settings.positions,
            pad_token_id=0,
        )
    )
    for place, part in ((folder.parent / "masked", model), (folder, model.bert)):
        part.save_pretrained(place)
        tokenizer.save_pretrained(place)
    write_pooling(folder, settings.hidden, settings.positions)
    return folder


def train_wordpiece(texts: Iterable[str], size: int) -> Tokenizer:
    """Return a cased WordPiece tokenizer (Han characters alone, words cut into pieces) counted on the texts.

    Raises:
        ArgumentError: there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), limit_alphabet=size // 2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= len(SPECIAL):
        raise ArgumentError("data", "holds no text to count a vocabulary on")
    first, last = SPECIAL[2], SPECIAL[3]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, tokenizer.token_to_id(first)), (last, tokenizer.token_to_id(last))],
    )
    return tokenizer


def _capped(texts: Iterable[tuple[str, str]], most: int) -> Iterator[str]:
    taken: Counter[str] = Counter()
    for language, text in texts:
        if taken[language] < most:
            taken[language] += len(text)
            yield text
