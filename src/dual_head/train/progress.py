"""What is shown while something trains: a few terms, by their names."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dual_head.console.gauge import SETTLED, duration

# Shown while it trains; trackers and the report get all terms.
SHOWN = (
    "loss",
    "next_token",
    "preference",
    "kto",
    "cls_loss",
    "lm_loss",
    "accuracy",
    "macro_f1",
    "rewards/accuracies",
    "gate",
    "kl",
    "norm",
    "learning_rate",
    "epoch",
)


def _shown(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    names = {f"{prefix}{name}": None for prefix in ("", "eval_", "train_") for name in SHOWN}
    return {name: value for name, value in (logs or {}).items() if name in names}


class BriefProgress(ProgressCallback):
    """transformers' progress bar, with the terms that are shown."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        self._timed = False

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar, and time from after the first step, which compiles or stands for all that were resumed."""
        super().on_step_end(args, state, control, **kwargs)
        bar: Any = self.training_bar
        if bar is not None and not self._timed:
            steps, self._timed = bar.n, True
            bar.reset()
            bar.n = bar.initial = bar.last_print_n = steps
            bar.refresh()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line."""
        super().on_log(args, state, control, logs=_shown(logs), **kwargs)


class BriefPrinter(PrinterCallback):
    """One line a log, without a terminal or with --disable_tqdm, and once how long the run takes."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget an earlier run."""
        self._first: tuple[int, float] | None = None
        self._estimated = False

    def on_step_end(self, _args, state, _control, **_):
        """Estimate what is left from the steps after the first, which compiles."""
        step, now = state.global_step, time.perf_counter()
        if self._first is None:
            self._first = step, now
        elif not self._estimated and now - self._first[1] >= SETTLED:
            self._estimated = True
            seconds = (now - self._first[1]) / (step - self._first[0]) * (state.max_steps - step)
            if state.is_world_process_zero and seconds > SETTLED:
                print(f"step {step} of {state.max_steps}; about {duration(seconds)} to go", flush=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print one line."""
        super().on_log(args, state, control, logs=_shown(logs), **kwargs)


def brief(trainer: Trainer) -> None:
    """Let a trainer show few terms: beside a bar on a terminal, else by lines."""
    bar = trainer.pop_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    if bar is not None:
        lines = trainer.args.disable_tqdm or not sys.stderr.isatty()
        trainer.add_callback(BriefPrinter if lines else BriefProgress)
