"""Every method in the demonstration world: trained on the same pairs, scored by the exact reward.

    python experiments/demo_methods.py --output_dir demo-methods [--methods iav genarm] [--steps 300]

Writes methods.json and prints the table of docs/results.md. One method takes under two minutes on a core.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from dual_head import AlignedModel, method
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import measure
from dual_head.demo.world import preference_rows, sample_requests
from dual_head.run import RunOptions, load_tokenizer, train_guide
from dual_head.training import GuideTrainingArguments

# What each method is trained with here, beside its paper's own values; the same data, steps and batch for all.
SETTINGS = {
    "dual_head": ({"preference_on": "policy", "beta_r": 0.5}, 3e-3),
    "iav": ({"beta": 0.5, "lambda_kl": 0.0, "lambda_l2": 0.0}, 3e-3),
    "mav": ({"beta": 0.5, "lambda_l2": 0.0}, 1e-3),
    "hidden": ({"beta": 0.5, "lambda_kl": 0.0}, 3e-3),
    "genarm": ({"beta": 0.5}, 3e-3),
    "dpo": ({"beta": 0.5}, 1e-3),
    "simpo": ({}, 2e-4),
    "reward": ({}, 1e-3),
}
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)


def main() -> None:
    """Train and measure each method."""
    args = _arguments()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    pairs = output / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(args.pairs, seed=args.seed)))
    requests = sample_requests(args.prompts, seed=args.seed, split="test")
    results = {}
    for name in args.methods or SETTINGS:
        options, rate = SETTINGS[name]
        folder = output / name
        started = time.perf_counter()
        train_guide(
            method(name).with_options(options),
            RunOptions(model_name_or_path=str(TOY_BACKBONE), dataset_name=str(pairs), held_out=0.1, restart=True),
            GuideTrainingArguments(
                output_dir=str(folder),
                max_steps=args.steps,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                learning_rate=args.learning_rate or rate,
                lr_scheduler_type="cosine",
                save_strategy="no",
                eval_strategy="no",
                disable_tqdm=True,
                seed=args.seed,
            ),
        )
        seconds = time.perf_counter() - started
        model, tokenizer = AlignedModel.from_pretrained(str(folder)), load_tokenizer(str(folder))
        points = measure(model, tokenizer, requests, ALPHAS, seed=args.seed)
        gains = {p.alpha: p.gain_over(points[0]) for p in points[1:]}
        results[name] = {
            "options": options,
            "learning_rate": args.learning_rate or rate,
            "parameters": sum(x.numel() for x in model.stored().values()),
            "forwards": 1 + model.guide(method(name).name).forwards,
            "seconds": seconds,
            "reward": {p.alpha: statistics.fmean(p.rewards()) for p in points},
            "kl": {p.alpha: p.kl() for p in points},
            "gain": {alpha: {"mean": mean, "interval": interval} for alpha, (mean, interval) in gains.items()},
        }
        print(_row(name, results[name]), flush=True)
    about = {
        "command": f"python experiments/demo_methods.py --steps {args.steps} --pairs {args.pairs} --seed {args.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "requests": len(requests),
    }
    (output / "methods.json").write_text(json.dumps({**about, "methods": results}, indent=2))


def _row(name: str, result: dict) -> str:
    rewards = " / ".join(f"{value:.2f}" for value in result["reward"].values())
    best = max(result["gain"], key=lambda alpha: result["gain"][alpha]["mean"])
    gain, (low, high) = result["gain"][1.0]["mean"], result["gain"][1.0]["interval"]
    top = result["gain"][best]["mean"]
    return (
        f"| {name} | {result['parameters']:,} | {result['forwards']:g} | {rewards} | {gain:+.2f} ({low:+.2f} to "
        f"{high:+.2f}) | {result['kl'][1.0]:.2f} | {top:+.2f} at {best:g} | {result['seconds']:.0f} |"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--methods", nargs="*", choices=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, help="instead of each method's own")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
