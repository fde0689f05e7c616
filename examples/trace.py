"""Trace what guidance did to each new token: the gate, log-probabilities, which tokens rose and fell.

    python examples/trace.py --alpha 1.5
    python examples/trace.py --guides toy-guide --prompt "how do i make coffee ?"

Offline. Without --guides a small guide is trained first (see examples/train.py).
"""

import argparse
import tempfile
from pathlib import Path

from train import train
from transformers import AutoTokenizer

from dual_head import DualHeadModel


def trace(guides: Path, prompt: str, alpha: float) -> None:
    """Print one line per generated token; log-probabilities and divergence in nats."""
    model = DualHeadModel.from_pretrained(guides)
    tokenizer = AutoTokenizer.from_pretrained(guides)

    # One trace per row of the batch, and one `TokenTrace` per new token of it.
    reply, (tokens,) = model.generate(prompt, tokenizer=tokenizer, alpha=alpha, max_new_tokens=48, return_trace=True)
    print(reply)
    print(f"\n{'token':>12} {'gate':>5} {'base':>7} {'policy':>7} {'KL':>6}   promoted, demoted")
    for token in tokens:
        word = tokenizer.decode([token.token_id])
        (rose, gain), (fell, loss) = token.promoted[0], token.demoted[0]
        row = f"{word:>12} {token.gates['dual_head']:5.2f} {token.base_logp:7.3f} {token.policy_logp:7.3f}"
        print(f"{row} {token.kl:6.3f}   {tokenizer.decode([rose])} {gain:+.3f}, {tokenizer.decode([fell])} {loss:+.3f}")
    print(f"KL(policy || backbone) along the reply: {sum(token.kl for token in tokens):.3f} nats")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--guides", type=Path, help="folder of a trained guide")
    parser.add_argument("--prompt", default="how do i bake bread ?")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.guides:
            train(Path(folder), steps=args.steps)
        trace(args.guides or Path(folder), args.prompt, args.alpha)
