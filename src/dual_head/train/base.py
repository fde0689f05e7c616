"""One training run of any kind: a folder that no other run holds, resuming, the clock and the report.

Everything on the way is printed. It knows the order of things; a kind of run says what is loaded, measured and written.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.console.terminal import Terminal
from dual_head.files.places import atomic_folder
from dual_head.train.arguments import require_trackers
from dual_head.train.resume import DATA, begin, is_finished, require_same_data, resume_point, writable

REPORT_FILE = "report.json"


class Run(ABC):
    """One training run: `load`, `train`, `measure` and `write`, in this order, in a folder that no other run holds.

    A kind of run says what is loaded, how its result is measured and what is written. The folder, resuming and the
    clock are here. Errors: a folder that is not for this run, a killed run with other options or on other data.
    """

    trainer: Trainer
    kind: str  # `model_type` of what is written

    def __init__(self, options: Any, args: Any, identity: dict[str, Any], reads: Sequence[str | None]):
        self.options, self.args, self.identity = options, args, identity
        self.processes = PartialState(cpu=args.use_cpu)
        self.main = self.processes.is_main_process
        self.console = Terminal(quiet=not self.main)
        self.output = writable(args.output_dir, kind=self.kind, reads=reads)
        require_trackers(args)
        self.resume = None if options.restart else resume_point(self.output, identity, args.resume_from_checkpoint)
        self.seconds = 0.0

    def complete(self) -> None:
        """Do what of the run is left to do."""
        self.load()
        begin(self.output, self.identity, self.processes, restart=self.options.restart)
        finished = bool(self.resume and is_finished(self.resume))
        self.train()
        if finished and all((self.output / name).is_file() for name in (REPORT_FILE, SAFE_WEIGHTS_NAME)):
            return  # all of it is written; another evaluation would say the same
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

    def read_from(self, sources: dict[str, dict[str, Any]]) -> None:
        """Record what the data are. Errors: the run that is resumed read others."""
        self.identity[DATA] = sources
        require_same_data(self.resume, sources)

    def write_report(self, report: dict[str, Any], draw: Callable[[dict[str, Any], Path], None] | None = None) -> None:
        """Write report.json, and what `draw` draws beside it: both or neither."""
        with atomic_folder(self.output) as staging:
            (staging / REPORT_FILE).write_text(json.dumps(report, indent=2))
            if draw:
                draw(report, staging)

    @abstractmethod
    def load(self) -> None:
        """Read data, tokenizer and backbone, and make `trainer` of them."""

    @abstractmethod
    def load_finished(self, checkpoint: Path) -> None:
        """Take up weights and state of a run that was trained to its end."""

    @abstractmethod
    def measure(self) -> None:
        """Evaluate on what is held out, in every process."""

    @abstractmethod
    def write(self) -> None:
        """Write the model and its report, and say so; only the main process does."""
