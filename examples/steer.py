"""Steer one prompt at several strengths in one batch; strength 0 is the backbone, bit for bit.

    python examples/steer.py --alpha 0 0.5 1 2
    python examples/steer.py --guides toy-guide --prompt "how do i make coffee ?"

Offline. Without --guides a small guide is trained first (see examples/train.py).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from train import train
from transformers import AutoTokenizer

from dual_head import DualHeadModel


def steer(guides: Path, prompt: str, alphas: list[float]) -> None:
    """Print the greedy reply at each strength, and compare strength 0 with the backbone."""
    model = DualHeadModel.from_pretrained(guides)
    tokenizer = AutoTokenizer.from_pretrained(guides)

    replies = model.generate([prompt] * len(alphas), tokenizer=tokenizer, alpha=alphas, max_new_tokens=48)
    for alpha, reply in zip(alphas, replies, strict=True):
        print(f"alpha = {alpha:<4g} {reply}")

    ids = tokenizer([prompt] * 2, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        guided = model(ids, alpha=[0.0, 1.0]).logits
        base = model.backbone.lm(ids).logits
    print(f"alpha = 0 equals the backbone: {torch.equal(guided[0], base[0])}")
    print(f"alpha = 1 moves a logit by up to {(guided[1] - base[1]).abs().max():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--guides", type=Path, help="folder of a trained guide")
    parser.add_argument("--prompt", default="how do i bake bread ?")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.guides:
            train(Path(folder), steps=args.steps)
        steer(args.guides or Path(folder), args.prompt, args.alpha)
