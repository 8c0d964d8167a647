"""Tiny random checkpoints of real architectures, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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


_TEXT = [
    "the patient has fever and no pain",
    "el paciente tiene fiebre sin dolor",
    "患者発熱無 患者发热 痛み",
    "у пациента жар и боль",
    "سلام الصداع والحمى",  # a script that no served language writes: pruning drops it
    "query: passage: 0123456789 .,;:!?¿ cough rash edema nausea asthma anemia tos erupción hinchazón náuseas crónica",
]
_ROBERTA_NAMES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERT_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _trained(kind: str) -> tuple[Tokenizer, tuple[str, ...]]:
    """Return a tokenizer counted on a few lines, of the kind that an architecture's checkpoints have."""
    if kind == "wordpiece":
        inner, names = Tokenizer(models.WordPiece(unk_token="[UNK]")), _BERT_NAMES
        inner.normalizer = normalizers.BertNormalizer(lowercase=False)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: trainers.Trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(names))
    elif kind == "bytes":
        inner, names = Tokenizer(models.BPE()), _ROBERTA_NAMES
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(names), initial_alphabet=alphabet)
    elif kind == "gemma":  # BPE over words with their space, unknown letters as bytes: mmBERT's
        inner, names = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True)), _ROBERTA_NAMES
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        names_and_bytes = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names_and_bytes)
    else:
        inner, names = Tokenizer(models.Unigram()), _ROBERTA_NAMES
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=250, special_tokens=list(names), unk_token="<unk>")
    inner.train_from_iterator(_TEXT * 3, trainer)
    if kind == "gemma":  # bytes are plain pieces, not special tokens
        content = json.loads(inner.to_str())
        content["added_tokens"] = [item for item in content["added_tokens"] if item["content"] in names]
        inner = Tokenizer.from_str(json.dumps(content))
    first, last = (names[2], names[3]) if kind == "wordpiece" else (names[0], names[2])
    ends = [(last, inner.token_to_id(last)), (first, inner.token_to_id(first))]
    if kind == "bytes":
        inner.post_processor = processors.RobertaProcessing(*ends)
    elif kind == "wordpiece":
        inner.post_processor = processors.BertProcessing(*ends)
    else:
        inner.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return inner, names


ARCHITECTURES = {
    "bert": ("wordpiece", transformers.BertConfig, transformers.BertForMaskedLM),
    "modernbert": ("bytes", transformers.ModernBertConfig, transformers.ModernBertForMaskedLM),
    "mmbert": ("gemma", transformers.ModernBertConfig, transformers.ModernBertForMaskedLM),
    "roberta": ("bytes", transformers.RobertaConfig, transformers.RobertaForMaskedLM),
    "camembert": ("unigram", transformers.CamembertConfig, transformers.CamembertForMaskedLM),
    "xlm-roberta": ("unigram", transformers.XLMRobertaConfig, transformers.XLMRobertaForMaskedLM),
    "longformer": ("bytes", transformers.LongformerConfig, transformers.LongformerForMaskedLM),
}


def checkpoint(architecture: str, folder: Path, *, length: int = 64) -> Path:
    """A two-layer random checkpoint as its authors would publish it: with its prediction head, without pooling."""
    kind, config_of, model_of = ARCHITECTURES[architecture]
    inner, names = _trained(kind)
    wordpiece = kind == "wordpiece"
    roles = ("pad", "unk", "cls", "sep", "mask") if wordpiece else ("cls", "pad", "sep", "unk", "mask")
    special = {f"{role}_token": name for role, name in zip(roles, names, strict=True)}
    if not wordpiece:
        special |= {"bos_token": names[0], "eos_token": names[2]}
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if wordpiece else ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=length, model_input_names=inputs, **special
    )
    options = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    ids = {f"{role}_token_id": fast.convert_tokens_to_ids(name) for role, name in zip(roles, names, strict=True)}
    options["pad_token_id"] = ids["pad_token_id"]
    if architecture in {"modernbert", "mmbert"}:
        ends = {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
        options |= ids | ends | {"global_attn_every_n_layers": 2, "local_attention": 32}
        options.pop("unk_token_id")
        options.pop("mask_token_id")
        positions = length
    else:
        positions = length if architecture == "bert" else length + 2
    if architecture == "longformer":
        options |= {"attention_window": [16, 16]}
    if not wordpiece and "modernbert" not in model_of.__name__.lower():
        options |= {"type_vocab_size": 1, "bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    torch.manual_seed(7)
    config = config_of(vocab_size=len(fast), max_position_embeddings=positions, **options)
    model_of(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
