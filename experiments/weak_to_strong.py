"""Weak to strong in the demonstration world: guides trained on a small backbone steer a larger one.

    python scripts/train_toy_backbone.py --output_dir weak --hidden_size 48 --layers 2 --steps 1200
    python experiments/weak_to_strong.py --weak weak --output_dir weak-to-strong

Four ways, all trained on the weak backbone only, against two trained on the strong one:
a head moved with pooled hidden states; the same with its map of hidden states trained on the strong backbone; an
autoregressive reward model (GenARM); and a weak guided model, z_strong + alpha (z_weak_guided - z_weak).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dual_head import AlignedModel, method
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import Point, measure
from dual_head.demo.world import preference_rows, sample_requests
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.run import RunOptions, load_tokenizer, train_guide
from dual_head.training import GuideTrainingArguments

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)
# Options and learning rate, as in demo_methods.py.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "iav": ({"beta": 0.5, "lambda_kl": 0.0, "lambda_l2": 0.0}, 3e-3),
    "hidden": ({"beta": 0.5, "lambda_kl": 0.0}, 3e-3),
    "genarm": ({"beta": 0.5}, 3e-3),
}


def main() -> None:
    """Train on the weak and the strong backbone, move, measure."""
    args = _arguments()
    output, weak, strong = Path(args.output_dir), str(Path(args.weak).resolve()), str(TOY_BACKBONE)
    output.mkdir(parents=True, exist_ok=True)
    pairs = output / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(args.pairs, seed=args.seed)))
    for name in SETTINGS:
        _train(name, weak, pairs, output / f"weak_{name}", args)
    _train("hidden", strong, pairs, output / "strong_hidden", args)
    _train("iav", strong, pairs, output / "strong_iav", args)
    _train("iav", strong, pairs, output / "adapted_iav", args, move_guides=str(output / "weak_iav"))
    tokenizer = load_tokenizer(strong)
    steered = AlignedModel.from_backbone(strong, {}, tokenizer=tokenizer)
    own = str((output / "weak_hidden").resolve())
    steered.attach("guided", LanguageModelConfig(model=own, against="unguided", tune="none"))
    systems = {
        "weak, hidden-space guide": AlignedModel.from_pretrained(output / "weak_hidden"),
        "strong, its own hidden-space guide": AlignedModel.from_pretrained(output / "strong_hidden"),
        "strong, its own head (IAV)": AlignedModel.from_pretrained(output / "strong_iav"),
        "weak head moved, pooled": _moved(output / "weak_iav", strong),
        "weak head moved, trained adapter": AlignedModel.from_pretrained(output / "adapted_iav"),
        "weak GenARM steers strong": _moved(output / "weak_genarm", strong),
        "weak guided model steers strong": steered,
    }
    requests = sample_requests(args.prompts, seed=args.seed, split="test")
    results = {}
    for name, model in systems.items():
        points = measure(model, tokenizer, requests, ALPHAS, seed=args.seed)
        results[name] = _result(points)
        print(_row(name, results[name]), flush=True)
    about = {
        "command": f"python experiments/weak_to_strong.py --weak {args.weak} --steps {args.steps} --seed {args.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "requests": len(requests),
    }
    (output / "weak_to_strong.json").write_text(json.dumps({**about, "systems": results}, indent=2))


def _train(name: str, backbone: str, pairs: Path, folder: Path, args: argparse.Namespace, **more: Any) -> None:
    options, rate = SETTINGS[name]
    train_guide(
        method(name).with_options(options),
        RunOptions(model_name_or_path=backbone, dataset_name=str(pairs), held_out=0.1, restart=True, **more),
        GuideTrainingArguments(
            output_dir=str(folder),
            max_steps=args.steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
            seed=args.seed,
        ),
    )


def _moved(guides: Path, backbone: str) -> AlignedModel:
    return AlignedModel.from_pretrained(guides, backbone=backbone, switch=True)


def _result(points: list[Point]) -> dict[str, Any]:
    gains = {p.alpha: p.gain_over(points[0]) for p in points[1:]}
    return {
        "reward": {p.alpha: statistics.fmean(p.rewards()) for p in points},
        "kl": {p.alpha: p.kl() for p in points},
        "gain": {alpha: {"mean": mean, "interval": interval} for alpha, (mean, interval) in gains.items()},
    }


def _row(name: str, result: dict[str, Any]) -> str:
    rewards = " / ".join(f"{value:.2f}" for value in result["reward"].values())
    gain, (low, high) = result["gain"][1.0]["mean"], result["gain"][1.0]["interval"]
    return f"| {name} | {rewards} | {gain:+.2f} ({low:+.2f} to {high:+.2f}) | {result['kl'][1.0]:.2f} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", required=True, help="a smaller backbone of the world's tokenizer")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
