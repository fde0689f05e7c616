"""Weak to strong for the evidence run: guides of a small backbone steer a larger one, against its own guides.

It knows how such systems are put together from runs, and nothing of tables.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evidence_runs import Plan, Run

from dual_head import AlignedModel
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.model.pretrained import load_tokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_toy_backbone.py"
NEEDED = ("iav", "hidden", "genarm")
TRANSFER_ALPHAS = (0.0, 0.5, 1.0, 1.5)  # those the main table has too, and 0


def transfer_alphas(plan: Plan) -> tuple[float, ...]:
    """At which strengths systems answer."""
    return tuple(alpha for alpha in TRANSFER_ALPHAS if not alpha or alpha in plan.alphas_of("iav"))


@dataclass(frozen=True)
class Siblings:
    """A small and a larger backbone of one tokenizer; one of them is the world's."""

    weak: str
    strong: str

    def on(self, which: str, plan: Plan, method: str, rate: float, seed: int) -> Run:
        """A run on one of the two; on the world's own it is the run of the main table."""
        backbone = getattr(self, which)
        same = backbone == plan.world.backbone
        return Run(method=method, rate=rate, seed=seed, backbone="" if same else backbone, label="" if same else which)

    def runs(self, plan: Plan, rates: Mapping[str, float]) -> list[Run]:
        """Everything that is trained by itself, at every seed."""
        each = [("weak", name) for name in NEEDED] + [("strong", name) for name in ("iav", "hidden")]
        return [self.on(which, plan, name, rates[name], seed) for seed in range(plan.seeds) for which, name in each]

    def adapted(self, plan: Plan, rates: Mapping[str, float], seed: int) -> Run:
        """A weak head moved to the strong backbone, where the map between their hidden states is trained."""
        rate = rates["iav"]
        weak = str(plan.place(self.on("weak", plan, "iav", rate, seed)).resolve())
        return Run(method="iav", rate=rate, seed=seed, backbone=self.strong, move=weak, label="adapter")

    def systems(self, plan: Plan, rates: Mapping[str, float], seed: int) -> dict[str, Callable[[], AlignedModel]]:
        """What answers, by its name in the table, loaded when called."""
        place = {(which, name): plan.place(self.on(which, plan, name, rates[name], seed)) for which, name in _pairs()}
        return {
            "weak, its own hidden-space guide": lambda: AlignedModel.from_pretrained(str(place["weak", "hidden"])),
            "strong, its own hidden-space guide": lambda: AlignedModel.from_pretrained(str(place["strong", "hidden"])),
            "strong, its own head (IAV)": lambda: AlignedModel.from_pretrained(str(place["strong", "iav"])),
            "weak head moved, pooled": lambda: self._moved(place["weak", "iav"]),
            "weak head moved, trained adapter": lambda: AlignedModel.from_pretrained(
                str(plan.place(self.adapted(plan, rates, seed)))
            ),
            "weak GenARM steers strong": lambda: self._moved(place["weak", "genarm"]),
            "weak guided model steers strong": lambda: self._steered(place["weak", "hidden"]),
        }

    def _moved(self, guides: Path) -> AlignedModel:
        return AlignedModel.from_pretrained(str(guides), backbone=self.strong, switch=True)

    def _steered(self, guides: Path) -> AlignedModel:
        model = AlignedModel.from_backbone(self.strong, {}, tokenizer=load_tokenizer(self.strong))
        model.attach("guided", LanguageModelConfig(model=str(guides.resolve()), against="unguided", tune="none"))
        return model


def _pairs() -> list[tuple[str, str]]:
    return [("weak", "iav"), ("weak", "hidden"), ("weak", "genarm"), ("strong", "iav"), ("strong", "hidden")]


def make_weak(folder: Path, steps: int) -> None:
    """Pretrain the smaller toy backbone."""
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), "--hidden_size", "48", "--layers", "2"]
    subprocess.run([*command, "--steps", str(steps)], check=True)
