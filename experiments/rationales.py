"""Do rationales help a classifier? The plain pooled one, DHRD and every control, trained alike on four data sets.

    python experiments/rationales.py --backbone chat --data data --output_dir rationales --jobs 2
    python experiments/rationales.py --backbone chat --data data --output_dir rationales --stage report \\
        --page docs/results/classification.md

Search of the learning rate on rows kept back, for the plain classifier and for DHRD (whose rate all others take);
then every system at the same steps, batches and rows, several seeds, on the test rows. What is done is skipped, so the
same command goes on after it was stopped; several processes on one folder share the work. Writes summary.json,
tables.md and curve.png, and with --page the tables between their markers there and the picture beside it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evidence_data import write_json
from evidence_script import circumstances, parsed, publish, same_plan
from evidence_work import Task, work
from rationales_data import SYNTHETIC, Dataset, datasets
from rationales_tables import curve_picture, summary, tables

from dual_head.classify.data.load import load_examples
from dual_head.classify.rationales.probe import probe
from dual_head.classify.train.options import ClassifyOptions
from dual_head.classify.train.run import train_classifier
from dual_head.classify.train.trainer import ClassifierTrainingArguments

SYSTEMS: Mapping[str, Mapping[str, Any]] = {  # what each is told beside what all are told
    "pooled": {"control": "pooled"},
    "none": {},
    "continuation": {"lm_scope": "continuation"},
    "input_lm": {"control": "input_lm"},
    "label_only": {"control": "label_only"},
    "shuffled": {"control": "shuffled"},
    "shuffled_in_class": {"control": "shuffled_in_class"},
    "permuted": {"control": "permuted"},
}
SEARCHED = ("pooled", "none")
RATES = (1e-3, 3e-4, 3e-3)
CURVE = 8  # evaluations on the way, on the synthetic set
SMALL = {"seeds": 2, "rates": 1, "steps": 2, "synthetic_steps": 8, "batch": 4, "test_rows": 16,
         "systems": ["none", "pooled"], "data_sets": ["creak", SYNTHETIC]}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; part: "dev" for rows kept back of the training rows, or "test"."""

    data: str
    system: str
    rate: float
    seed: int = 0
    part: str = "test"

    @property
    def key(self) -> str:
        """Its folder's name."""
        return f"{self.data}-{self.system}-{self.rate:.2g}-{self.part}-s{self.seed}"


class Experiment:
    """All runs of one folder."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        found = datasets(Path(args.data), self.folder, rows=args.synthetic_steps * args.batch, test_rows=args.test_rows)
        self.data: Mapping[str, Dataset] = {name: found[name] for name in args.data_sets}

    def search(self) -> list[Run]:
        """Both searched systems at every rate, at the first seed; of a single rate nothing is searched."""
        rates = RATES[: self.args.rates] if self.args.rates > 1 else ()
        return [Run(data=d, system=s, rate=r, part="dev") for d in self.data for s in SEARCHED for r in rates]

    def main(self) -> list[Run]:
        """Every system at its rate, at every seed, the seeds outermost: what is stopped early has all systems."""
        return [
            Run(data=name, system=system, rate=self.rate(name, system), seed=seed)
            for seed in range(self.args.seeds)
            for name in self.data
            for system in self.args.systems
        ]

    def tried(self, data: str, system: str) -> dict[float, float]:
        """Accuracy on the rows kept back, by learning rate."""
        own = [run for run in self.search() if (run.data, run.system) == (data, system)]
        return {run.rate: self.read(run)["accuracy"] for run in own}

    def rate(self, data: str, system: str) -> float:
        """The best learning rate of a system; one that is not searched has DHRD's."""
        tried = self.tried(data, system if system in SEARCHED else "none")
        return max(tried, key=tried.__getitem__, default=RATES[0])

    def read(self, run: Run) -> dict[str, Any]:
        """What a finished run said."""
        return json.loads(self._done(run).read_text())

    def floors(self) -> dict[str, Any]:
        """What bags of words tell on the test rows, kept beside the runs."""
        return json.loads((self.folder / "floors.json").read_text())

    def run(self) -> None:
        """Do what is not done."""
        work(self.folder, [Task(self.folder / "floors.json", self._measure_floors)])
        for runs in (self.search, self.main):  # the second needs what the first found
            work(self.folder, [Task(self._done(run), self._train(run)) for run in runs()])

    def _done(self, run: Run) -> Path:
        return self.folder / "runs" / run.key / "done.json"

    def _measure_floors(self) -> None:
        found = {}
        for name, own in self.data.items():
            train = load_examples(str(own.path), split=own.train_split)
            test = load_examples(str(own.path), split=own.test_split, labels=train.labels)
            found[name] = {
                "train_rows": len(train.examples),
                "test_rows": len(test.examples),
                **asdict(probe(train.examples, held_out=test.examples)),
            }
        write_json(self.folder / "floors.json", found)

    def _train(self, run: Run) -> Any:
        return lambda: write_json(self._done(run), self._trained(run))

    def _trained(self, run: Run) -> dict[str, Any]:
        args, data = self.args, self.data[run.data]
        curve = run.data == SYNTHETIC and run.part == "test"
        steps = args.synthetic_steps if run.data == SYNTHETIC else args.steps
        held = {"eval_split": data.test_split, "held_out": 0.0} if run.part == "test" else {"held_out": 0.1}
        started, processor = time.perf_counter(), time.process_time()
        trainer = train_classifier(
            ClassifyOptions(
                model_name_or_path=args.backbone,
                tune="full",
                truncate_inputs="end",
                max_input_length=args.max_input_length,
                max_rationale_length=args.max_rationale_length,
                max_eval_rows=args.test_rows,
                **data.options(),
                **held,
                **SYSTEMS[run.system],
            ),
            ClassifierTrainingArguments(
                output_dir=str(self._done(run).parent),
                max_steps=steps,
                per_device_train_batch_size=args.batch,
                per_device_eval_batch_size=128,
                learning_rate=run.rate,
                warmup_steps=0.1,
                eval_strategy="steps" if curve else "no",
                eval_steps=max(1, steps // CURVE),
                save_strategy="no",
                logging_steps=max(1, steps // CURVE),
                disable_tqdm=True,
                bf16=args.bf16,
                seed=run.seed,
            ),
        )
        for file in self._done(run).parent.glob("*.safetensors"):
            file.unlink()  # figures are kept, not a hundred classifiers
        assert trainer.held_out is not None
        logits, labels = trainer.held_out
        right = logits.argmax(1) == labels
        evaluations = [row for row in trainer.state.log_history if "eval_accuracy" in row]
        return {
            **asdict(run),
            "steps": steps,
            "batch": args.batch,
            "accuracy": right.float().mean().item(),
            "right": "".join("01"[int(one)] for one in right),
            "curve": [[row["step"], row["eval_accuracy"]] for row in evaluations],
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }


def main() -> None:
    """Train what is to be trained, then report."""
    args = _arguments()
    experiment = Experiment(args)
    same_plan(experiment.folder / "plan.json", _identity(args))
    if args.stage in ("all", "train"):
        others = [
            subprocess.Popen([sys.executable, *sys.argv, "--jobs", "1", "--stage", "train"])
            for _ in range(args.jobs - 1)
        ]
        experiment.run()
        if any(other.wait() for other in others):
            raise SystemExit("Another of the processes failed; see above, and run the same command again.")
    if args.stage in ("all", "report"):
        _report(experiment)


def _report(experiment: Experiment) -> None:
    args, folder = experiment.args, experiment.folder
    about = {
        **circumstances(),
        **{name: getattr(args, name) for name in ("steps", "synthetic_steps", "batch", "seeds", "test_rows", "bf16")},
    }
    figures = {"about": about, **summary(experiment)}
    publish(folder, figures, tables(figures), args.page, name="-".join(["rationales", *args.data_sets]))
    if figures["curve"]:
        curve_picture(figures["curve"], folder / "curve.png")
        if args.page:
            shutil.copy2(folder / "curve.png", Path(args.page).parent / "rationales.png")


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a folder have in common."""
    names = ("steps", "synthetic_steps", "batch", "test_rows", "bf16", "max_input_length", "max_rationale_length")
    return {"backbone": str(Path(args.backbone).resolve()), **{name: getattr(args, name) for name in names}}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", required=True, help="a decoder that was pretrained on text, as chat_backbone.py's"
    )
    parser.add_argument("--data", required=True, help="folder with rationales/")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--stage", choices=("all", "train", "report"), default="all")
    parser.add_argument("--data_sets", nargs="+", choices=("esnli", "creak", "cqa", SYNTHETIC),
                        default=["esnli", "creak", "cqa", SYNTHETIC])  # fmt: skip
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=int, choices=(1, 2, 3), default=2, help="learning rates tried")
    parser.add_argument("--steps", type=int, default=300, help="of every run")
    parser.add_argument("--synthetic_steps", type=int, default=1500, help="of every run on the synthetic set")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--test_rows", type=int, default=3000, help="at most so many of each test split")
    parser.add_argument("--max_input_length", type=int, default=128)
    parser.add_argument("--max_rationale_length", type=int, default=96)
    parser.add_argument("--bf16", action="store_true", help="autocast, where the machine is faster so")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--page", help="a markdown file whose tables between markers are written again")
    return parsed(parser, SMALL)


if __name__ == "__main__":
    main()
