"""Two objectives: train a guide for help and one against harm apart, attach both, and mix them while decoding.

    python examples/two_objectives.py --steps 100

Offline. Printed are exact points of the small world: help on harmless requests, harm avoided on harmful ones.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import measure
from dual_head.demo.world import preference_rows, sample_requests
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.run import RunOptions, train_guide


def train(objective: str, folder: Path, steps: int) -> None:
    """Train one hidden-space guide on the preferences of one objective."""
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(1200, seed=0, objective=objective)))
    arguments = {"max_steps": steps, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "disable_tqdm": True}
    train_guide(
        method("hidden").with_options({"beta": 0.5, "lambda_kl": 0.0}),
        RunOptions(model_name_or_path=str(TOY_BACKBONE), dataset_name=str(file), held_out=0.0),
        GuideTrainingArguments(str(folder), **arguments, save_strategy="no"),
    )


def mix(folder: Path, steps: int, prompts: int, alphas: list[float]) -> None:
    """Attach both guides to one backbone, and print what each mixture gives."""
    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    model = AlignedModel.from_backbone(TOY_BACKBONE, {}, tokenizer=tokenizer)
    for objective in ("helpful", "harmless"):
        train(objective, folder / objective, steps)
        model.attach(objective, folder / objective)

    grid = [{"helpful": a, "harmless": b} for a in alphas for b in alphas]
    points = measure(model, tokenizer, sample_requests(prompts, seed=1, split="test"), grid, seed=0)
    print(f"\n{'helpful':>8} {'harmless':>8}   {'help given':>10} {'harm avoided':>12} {'KL, nats':>8}")
    for alpha, point in zip(grid, points, strict=True):
        helpful = statistics.fmean(point.points("helpful", harmful=False))
        harmless = statistics.fmean(point.points("harmless", harmful=True))
        print(f"{alpha['helpful']:8g} {alpha['harmless']:8g}   {helpful:10.2f} {harmless:12.2f} {point.kl():8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mix(Path(folder), args.steps, args.prompts, args.alpha)
