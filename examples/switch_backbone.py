"""Move a trained guide to a wider backbone: what fits, what is pooled, and what an adapter would train.

    python examples/switch_backbone.py --width 192

Offline. The wider backbone has random weights: this shows the mechanics, and says nothing about quality.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from train import train
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dual_head import AlignedModel
from dual_head.cli.inspect import compare


def widen(folder: Path, tokenizer, width: int) -> None:
    """Write a random Llama of another width and depth, with the toy backbone's tokenizer."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 6, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def move(folder: Path, steps: int, width: int) -> None:
    """Train a guide on the toy backbone, move it, and compare logits."""
    guides, wide = folder / "guides", folder / "wide"
    train(guides, steps=steps)
    tokenizer = AutoTokenizer.from_pretrained(guides)
    widen(wide, tokenizer, width)

    print(compare(str(guides), str(wide))[1])  # as `dual-head inspect GUIDES --against BACKBONE`
    model = AlignedModel.from_pretrained(guides)
    print(f"moved: {model.switch_backbone(wide)}")

    ids = tokenizer("user : how do i bake bread ? assistant :", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        guided = model(ids.expand(2, -1), alpha=[0.0, 1.0]).logits
        base = model.backbone.lm(ids.expand(2, -1)).logits
    print(f"alpha = 0 equals the new backbone: {torch.equal(guided[0], base[0])}")
    print(f"alpha = 1 moves a logit by up to {(guided[1] - base[1]).abs().max():.2f}")

    # An adapter starts as the pooling; `dual-head train ... --move_guides GUIDES` trains it and nothing else.
    adapted = AlignedModel.from_pretrained(guides, backbone=wide, switch=True, adapter=True)
    print(f"an adapter has {sum(p.numel() for p in adapted.transfers.parameters()):,} parameters to train")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=192)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        move(Path(folder), args.steps, args.width)
