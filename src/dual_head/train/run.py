"""One training run: preference data and a backbone in, a folder of guides, metrics and curves out.

Everything on the way is printed: rows dropped by reason, lengths, parameters, where it resumes. It knows the
order of things; how each is done is elsewhere.
"""

import copy
import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone.checkpoint import MODEL_TYPE
from dual_head.console.terminal import Terminal
from dual_head.data.collate import PairCollator
from dual_head.data.tokenize import longest_sequence
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder
from dual_head.guides import build_guide, guide_class
from dual_head.methods import Method
from dual_head.methods.held_out import HeldOutTrainer
from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import read_config
from dual_head.model.switch import entry_of
from dual_head.ops.compiled import compiled_folder
from dual_head.train.inputs import CachedInputs, by_length, load_data, load_lm, load_tokenizer
from dual_head.train.options import RunOptions, identity_of
from dual_head.train.progress import brief
from dual_head.train.report import draw, print_report, summarise
from dual_head.train.resume import (
    DATA,
    Sealing,
    begin,
    held,
    is_finished,
    kept_checkpoint,
    load_guides,
    require_same_data,
    resume_point,
    save_guides,
    writable,
)
from dual_head.train.trainer import GuideTrainer, GuideTrainingArguments, require_trackers
from dual_head.train.trl import preference_trainer

REPORT_FILE = "report.json"
LARGE = 0.1  # of the backbone: checkpoints are three times as large, with AdamW's moments
LOW_RANK = 64


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


class GuideRun(Run):
    """Trains one guide: preference pairs or a feature cache, and a method."""

    kind = MODEL_TYPE

    def __init__(self, method: Method, options: RunOptions, args: GuideTrainingArguments):
        if options.move_guides:
            method = _as_trained(method, options.move_guides)
        self.method = method
        self.cached = CachedInputs(method, options) if options.feature_cache else None
        options = self.cached.options if self.cached else options
        reads = (options.model_name_or_path, options.dataset_name, options.feature_cache, options.move_guides)
        super().__init__(options, args, identity_of(method, options, args), reads)

    def load(self) -> None:
        """Read pairs or features; build the guide, its trainer and, for a peer, the peer's."""
        method, options, cached, console = self.method, self.options, self.cached, self.console
        if cached:
            self.tokenizer, (train_set, held_out, self.drops) = cached.load_tokenizer(), cached.load_data(console)
        else:
            name = options.tokenizer_name or options.model_name_or_path
            self.tokenizer = load_tokenizer(name, options.trust_remote_code)
            quiet = bool(self.args.disable_tqdm) or console.quiet or not console.is_terminal
            train_set, held_out, self.drops = load_data(options, self.tokenizer, console, progress=not quiet)
            held_out = by_length(held_out)
        self.held_out = held_out
        self.read_from(cached.sources if cached else self.drops["rows"].sources)
        set_seed(self.args.seed)  # the guide's first weights belong to the run as much as the order of its data
        self.model = model = _model(method, options, self.tokenizer, cached)
        _describe(model, method, options, cached, console)
        if not len(held_out):
            self.args = dataclasses.replace(self.args, eval_strategy="no", eval_steps=None)
        self.guide_trainer = GuideTrainer(
            model,
            method,
            self.args,
            train_dataset=train_set,
            eval_dataset=held_out if len(held_out) else None,
            data_collator=cached.collator
            if cached
            else _collator(model, method, self.tokenizer, (train_set, held_out), console),
            tokenizer=self.tokenizer,
            budget=options.logits_budget_mb and options.logits_budget_mb * 2**20,
        )
        if method.peer is not None:
            self.trainer = _peer_trainer(method, model, self.args, train_set, held_out, self.tokenizer)
            return
        self.trainer = self.guide_trainer
        if self.guide_trainer.loss.compiled:
            folder = compiled_folder()
            console.print(f"The first step compiles loops once (about 30 s). Later runs find them in {folder}.")

    def load_finished(self, checkpoint: Path) -> None:
        """See `Run`; the best weights where those are kept."""
        self.trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        load_guides(self.model, kept_checkpoint(checkpoint, self.trainer.state.best_model_checkpoint, self.args))

    def train(self) -> None:
        """See `Run`; `guide_trainer` knows the state of the trainer that trained."""
        super().train()
        self.model.eval()  # a peer's trainer leaves it as it trained
        self.guide_trainer.state = self.trainer.state

    def measure(self) -> None:
        """Our own objectives measure, whoever trained; where there are none, the trainer does."""
        self.judge = self.guide_trainer if self.method.objectives else self.trainer
        assert isinstance(self.judge, HeldOutTrainer)
        self.metrics = self.judge.evaluate_once() if len(self.held_out) else {}

    def write(self) -> None:
        """Write guides, tokenizer, report and curves."""
        assert isinstance(self.judge, HeldOutTrainer)
        save_guides(self.model, self.tokenizer, self.output)
        trainer, held_out = self.trainer, self.judge.held_out
        report = summarise(trainer, held_out, self.method, self.drops, self.seconds, self.metrics)
        self.write_report(report, draw)
        print_report(report, self.output, self.console)


def train_guide(method: Method, options: RunOptions, args: GuideTrainingArguments) -> GuideTrainer:
    """Train one guide and write it with its report; go on where a killed run of the same options stopped."""
    with held(args):
        run = GuideRun(method, options, args)
        run.complete()
    return run.guide_trainer


def _collator(
    model: AlignedModel, method: Method, tokenizer: PreTrainedTokenizerBase, sets: Sequence[Any], console: Console
) -> PairCollator:
    """Lay out pairs with their prompt once, where backbone and guide keep the two responses apart."""
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    why_not = model.why_no_shared_prompts([method.name], max(longest_sequence(rows) for rows in sets if len(rows)))
    if why_not:
        console.print(f"Prompts are run once for each response: {why_not}.")
    return PairCollator(pad, share_prompt=why_not is None)


def _as_trained(method: Method, folder: str) -> Method:
    """The method with the options that the guide in `folder` was trained with: it stays as it is."""
    config = read_config(folder)
    entry = (config.guides or {}).get(method.name)
    if entry is None:
        raise DualHeadError(
            f"'{folder}' holds no guide '{method.name}', only {', '.join(config.guides or {})}. "
            "Train with the method that made them."
        )
    guide = guide_class(entry["kind"]).Config.from_dict(entry["config"])
    return dataclasses.replace(method, guide=guide, fusion=config.fusion)


def _peer_trainer(
    method: Method,
    model: AlignedModel,
    args: GuideTrainingArguments,
    train_set: Any,
    held_out: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> Trainer:
    """The peer's own trainer on the model that the guide is; checkpoints and results are guides as any other."""
    assert method.peer is not None
    guide: Any = model.guide(method.name)
    tokenizer = copy.deepcopy(tokenizer)
    method.peer.prepare(tokenizer)
    trainer = preference_trainer(
        method.peer,
        guide.tuned,
        args,
        train_dataset=train_set,
        eval_dataset=held_out if len(held_out) else None,
        tokenizer=tokenizer,
        save=lambda folder: save_guides(model, tokenizer, folder),
        load=lambda folder: load_guides(model, folder),
    )
    brief(trainer)
    trainer.add_callback(Sealing())
    return trainer


def _model(
    method: Method, options: RunOptions, tokenizer: PreTrainedTokenizerBase, cached: CachedInputs | None
) -> AlignedModel:
    lm = load_lm(options, options.dtype) if cached is None else cached.load_lm()
    if options.move_guides:
        model = AlignedModel.from_pretrained(
            options.move_guides,
            backbone=lm,
            switch=True,
            adapter=True,
            vocab_map=options.vocab_map,
            tokenizer=tokenizer,
        )
        model.guides.requires_grad_(False)
        if not len(model.transfers):
            raise DualHeadError(f"The guides in '{options.move_guides}' were trained on this very backbone.")
    else:
        model = AlignedModel.from_backbone(lm, method.guides(), fusion=method.fusion, tokenizer=tokenizer)
    if cached:
        model.config.backbone_fingerprint = cached.backbone["fingerprint"]  # of all its weights, not of the head's
    model.config.training = {
        **method.as_dict(),
        "dataset": options.dataset_name,
        "objective": options.objective,
    }
    return model


def _describe(
    model: AlignedModel, method: Method, options: RunOptions, cached: CachedInputs | None, console: Console
) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.backbone.lm.parameters())
    frozen = parameters if cached is None else cached.backbone["parameters"]
    console.print(f"{trained:,} parameters to train beside {frozen:,} frozen ({trained / frozen:.1%}).")
    if trained > LARGE * frozen and getattr(method.guide, "rank", 0) is None and not options.move_guides:
        smaller = method.with_options({"guide.rank": LOW_RANK}).guides().values()
        with torch.device("meta"):
            guides = nn.ModuleList(
                build_guide(entry_of(x, model.backbone.shape), model.backbone.shape) for x in smaller
            )
        fewer = sum(p.numel() for p in guides.parameters())
        if fewer < trained:
            console.print(
                f"A head of full rank, over {LARGE:.0%} of the backbone; "
                f"--rank {LOW_RANK} would train {fewer:,} ({fewer / frozen:.1%})."
            )
