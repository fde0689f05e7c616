"""The training runs of the evidence: which there are, as values, and how one is trained.

A run is named by all that makes it, so the search's best run is the first seed of the main table and nothing is
trained twice. It knows methods and pairs, and nothing of replies.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence_data import write_json
from evidence_script import same_plan
from evidence_worlds import World

from dual_head import GuideTrainingArguments, method
from dual_head.train.feature_cache.inputs import cached_options
from dual_head.train.run import RunOptions, train_guide

# Options beside each method's own, and the middle one of the learning rates that are tried. Every weight of a
# regulariser is its paper's.
SETTINGS: dict[str, Mapping[str, tuple[dict[str, Any], float]]] = {
    "demo": {
        "dual_head": ({"preference_on": "policy", "beta_r": 0.5}, 3e-3),
        "iav": ({"beta": 0.5}, 3e-3),
        "mav": ({"beta": 0.5}, 1e-3),
        "hidden": ({"beta": 0.5}, 3e-3),
        "genarm": ({"beta": 0.5}, 3e-3),
        "reward": ({}, 1e-3),
        "dpo": ({"beta": 0.5}, 1e-3),
        "simpo": ({}, 3e-4),
    },
    "hh": {
        "dual_head": ({"preference_on": "policy", "beta_r": 0.1}, 1e-3),
        "iav": ({"beta": 0.1}, 1e-3),
        "mav": ({"beta": 0.1}, 1e-3),
        "hidden": ({"beta": 0.1}, 3e-3),
        "genarm": ({"beta": 0.1}, 1e-3),
        "reward": ({}, 1e-3),
        "dpo": ({"beta": 0.1}, 1e-3),
        "simpo": ({}, 3e-4),
    },
    # At a KL weight of 0.1, which the dialogues have, a guide of 318 pairs is 11 nats away and hardly ends a reply.
    "real": {
        "dual_head": ({"preference_on": "policy", "beta_r": 0.1, "kl.weight": 1.0}, 1e-3),
        "iav": ({"beta": 0.1, "lambda_kl": 1.0}, 1e-3),
        "mav": ({"beta": 0.1}, 1e-3),
        "hidden": ({"beta": 0.1, "lambda_kl": 1.0, "rank": 64}, 1e-3),
        "genarm": ({"beta": 0.1}, 1e-3),
        "reward": ({}, 1e-3),
        "dpo": ({"beta": 0.1}, 1e-3),
        "simpo": ({}, 3e-4),
    },
}
SETTINGS["people"] = SETTINGS["real"]
REAL = ("real", "people")  # worlds of the real chat model
METHODS = tuple(SETTINGS["demo"])
ALPHAS = (0.5, 1.0, 1.5, 2.0)
# On the real chat model, strengths of like divergence: at 1 they are from 0.2 to 35 nats away.
REAL_ALPHAS = {"dual_head": (1.0, 4.0), "iav": (1.0, 1.5), "genarm": (0.25, 1.0), "dpo": (0.25, 1.0)}
FACTORS = {1: (1.0,), 2: (1.0, 3.0), 3: (1 / 3, 1.0, 3.0)}  # of the middle learning rate
TWO = ("dual_head", "hidden")  # methods whose guides of several objectives are mixed

# One change of each from the best setting of its method.
ABLATIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fixed gate": ("dual_head", {"gate": "constant"}),
    "no gate regularisation": ("dual_head", {"lambda_g": 0.0}),
    "single-head gate": ("dual_head", {"guide.num_heads": 1, "guide.head_dim": 384}),  # as wide as eight of 48
    "entropy as printed": ("dual_head", {"gate_entropy": "as_printed"}),
    "preferences through the reward head, as printed": ("dual_head", {"preference_on": "reward", "beta_r": 0.05}),
    "preferences against the backbone": ("dual_head", {"preference.reference_free": False}),
    "preferences against the backbone, fixed gate": (
        "dual_head",
        {"preference.reference_free": False, "gate": "constant"},
    ),
    "beta_r 0.1": ("dual_head", {"beta_r": 0.1}),
    "beta_r 2": ("dual_head", {"beta_r": 2.0}),
    "lambda_r 0.3": ("dual_head", {"lambda_r": 0.3}),
    "lambda_r 3": ("dual_head", {"lambda_r": 3.0}),
    "MAV without L2": ("mav", {"lambda_l2": 0.0}),
    "MAV, last layer only": ("mav", {"guide.layers": "custom", "guide.layer_indices": [-1]}),
    "IAV without KL": ("iav", {"lambda_kl": 0.0}),
    "IAV, lambda_kl 1": ("iav", {"lambda_kl": 1.0}),
    "IAV, beta 0.1": ("iav", {"beta": 0.1}),
    "hidden-space, rank 4": ("hidden", {"rank": 4}),
    "hidden-space, rank 16": ("hidden", {"rank": 16}),
    "hidden-space, next token of chosen replies": ("hidden", {"next_token.weight": 1.0}),
    "hidden-space, beta 0.1": ("hidden", {"beta": 0.1}),
    "hidden-space, lambda_kl 0": ("hidden", {"lambda_kl": 0.0}),
    "hidden-space, lambda_kl 1": ("hidden", {"lambda_kl": 1.0}),
}
# Those that the papers have; the sweeps beside them are set for the demonstration's world.
PAPERS = (
    "fixed gate",
    "no gate regularisation",
    "single-head gate",
    "entropy as printed",
    "MAV without L2",
    "MAV, last layer only",
    "IAV without KL",
)
ABLATED = {"demo": tuple(ABLATIONS), "hh": PAPERS, "real": PAPERS, "people": PAPERS}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; backbone: another than the world's; move: a run whose guide is moved to it."""

    method: str
    rate: float
    seed: int
    objective: str = "overall"
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""  # of an ablation, or of a backbone
    backbone: str = ""
    move: str = ""

    @property
    def key(self) -> str:
        """Its folder's name."""
        parts = [self.method, self.label.replace(" ", "_").replace(",", ""), self.objective, f"{self.rate:.2g}"]
        return "-".join([part for part in parts if part and part != "overall"] + [f"s{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs have in common, and how many there are of each kind."""

    world: World
    folder: Path
    steps: int
    seeds: int = 3
    rates: int = 3
    methods: tuple[str, ...] = METHODS
    ablations: tuple[str, ...] = ()
    prompts: int = 300
    dev_prompts: int = 100
    alphas: tuple[float, ...] = ()
    grid: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    max_new_tokens: int | None = None
    best_of: int = 0

    @property
    def base_seeds(self) -> range:
        """Seeds of the backbone's replies: those of the runs, and more where the best of them is a reference."""
        return range(max(self.seeds, self.best_of))

    def alphas_of(self, method: str) -> tuple[float, ...]:
        """Strengths at which a method answers, 1 among them: those of the plan, or else of the world."""
        return self.alphas or (REAL_ALPHAS.get(method, (0.5, 1.0)) if self.world.name in REAL else ALPHAS)

    def search(self) -> list[Run]:
        """Every method at every learning rate, at the first seed."""
        return [
            Run(method=name, rate=SETTINGS[self.world.name][name][1] * factor, seed=0)
            for name in self.methods
            for factor in FACTORS[self.rates]
        ]

    def main(self, rates: Mapping[str, float]) -> list[Run]:
        """Every method at its best rate, at every seed; the seeds outermost: what is stopped early has all methods."""
        return [Run(method=name, rate=rates[name], seed=seed) for seed in range(self.seeds) for name in self.methods]

    def two(self, rates: Mapping[str, float]) -> list[Run]:
        """One guide of each objective that is mixed, for the methods that are, at every seed."""
        return [
            Run(method=name, rate=rates[name], seed=seed, objective=objective)
            for seed in range(self.seeds)
            for name in TWO
            if name in self.methods
            for objective in self.world.mixed
        ]

    def ablated(self, rates: Mapping[str, float]) -> list[Run]:
        """Every ablation of a method that is there, at every seed."""
        return [
            Run(method=name, rate=rates[name], seed=seed, options=options, label=label)
            for seed in range(self.seeds)
            for label, (name, options) in ABLATIONS.items()
            if label in self.ablations and name in self.methods
        ]

    def place(self, run: Run) -> Path:
        """Where a run is."""
        return self.folder / "runs" / run.key


def _inputs(world: World, run: Run) -> RunOptions:
    """What a run reads: the world's kept hidden states where it has them, or the pairs beside a backbone."""
    features = None if run.backbone or run.move else world.features(run.method, run.objective)
    if features:
        return RunOptions(**cached_options(features), feature_cache=str(features), restart=True)
    return RunOptions(
        model_name_or_path=run.backbone or world.backbone,
        dataset_name=str(world.pairs(run.objective, run.seed)),
        held_out=0.05,
        max_length=world.max_length,
        max_pairs=world.most,
        restart=True,
        move_guides=run.move or None,
    )


def train(plan: Plan, run: Run) -> dict[str, Any]:
    """Train one run; what it was and how long it took, read again where it is there already.

    Errors: it was trained with other settings.
    """
    folder, world = plan.place(run), plan.world
    done = folder / "trained.json"
    options = {**SETTINGS[world.name][run.method][0], **run.options}
    settings = {
        "options": options, "steps": plan.steps, "batch": world.batch, "bf16": world.bf16, "pairs": world.extent,
    }  # fmt: skip
    same_plan(folder.parent / f"{run.key}.json", settings)
    if done.is_file():
        return json.loads(done.read_text())
    inputs = _inputs(world, run)  # a cache that several runs read is no part of the time of one
    started, processor = time.perf_counter(), time.process_time()
    trainer = train_guide(
        method(run.method).with_options(options),
        inputs,
        GuideTrainingArguments(
            output_dir=str(folder),
            max_steps=plan.steps,
            per_device_train_batch_size=world.batch,
            per_device_eval_batch_size=2 * world.batch,
            learning_rate=run.rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            train_sampling_strategy="random",
            save_strategy="no",
            eval_strategy="no",
            logging_steps=max(1, plan.steps // 4),
            disable_tqdm=True,
            bf16=world.bf16,
            seed=run.seed,
        ),
    )
    report = {
        "run": run.key,
        "method": run.method,
        "options": options,
        "learning_rate": run.rate,
        "seed": run.seed,
        "objective": run.objective,
        "backbone": run.backbone,
        "steps": plan.steps,
        "batch": world.batch,
        "parameters": sum(x.numel() for x in trainer.aligned.stored().values()),
        "forwards": 1 + trainer.aligned.guide(run.method).extra_forwards,
        "held_out": {name: value.mean().item() for name, value in trainer.held_out.items() if "hist" not in name},
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }
    write_json(done, report)
    return report
