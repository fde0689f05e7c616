"""What every kind of training shares: a run in a folder of its own, and a Trainer whose checkpoints resume.

A run prints everything on the way. It knows the order of things; a kind of run says what is loaded, measured and
written.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder
from dual_head.methods.held_out import StrictTrainer
from dual_head.train.arguments import require_trackers
from dual_head.train.identity import DATA
from dual_head.train.progress import brief
from dual_head.train.resume import (
    REPORT_FILE,
    Sealing,
    StoredCheckpoints,
    begin,
    final_checkpoint,
    is_finished,
    load_stored,
    read_state,
    require_same_run,
    resume_point,
    save_stored,
    writable,
)


class Run(ABC):
    """One training run: `load`, `train`, `measure` and `write`, in this order, in a folder that no other run holds.

    Errors: a folder that is not for this run, a killed run with other options or on other data.
    """

    model: Any
    trainer: Trainer
    kind: str  # `model_type` of what is written

    def __init__(self, options: Any, args: Any, identity: dict[str, Any], reads: Sequence[str | None]):
        self.options, self.args, self.identity = options, args, identity
        self.processes = PartialState(cpu=args.use_cpu)
        self.main = self.processes.is_main_process
        self.console = Terminal(quiet=not self.main)
        if options.restart and args.resume_from_checkpoint:
            raise DualHeadError(
                "--restart begins anew, and --resume_from_checkpoint goes on from a checkpoint. Leave one of them out."
            )
        self.output = writable(args.output_dir, kind=self.kind, reads=reads)
        require_trackers(args)
        self.resume = None if options.restart else resume_point(self.output, identity, args.resume_from_checkpoint)
        self.seconds = 0.0

    def complete(self) -> None:
        """Do the rest of the run: all of it, or what a killed run left."""
        self.load()
        begin(self.output, self.identity, self.processes, resume=self.resume, restart=self.options.restart)
        finished = bool(self.resume and is_finished(self.resume))
        self.train()
        if finished and all((self.output / name).is_file() for name in (REPORT_FILE, SAFE_WEIGHTS_NAME)):
            return  # all of it is written, and another evaluation would give the same
        self.measure()
        if self.main:
            self.write()

    def train(self) -> None:
        """Train to the end, from where a killed run stopped."""
        started = time.perf_counter()
        if self.resume and is_finished(self.resume):
            self.console.print(
                f"Already trained to the end: {self.resume}. Add --restart to train again.", soft_wrap=True
            )
            self.load_finished(self.resume)
        else:
            if self.resume:
                self.console.print(f"Resuming from {self.resume}.", soft_wrap=True)
            self.trainer.train(resume_from_checkpoint=str(self.resume) if self.resume else None)
        self.seconds = time.perf_counter() - started

    def load_finished(self, checkpoint: Path) -> None:
        """Take up the state of a run that was trained to its end, and its weights: the best where those are kept."""
        self.trainer.state = state = read_state(checkpoint)
        load_stored(self.model, final_checkpoint(checkpoint, state.best_model_checkpoint, self.args))

    def read_from(self, sources: dict[str, dict[str, Any]]) -> None:
        """Record what the data are. Errors: the run that is resumed read others."""
        self.identity[DATA] = sources
        if self.resume:
            require_same_run(self.output, self.resume, self.identity)

    def write_report(self, report: dict[str, Any], draw: Callable[[dict[str, Any], Path], None] | None = None) -> None:
        """Write report.json, and what `draw` draws beside it: both or neither."""
        with atomic_folder(self.output) as staging:
            (staging / REPORT_FILE).write_text(json.dumps(report, indent=2))
            if draw:
                draw(report, staging)

    @abstractmethod
    def load(self) -> None:
        """Read data, tokenizer and backbone, and build `model` and `trainer`."""

    @abstractmethod
    def measure(self) -> None:
        """Evaluate on what is held out, in every process."""

    @abstractmethod
    def write(self) -> None:
        """Write the model and its report, and say so; only the main process does."""


# ---- the Trainer -------------------------------------------------------------------------------------------


class ByLength(LengthGroupedSampler):
    """transformers' sampler, whose order of an epoch depends on nothing but seed and epoch, so that runs resume."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    @classmethod
    def of(cls, args: TrainingArguments, lengths: list[int]) -> "ByLength":
        """Group all that one step of the optimizer sees, so that the order is the same however it is spread."""
        seed = args.seed if args.data_seed is None else args.data_seed
        at_once = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(at_once, lengths=lengths, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class HeadTrainer(StrictTrainer, StoredCheckpoints):
    """transformers' Trainer for what is trained beside a decoder; checkpoints hold what `stored` stores of itself.

    Rows are grouped by length, held-out rows keep their order, and progress shows a few terms.
    """

    loss_is_scaled_for_ga = True  # compute_loss weighs a batch by its share of the step's rows

    def __init__(self, *, stored: Any, noun: str = "guide", processing_class: Any = None, **options: Any):
        super().__init__(processing_class=processing_class, **options)
        self.save_weights = partial(save_stored, stored, processing_class, noun=noun)
        self.load_weights = partial(load_stored, stored)
        brief(self)
        self.add_callback(Sealing())

    def row_lengths(self, dataset: Any) -> list[int]:
        """Tokens of each row, by which rows are grouped."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        """Load batches. Errors: none is full, and --dataloader_drop_last leaves out those that are not."""
        loader = super().get_train_dataloader()
        if has_length(loader) and not len(loader):
            raise DualHeadError(
                f"--dataloader_drop_last leaves out all rows: they are fewer than the {self.args.train_batch_size} of "
                "a batch in every process. Leave it out, or lower --per_device_train_batch_size."
            )
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        return ByLength.of(self.args, self.row_lengths(dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)  # each row keeps its place in `held_out`


def rows_seen(args: TrainingArguments, count: int) -> float:
    """How many rows a process sees in a whole run on `count` of them."""
    if args.max_steps > 0:
        return args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return args.num_train_epochs * count / args.world_size
