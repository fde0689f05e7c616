"""A tiny backbone and preference data on disk, laid out as real ones are."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
GOOD = [f"good{i}" for i in range(8)]
BAD = [f"bad{i}" for i in range(8)]
ASKED = [f"ask{i}" for i in range(20)]
WORDS = [
    *SPECIAL,
    *GOOD,
    *BAD,
    *ASKED,
    "once",
    "upon",
    "a",
    "time",
    "how",
    "can",
    "i",
    "?",
    "abcdef",
]  # the last is what transformers' stop strings try a tokenizer with


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, <s> in front."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_backbone(folder: Path, *, hidden_size: int = 32, seed: int = 0) -> Path:
    """Save a random Llama of two layers with the tokenizer beside it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def write_pairs(file: Path, count: int, *, seed: int = 0) -> Path:
    """Write pairs in TRL's standard format."""
    rng = random.Random(seed)
    with file.open("w") as stream:
        for _ in range(count):
            row = {
                "prompt": " ".join(rng.choices(ASKED, k=rng.randint(2, 5))),
                "chosen": " " + " ".join(rng.choices(GOOD, k=rng.randint(1, 6))),
                "rejected": " " + " ".join(rng.choices(BAD, k=rng.randint(1, 6))),
            }
            stream.write(json.dumps(row) + "\n")
    return file
