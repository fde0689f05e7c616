"""A tiny backbone and preference data on disk, laid out as real ones are."""

import json
import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<s>", "<|im_start|>", "<|im_end|>"]


def letters(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, a BOS before texts, and ChatML's special tokens."""
    vocab = {name: n for n, name in enumerate([*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    core.add_special_tokens([AddedToken(name, special=True) for name in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


def word_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word, <s> in front."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_backbone(
    folder: Path,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    seed: int = 0,
    words: list[str] = WORDS,
    padding: int = 0,
    spread: float = 0.02,
) -> Path:
    """Save a random Llama with the tokenizer beside it; padding: logits that stand for no token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words) + padding,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=layers,
        initializer_range=spread,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(words).save_pretrained(folder)
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


def write_adapter(folder: Path, backbone: Path, *, seed: int = 5, spread: float = 0.3) -> Path:
    """Save a random LoRA of rank 2 (lora_alpha 4) on the queries of a backbone, as PEFT does."""
    import peft

    from dual_head.guides.second_model import injecting

    lm = LlamaForCausalLM.from_pretrained(backbone)
    with injecting(lm):
        lora = peft.get_peft_model(
            lm, peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"])
        )
    torch.manual_seed(seed)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=spread)
    lora.save_pretrained(folder)
    return folder


def write_classifier(folder: Path, *, seed: int = 4) -> Path:
    """Save a random reward model of one layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_guides(folder: Path, backbone: Path, guides: dict, *, seed: int = 1, spread: float = 0.3, **options) -> Path:
    """Save guides whose every weight is random, with their tokenizer, as training leaves them."""
    from dual_head import AlignedModel

    tokenizer = options.pop("tokenizer", None) or word_tokenizer()
    model = AlignedModel.from_backbone(str(backbone), guides, tokenizer=tokenizer, **options)
    torch.manual_seed(seed)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flip_a_bit(file: Path, place: int = -1) -> None:
    """Change one bit of a file, by default in its last byte."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def forget_checksums(folder: Path, record: str = "config.json") -> None:
    """Make a folder what it was before checksums were recorded."""
    values = json.loads((folder / record).read_text())
    del values["checksums"]
    (folder / record).write_text(json.dumps(values))
