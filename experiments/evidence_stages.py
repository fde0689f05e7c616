"""The stages of an evidence folder: what is trained and answered, in which order, by how many processes.

It knows runs, systems and files. It knows no figure and no table.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from evidence_answers import Row, Strength, answered, base_of, label_of, read_rows
from evidence_costs import measured
from evidence_data import write_json, write_text
from evidence_judge import judge_folder, train_judge
from evidence_runs import TWO, Plan, Run, train
from evidence_transfer import Siblings, make_weak, transfer_alphas
from evidence_work import Task, work
from evidence_worlds import Dialogues

from dual_head import AlignedModel
from dual_head.errors import DualHeadError


class Evidence:
    """All stages of one evidence folder."""

    def __init__(
        self,
        plan: Plan,
        siblings: Siblings | None,
        *,
        two_prompts: int,
        judge_steps: int | None,
        weak_steps: int,
        timing: dict[str, int] | None = None,
    ):
        self.plan, self.siblings, self.folder = plan, siblings, plan.folder
        self.two_prompts, self.judge_steps, self.weak_steps = two_prompts, judge_steps, weak_steps
        self.timing = timing or {}

    # ---- training -----------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Train the judges, where rewards are not exact; those of all objectives where some are mixed."""
        world = self.plan.world
        if isinstance(world, Dialogues):
            objectives = ("overall", *world.mixed) if self.two_prompts else (world.about,)
            places = {name: judge_folder(self.folder, name) / "judge.json" for name in objectives}
            self._work(
                [Task(place, _call(train_judge, world, name, steps=self.judge_steps)) for name, place in places.items()]
            )

    def train(self) -> None:
        """Train the judges, search, then train everything at the best rates."""
        plan = self.plan
        self.judge()
        self._work([Task(plan.place(run) / "dev.jsonl", _call(self._try, run)) for run in plan.search()])
        rates = self.rates()
        runs = [*plan.main(rates), *(plan.two(rates) if self.two_prompts else []), *plan.ablated(rates)]
        self._work([Task(plan.place(run) / "trained.json", _call(train, plan, run)) for run in runs])
        if self.siblings:
            if plan.world.name == "demo":
                weak = Path(self.siblings.weak)
                self._work([Task(weak / "README.md", _call(make_weak, weak, self.weak_steps))])
            adapted = [self.siblings.adapted(plan, rates, seed) for seed in range(plan.seeds)]
            for some in (self.siblings.runs(plan, rates), adapted):  # the second moves what the first made
                self._work([Task(plan.place(run) / "trained.json", _call(train, plan, run)) for run in some])

    def answer(self) -> None:
        """Answer the test prompts with everything that was trained."""
        self._work(self._answering())

    def measure(self) -> None:
        """Time every method beside the backbone: by one process alone, when nothing else runs.

        A method that was not there yet has all of them timed again, as ratios are those of one run.
        """
        plan = self.plan
        places = {run.method: plan.place(run) for run in plan.main(self.rates()) if run.seed == 0}
        file = self.folder / "costs.json"
        timed = {row["system"] for row in json.loads(file.read_text())["rows"]} if file.is_file() else set()
        if not timed.issuperset(places):
            write_json(file, measured(plan.world, places, **self.timing))

    def missing(self) -> list[Path]:
        """The files of answers that are not there yet."""
        return [task.file for task in self._answering() if not task.done]

    def _answering(self) -> list[Task]:
        plan, rates = self.plan, self.rates()
        tasks = [_replies(self._base_file(seed), (0.0,), self.base, seed) for seed in plan.base_seeds]
        tasks += [
            _replies(plan.place(run) / "test.jsonl", plan.alphas_of(run.method), self.test, run)
            for run in [*plan.main(rates), *plan.ablated(rates)]
        ]
        for seed in range(plan.seeds):
            tasks += [
                _replies(self._two_file(name, seed), self._mixes(), self.two, name, seed) for name in self.mixed()
            ]
            names = self.siblings.systems(plan, rates, seed) if self.siblings else ()
            alphas = transfer_alphas(plan)
            tasks += [_replies(self._transfer_file(name, seed), alphas, self.transfer, name, seed) for name in names]
        return tasks

    def _try(self, run: Run) -> None:
        """Train one run of the search and answer the prompts of the search at alpha = 1."""
        try:
            train(self.plan, run)
            self._answers(run, "dev", self.plan.dev_prompts, (1.0,))
        except DualHeadError as error:
            if "diverged" not in str(error):
                raise
            write_text(self.plan.place(run) / "dev.jsonl", "")

    def _answers(self, run: Run, part: str, prompts: int, alphas: Sequence[float]) -> list[Row]:
        folder, world = self.plan.place(run), self.plan.world
        return answered(
            folder / f"{part}.jsonl",
            world,
            world.asked(part, prompts),
            alphas,
            seed=run.seed,
            model=lambda: AlignedModel.from_pretrained(str(folder), dtype=world.dtype),
            max_new_tokens=self.plan.max_new_tokens,
        )

    def test(self, run: Run) -> list[Row]:
        """Answers of a run to the test prompts at every strength."""
        return self._answers(run, "test", self.plan.prompts, self.plan.alphas_of(run.method))

    def base(self, seed: int) -> list[Row]:
        """The backbone's own answers to the test prompts."""
        plan, world = self.plan, self.plan.world
        asked = world.asked("test", plan.prompts)
        file, limit = self._base_file(seed), plan.max_new_tokens
        return answered(file, world, asked, (0.0,), seed=seed, model=lambda: base_of(world), max_new_tokens=limit)

    def _base_file(self, seed: int) -> Path:
        plan = self.plan
        limit = plan.max_new_tokens or plan.world.decoding.max_new_tokens
        return plan.world.shared / f"base-{plan.prompts}x{limit}-{seed}.jsonl"

    def two(self, name: str, seed: int) -> list[Row]:
        """Answers of the guides of one method, one to an objective, at every set of strengths."""
        plan, world = self.plan, self.plan.world
        runs = [run for run in plan.two(self.rates()) if (run.method, run.seed) == (name, seed)]
        places = {run.objective: plan.place(run) for run in runs}

        def together() -> AlignedModel:
            model = base_of(world)
            for objective, place in places.items():
                model.attach(objective, place)
            return model

        asked = world.asked("test", min(plan.prompts, self.two_prompts))
        file, limit = self._two_file(name, seed), plan.max_new_tokens
        return answered(file, world, asked, self._mixes(), seed=seed, model=together, max_new_tokens=limit)

    def _mixes(self) -> list[dict[str, float]]:
        names = self.plan.world.mixed
        return [dict(zip(names, each, strict=True)) for each in product(self.plan.grid, repeat=len(names))]

    def _two_file(self, name: str, seed: int) -> Path:
        return self.folder / "two" / f"{'-'.join((name, *self.plan.world.mixed))}-s{seed}.jsonl"

    def transfer(self, name: str, seed: int) -> list[Row]:
        """Answers of one system of weak to strong."""
        assert self.siblings is not None
        plan, world = self.plan, self.plan.world
        load = self.siblings.systems(plan, self.rates(), seed)[name]
        asked = world.asked("test", plan.prompts)
        file, limit, alphas = self._transfer_file(name, seed), plan.max_new_tokens, transfer_alphas(plan)
        return answered(file, world, asked, alphas, seed=seed, model=load, max_new_tokens=limit)

    def _transfer_file(self, name: str, seed: int) -> Path:
        return self.folder / "transfer" / f"{name.replace(' ', '_').replace(',', '')}-s{seed}.jsonl"

    def mixed(self) -> list[str]:
        """Methods whose guides of several objectives are mixed."""
        return [name for name in TWO if name in self.plan.methods and self.two_prompts]

    # ---- the search ---------------------------------------------------------------------------------------

    def tried(self) -> dict[str, list[tuple[float, float | None]]]:
        """Mean reward on the search's prompts at each learning rate, None where training diverged."""
        rewards: dict[str, list[tuple[float, float | None]]] = {}
        for run in self.plan.search():
            rows = read_rows(self.plan.place(run) / "dev.jsonl")
            reward = fmean(row["rewards"]["overall"] for row in rows) if rows else None
            rewards.setdefault(run.method, []).append((run.rate, reward))
        return rewards

    def rates(self) -> dict[str, float]:
        """The best learning rate of each method."""
        best = {}
        for name, tried in self.tried().items():
            known = [(reward, rate) for rate, reward in tried if reward is not None]
            if not known:
                raise DualHeadError(f"Nothing of '{name}' was trained to the end. Run --stage train first.")
            best[name] = max(known)[1]
        return best

    def _work(self, tasks: Sequence[Task]) -> None:
        work(self.folder, tasks)


def _replies(file: Path, alphas: Sequence[Strength], function: Callable[..., Any], *args: Any) -> Task:
    """Answers at some strengths: to be made where their file lacks one of them."""
    labels = {label_of(alpha) for alpha in alphas}
    return Task(file, _call(function, *args), lambda file: labels <= {row["alpha"] for row in read_rows(file)})


def _call(function: Callable[..., Any], *args: Any, **named: Any) -> Callable[[], Any]:
    return lambda: function(*args, **named)
