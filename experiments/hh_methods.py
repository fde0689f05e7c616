"""Every method on real pairs, and two guides of two objectives mixed, on any small backbone.

    python experiments/hh_methods.py --model_name_or_path stories260k --data hh_rlhf --output_dir hh-methods

`data` is a folder with helpful-base.test.jsonl.gz and harmless-base.test.jsonl.gz. Trains each method on the helpful
pairs for the same steps, then one hidden-space guide on each objective, attaches both, and scores held-out pairs of
both objectives under every mixture: how often log pi - log pi_base is larger for the chosen reply.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dual_head import AlignedModel, PairCollator, TokenizeOptions, load_pairs, method, split_by_prompt, tokenize_pairs
from dual_head.model.pretrained import load_tokenizer
from dual_head.ops.token_scores import split_sides
from dual_head.stats import wilson
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.run import RunOptions, train_guide

METHODS = {
    "dual_head": 1e-3,
    "iav": 1e-3,
    "mav": 1e-3,
    "hidden": 3e-3,
    "genarm": 3e-3,
    "dpo": 1e-3,
    "simpo": 1e-4,
    "reward": 1e-3,
}
HELD_OUT = 0.1
MIXTURES = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)] + [(0.5, 0.5), (1.0, -0.5), (-0.5, 1.0)]


def main() -> None:
    """Train each, then mix two."""
    args = _arguments()
    output = Path(args.output_dir)
    files = {name: Path(args.data) / f"{name}-base.test.jsonl.gz" for name in ("helpful", "harmless")}
    results: dict[str, Any] = {}
    for name in args.methods or METHODS:
        report = _train(name, files["helpful"], output / name, args)
        results[name] = {"seconds": report["seconds"], "held_out": report["held_out"], "metrics": report["metrics"]}
        print(_row(name, report), flush=True)
    tokenizer = load_tokenizer(args.model_name_or_path)
    model = AlignedModel.from_backbone(args.model_name_or_path, {}, tokenizer=tokenizer)
    for objective, file in files.items():
        _train("hidden", file, output / objective, args)
        model.attach(objective, output / objective)
    model.save_pretrained(output / "both")
    tokenizer.save_pretrained(output / "both")
    mixed = {}
    batches = {name: _held_out(file, tokenizer, args) for name, file in files.items()}
    for helpful, harmless in MIXTURES:
        if helpful or harmless:
            alpha = {"helpful": helpful, "harmless": harmless}
            shares = {name: _accuracy(model, batch, alpha) for name, batch in batches.items()}
            mixed[f"{helpful:g}, {harmless:g}"] = shares
            cells = " | ".join(f"{share:.3f} ({low:.3f} to {high:.3f})" for share, (low, high) in shares.values())
            print(f"| {helpful:g} | {harmless:g} | {cells} |", flush=True)
    about = {
        "command": f"python experiments/hh_methods.py --steps {args.steps} --max_length {args.max_length}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (output / "hh_methods.json").write_text(json.dumps({**about, "methods": results, "mixtures": mixed}, indent=2))


def _train(name: str, file: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    train_guide(
        method(name),
        RunOptions(
            model_name_or_path=args.model_name_or_path,
            dataset_name=str(file),
            held_out=HELD_OUT,
            max_length=args.max_length,
            restart=True,
        ),
        GuideTrainingArguments(
            output_dir=str(folder),
            max_steps=args.steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            learning_rate=METHODS[name],
            warmup_steps=0.1,
            train_sampling_strategy="random",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
        ),
    )
    return json.loads((folder / "report.json").read_text())


def _held_out(file: Path, tokenizer: Any, args: argparse.Namespace) -> list[dict[str, Tensor]]:
    _, aside = split_by_prompt(load_pairs(str(file))[0], HELD_OUT)
    rows, _ = tokenize_pairs(aside, tokenizer, TokenizeOptions(max_length=args.max_length), progress=False)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = PairCollator(pad)
    listed = [dict(row) for row in rows]
    return [collate(listed[i : i + 16]) for i in range(0, len(listed), 16)]


@torch.no_grad()
def _accuracy(model: AlignedModel, batches: list[dict[str, Tensor]], alpha: dict[str, float]):
    """How often sum_t (log pi - log pi_base) is larger for the chosen reply, with its Wilson interval."""
    right, pairs = 0.0, 0
    for batch in batches:
        policy, base = (
            model(batch["input_ids"], alpha=a).logits.flatten(0, 1)[batch["at"]].log_softmax(-1) for a in (alpha, 0.0)
        )
        over = (policy - base).gather(-1, batch["labels"][:, None])[:, 0]
        chosen, rejected = split_sides(over.new_zeros(len(batch["counts"])).index_add(0, batch["row"], over))
        right, pairs = right + (chosen > rejected).sum().item(), pairs + len(chosen)
    return right / pairs, wilson(right, pairs)


def _row(name: str, report: dict[str, Any]) -> str:
    if "accuracy_over_base" not in report["held_out"]:
        metrics = {key: f"{value:.3f}" for key, value in report["metrics"].items() if "accuracy" in key}
        return f"| {name} | {metrics} | | {report['seconds']:.0f} |"
    over, kl = report["held_out"]["accuracy_over_base"], report["held_out"]["kl"]["mean"]
    low, high = over["interval"]
    return f"| {name} | {over['mean']:.3f} ({low:.3f} to {high:.3f}) | {kl:.3f} | {report['seconds']:.0f} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--data", required=True, help="folder of HH-RLHF files")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
