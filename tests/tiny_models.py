"""Tiny random checkpoints of real architectures, made on the spot: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_PIECES = [chr(code) for code in range(33, 127)] + ["##" + chr(code) for code in range(97, 123)]
_WORDS = [
    "the",
    "patient",
    "has",
    "fever",
    "no",
    "pain",
    "dolor",
    "sin",
    "fiebre",
    "患",
    "者",
    "発",
    "熱",
    "無",
    "жар",
    "боль",
]


def _wordpiece(specials: list[str]) -> Tokenizer:
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*specials, *_WORDS, *_PIECES]))}
    unknown = "[UNK]" if "[UNK]" in vocabulary else "<unk>"
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first, last = specials[0], specials[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    return tokenizer


def _tokenizer(folder: Path, length: int, *, roberta: bool = False, token_types: bool = True) -> int:
    names = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"] if roberta else ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    inner = _wordpiece(names)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if token_types else ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        cls_token=names[0],
        sep_token=names[1],
        pad_token=names[2],
        unk_token=names[3],
        mask_token=names[4],
        model_max_length=length,
        model_input_names=inputs,
    )
    fast.save_pretrained(folder)
    return int(inner.get_vocab_size())


def bert(folder: Path, *, length: int = 64) -> Path:
    """A two-layer BERT (the shape of mBERT): token types, learned positions."""
    size = _tokenizer(folder, length)
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=length,
        pad_token_id=2,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def modernbert(folder: Path, *, length: int = 1024) -> Path:
    """A two-layer ModernBERT (the shape of mmBERT): rotary positions, no token types, long inputs."""
    size = _tokenizer(folder, length, token_types=False)
    torch.manual_seed(7)
    config = transformers.ModernBertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=length,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        cls_token_id=0,
        sep_token_id=1,
        global_attn_every_n_layers=2,
        local_attention=32,
    )
    transformers.ModernBertModel(config).save_pretrained(folder)
    return folder


def roberta(folder: Path, *, length: int = 64) -> Path:
    """A two-layer RoBERTa: positions start behind the padding index."""
    size = _tokenizer(folder, length, roberta=True, token_types=False)
    torch.manual_seed(7)
    config = transformers.RobertaConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=length + 3,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        type_vocab_size=1,
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder
