"""Checkpoints of a training run: written whole, the last whole one found, another run's refused.

It knows folders and weights; what trains is elsewhere.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone.checkpoint import load_strictly, read_shapes, read_weights, require_kind
from dual_head.errors import DualHeadError
from dual_head.files.places import altered, atomic_folder, checksums, exclusive, flush, require_place, settle
from dual_head.files.reading import ANEW, read_json, reading
from dual_head.train.identity import OTHERWISE, check_same_run

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
REPORT_FILE = "report.json"  # written last, after the weights that it is of
SEAL_FILE = "checksums.json"  # size and SHA-256 of a checkpoint's files, written when they all are

# What a run needs to go on exactly as if it had never stopped. The Trainer writes its state last, and goes on silently
# without an optimizer, a schedule or random numbers.
CHECKPOINT_FILES = (SAFE_WEIGHTS_NAME, "optimizer.pt", "scheduler.pt", TRAINER_STATE_NAME)


# ---- weights -----------------------------------------------------------------------------------------------


def save_stored(model: Any, tokenizer: Any, folder: str | Path, noun: str = "guide") -> None:
    """Write what a model stores of itself, and its tokenizer, all or nothing. Errors: weights that are not finite."""
    if not all(tensor.isfinite().all() for tensor in model.stored().values() if tensor.is_floating_point()):
        raise DualHeadError(
            f"Training diverged: the {noun} holds NaN or infinity, so nothing was saved. Lower --learning_rate or set "
            "--max_grad_norm, and run again."
        )
    require_kind(Path(folder), model.config.model_type)
    with atomic_folder(Path(folder)) as staging:
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)


def load_stored(model: Any, folder: str | Path) -> None:
    """Load what a model stores of itself from a checkpoint of the same run."""
    load_strictly(model.stored(), read_weights(str(folder)), str(folder))


class StoredCheckpoints(Trainer):
    """transformers' Trainer whose checkpoints hold what `save_weights` writes; transformers' own where it is None."""

    save_weights: Callable[[str], None] | None = None
    load_weights: Callable[[str], None] | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.save_weights is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:  # transformers asks every process
            self.save_weights(output_dir or self.args.output_dir or ".")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.load_weights is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # transformers would look for the wrapped model's names in our file, and load none of them without a word.
        if self.load_weights is None:
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


# ---- whole checkpoints -------------------------------------------------------------------------------------


def last_whole_checkpoint(output_dir: str | Path, *, processes: int = 1) -> Path | None:
    """Find the newest checkpoint that was written to its end; others are passed over, and never touched."""
    checkpoints = [p for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    for folder in sorted(checkpoints, key=lambda p: int(p.name.rsplit("-", 1)[1]), reverse=True):
        if not (missing := missing_files(folder, processes)):
            return folder
        logger.warning("'%s' is not a whole checkpoint and is passed over: no %s.", folder, ", ".join(missing))
    return None


class Sealing(TrainerCallback):
    """Writes into each checkpoint what its files are; one whose files have changed since is passed over."""

    def on_save(self, args, state, control, **kwargs):
        """Seal what the Trainer has written."""
        del control, kwargs
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            # Random numbers of other processes may still be on their way.
            unsealed = {file.name for file in folder.glob("rng_state_*.pth")} - {"rng_state_0.pth"} | {SEAL_FILE}
            entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
            files = [entry for entry in entries if entry.is_file() and entry.name not in unsealed]
            for file in files:
                flush(file)
            with atomic_folder(folder) as staging:
                (staging / SEAL_FILE).write_text(json.dumps(checksums(files), indent=2))


def missing_files(checkpoint: Path, processes: int) -> list[str]:
    """Files that a checkpoint of so many processes lacks, those that were cut or changed among them."""
    numbers = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    missing = [name for name in (*CHECKPOINT_FILES, *numbers) if not (checkpoint / name).is_file()]
    return missing + [f"whole {name}" for name in _damaged(checkpoint)]


def _damaged(checkpoint: Path) -> list[str]:
    """Files of a checkpoint that differ from its seal, or that are not in the seal and cannot be read."""
    seal: dict[str, Any] = {}
    if (checkpoint / SEAL_FILE).is_file():
        try:
            seal = read_json(checkpoint / SEAL_FILE, ANEW)
        except DualHeadError:
            return [SEAL_FILE]
    unsealed = [file for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name not in seal]
    return altered(checkpoint, seal) + [file.name for file in unsealed if not _is_readable(file)]


def _is_readable(file: Path) -> bool:
    try:
        with reading("", ""):
            if file.name == TRAINER_STATE_NAME:
                read_state(file.parent)
            elif file.name == SAFE_WEIGHTS_NAME:
                read_shapes(file)
            elif file.suffix in (".pt", ".pth"):
                with safe_globals():
                    torch.load(file, map_location="cpu", weights_only=True)
    except DualHeadError:
        return False
    return True


def read_state(checkpoint: Path) -> TrainerState:
    """Read how far a run was at a checkpoint. Errors: a file that is not what the Trainer wrote."""
    file = checkpoint / TRAINER_STATE_NAME
    with reading(f"Cannot read '{file}'", ANEW):
        state = TrainerState.load_from_json(str(file))
        if not all(isinstance(steps, int) for steps in (state.global_step, state.max_steps)):
            raise ValueError("its steps are not whole numbers")
        return state


def is_finished(checkpoint: Path) -> bool:
    """Whether a whole checkpoint is its run's last one."""
    state = read_state(checkpoint)
    return state.global_step >= state.max_steps


def final_checkpoint(last: Path, best: str | None, args: TrainingArguments) -> Path:
    """The checkpoint whose weights a finished run keeps: the best one, beside the last wherever the folder is now."""
    return last.parent / Path(best).name if best and args.load_best_model_at_end else last


# ---- the folder of a run -----------------------------------------------------------------------------------


def output_lock(args: TrainingArguments) -> AbstractContextManager[None]:
    """Hold the output of a run against other runs, in its main process. Errors: none is named, another run holds it."""
    return exclusive(_output_of(args.output_dir), main=PartialState(cpu=args.use_cpu).is_main_process)


def _output_of(output_dir: str | None) -> Path:
    if not output_dir:
        raise DualHeadError("Say where to write with --output_dir.")
    return Path(output_dir)


def writable(
    output_dir: str | None, *, kind: str | None = None, record: str = RUN_FILE, reads: Iterable[str | Path | None] = ()
) -> Path:
    """The folder that a run writes to, made if it is missing.

    kind: model_type of what is written; record: by which the run knows the folder as its own; reads: what it reads.
    Errors: no folder is named; one that cannot be written, or holds what another command wrote.
    """
    output = _output_of(output_dir)
    require_place(output, record=record, reads=reads)
    for checkpoint in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        settle(checkpoint)
    if kind is not None:
        require_kind(output, kind)
    with atomic_folder(output):
        return output


def resume_point(output: Path, identity: Mapping[str, Any], checkpoint: str | None) -> Path | None:
    """Find the checkpoint to go on from. Errors: it is not whole, or of another run; `output` is another run's."""
    processes = identity["processes"]
    if checkpoint and checkpoint.lower() != "true":
        point = Path(checkpoint)
        if not point.is_dir():
            raise DualHeadError(
                f"'{checkpoint}' is not a folder. Leave --resume_from_checkpoint out to use the last checkpoint."
            )
        if missing := missing_files(point, processes):
            raise DualHeadError(
                f"'{checkpoint}' is not a whole checkpoint: it has no {', '.join(missing)}. Leave "
                "--resume_from_checkpoint out to use the last whole one."
            )
    elif (point := last_whole_checkpoint(output, processes=processes)) is None:
        return None
    if not (record := point.parent / RUN_FILE).is_file():
        logger.warning("'%s' is missing: whether '%s' had the same options cannot be told.", record, point)
    require_same_run(output, point, identity)
    return point


def require_same_run(output: Path, checkpoint: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of other options or data, or in the folder of such a run, by their records."""
    for folder, otherwise in ((output, OTHERWISE), (checkpoint.parent, "or leave out --resume_from_checkpoint")):
        if (record := folder / RUN_FILE).is_file():
            check_same_run(read_json(record, ANEW), identity, str(folder), otherwise=otherwise)


def begin(
    output: Path, identity: Mapping[str, Any], processes: PartialState, *, resume: Path | None, restart: bool
) -> None:
    """Record the run, and delete its checkpoints for --restart: only now that every option has been checked.

    A run that does not go on from a checkpoint has no report yet: the one that is there is an earlier run's.
    """
    if processes.is_main_process:
        if restart:
            for folder in output.glob("checkpoint-*"):
                if folder.is_symlink():
                    folder.unlink()  # what it names is not this run's
                elif folder.is_dir():
                    shutil.rmtree(folder)
        with atomic_folder(output, replaces=() if resume else (REPORT_FILE,)) as staging:
            (staging / RUN_FILE).write_text(json.dumps(dict(identity), indent=2))
    processes.wait_for_everyone()
