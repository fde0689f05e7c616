"""Every method in the demonstration world: trained on the same pairs, scored by the exact reward.

    python experiments/demo_methods.py --output_dir demo-methods [--methods iav genarm] [--steps 300]

Writes methods.json and prints the table of docs/results/methods.md. One method takes about a minute on a core.
"""

import argparse
import time
from pathlib import Path

from world_runs import ALPHAS, SETTINGS, gain_of, result, rewards_of, train, write, write_pairs

from dual_head import AlignedModel, method
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import measure
from dual_head.demo.world import sample_requests
from dual_head.model.pretrained import load_tokenizer


def main() -> None:
    """Train and measure each method."""
    args = _arguments()
    output = Path(args.output_dir)
    pairs = write_pairs(output, args.pairs, args.seed)
    requests = sample_requests(args.prompts, seed=args.seed, split="test")
    results = {}
    for name in args.methods or SETTINGS:
        options, rate = SETTINGS[name]
        rate = args.learning_rate or rate
        folder = output / name
        started = time.perf_counter()
        train(name, str(TOY_BACKBONE), pairs, folder, options=options, rate=rate, steps=args.steps, seed=args.seed)
        seconds = time.perf_counter() - started
        model, tokenizer = AlignedModel.from_pretrained(str(folder)), load_tokenizer(str(folder))
        results[name] = {
            "options": options,
            "learning_rate": rate,
            "parameters": sum(x.numel() for x in model.stored().values()),
            "forwards": 1 + model.guide(method(name).name).extra_forwards,
            "seconds": seconds,
            **result(measure(model, tokenizer, requests, args.alphas, seed=args.seed)),
        }
        print(_row(name, results[name]), flush=True)
    command = f"python experiments/demo_methods.py --steps {args.steps} --pairs {args.pairs} --seed {args.seed}"
    write(output / "methods.json", command, requests=len(requests), methods=results)


def _row(name: str, figures: dict) -> str:
    best = max(figures["gain"], key=lambda alpha: figures["gain"][alpha]["mean"])
    return (
        f"| {name} | {figures['parameters']:,} | {figures['forwards']:g} | {rewards_of(figures)} | {gain_of(figures)} |"
        f" {figures['kl'][1.0]:.2f} | {figures['gain'][best]['mean']:+.2f} at {best:g} | {figures['seconds']:.0f} |"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--methods", nargs="*", choices=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, help="instead of each method's own")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help="strengths, 0 first and 1 among them")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
