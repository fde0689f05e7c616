"""What the experiments in the demonstration world share: pairs, one training run, results as plain values."""

import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dual_head import GuideTrainer, GuideTrainingArguments, method
from dual_head.demo.measure import Point
from dual_head.demo.world import preference_rows
from dual_head.train.run import RunOptions, train_guide

# What each method is trained with, beside its paper's own values, and at which learning rate.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "dual_head": ({"preference_on": "policy", "beta_r": 0.5}, 3e-3),
    "iav": ({"beta": 0.5, "lambda_kl": 0.0, "lambda_l2": 0.0}, 3e-3),
    "mav": ({"beta": 0.5, "lambda_l2": 0.0}, 1e-3),
    "hidden": ({"beta": 0.5, "lambda_kl": 0.0}, 3e-3),
    "genarm": ({"beta": 0.5}, 3e-3),
    "dpo": ({"beta": 0.5}, 1e-3),
    "simpo": ({}, 2e-4),
    "reward": ({}, 1e-3),
    "steering": ({}, 0.0),  # computed in one pass
}
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)


def write_pairs(folder: Path, count: int, seed: int) -> Path:
    """Write preference pairs of the world as JSONL; the same for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pairs-{seed}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(count, seed=seed)))
    return file


def train(
    name: str,
    backbone: str,
    pairs: Path,
    folder: Path,
    *,
    options: dict[str, Any],
    rate: float,
    steps: int,
    seed: int,
    **run: Any,
) -> GuideTrainer:
    """Train one guide, 32 pairs a step; one without steps in one pass over all."""
    chosen = method(name).with_options(options)
    of_steps = {
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "train_sampling_strategy": "random",
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    common = {"per_device_eval_batch_size": 64, "disable_tqdm": True, "seed": seed}
    return train_guide(
        chosen,
        RunOptions(model_name_or_path=backbone, dataset_name=str(pairs), held_out=0.1, restart=True, **run),
        GuideTrainingArguments(str(folder), **common, **({} if chosen.fit else of_steps)),
    )


def result(points: Sequence[Point]) -> dict[str, Any]:
    """Reward, divergence and paired gain over the first point, by alpha."""
    gains = {p.alpha: p.gain_over(points[0]) for p in points[1:]}
    return {
        "reward": {p.alpha: statistics.fmean(p.rewards()) for p in points},
        "kl": {p.alpha: p.kl() for p in points},
        "gain": {alpha: {"mean": mean, "interval": interval} for alpha, (mean, interval) in gains.items()},
    }


def rewards_of(figures: dict[str, Any]) -> str:
    """Rewards over alpha, for a table."""
    return " / ".join(f"{value:.2f}" for value in figures["reward"].values())


def gain_of(figures: dict[str, Any], alpha: float = 1.0) -> str:
    """The gain at one alpha with its interval, for a table."""
    gain, (low, high) = figures["gain"][alpha]["mean"], figures["gain"][alpha]["interval"]
    return f"{gain:+.2f} ({low:+.2f} to {high:+.2f})"


def write(file: Path, command: str, **values: Any) -> None:
    """Write results with the command, date and machine they come from."""
    about = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    file.write_text(json.dumps({**about, **values}, indent=2))
