"""Training a guide: preference data and a backbone in, a folder of guides, metrics and curves out.

Everything on the way is printed: rows dropped by reason, lengths, parameters, where it resumes. It knows the
order of things; how each is done is elsewhere.
"""

import copy
import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from dual_head.backbone.checkpoint import MODEL_TYPE
from dual_head.console.gauge import Gauge
from dual_head.errors import DualHeadError
from dual_head.guides import build_guide, guide_class
from dual_head.methods import Method
from dual_head.methods.fit import FitOptions
from dual_head.methods.held_out import HeldOutTrainer
from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import read_config
from dual_head.model.switch import entry_of
from dual_head.ops.compiled import compiled_folder
from dual_head.train.arguments import OF_FITS, GuideTrainingArguments
from dual_head.train.base import Run
from dual_head.train.feature_cache.inputs import CachedInputs
from dual_head.train.identity import identity_of
from dual_head.train.inputs import StreamedInputs
from dual_head.train.options import RunOptions
from dual_head.train.progress import brief
from dual_head.train.report import draw, print_report, summarise
from dual_head.train.resume import Sealing, load_stored, output_lock, save_stored
from dual_head.train.trainer import GuideTrainer
from dual_head.train.trl import preference_trainer

__all__ = ["GuideRun", "RunOptions", "train_guide"]

LARGE = 0.1  # of the backbone: checkpoints are three times as large, with AdamW's moments
LOW_RANK = 64


class GuideRun(Run):
    """Trains one guide: preference pairs or a feature cache, and a method."""

    kind = MODEL_TYPE
    held_out: Any
    fitted: dict[str, Any]  # figures of what was computed in one pass

    def __init__(self, method: Method, options: RunOptions, args: GuideTrainingArguments):
        if options.move_guides:
            method = _as_trained(method, options.move_guides)
        if method.fit is not None:
            _require_no_steps(method, args)
        self.method = method
        self.inputs = CachedInputs(method, options) if options.feature_cache else StreamedInputs(method, options)
        options = self.inputs.options
        reads = (options.model_name_or_path, options.dataset_name, options.feature_cache, options.move_guides)
        super().__init__(options, args, identity_of(method, options, args), reads)

    def load(self) -> None:
        """Read pairs or features; build the guide, its trainer and, for a peer, the peer's."""
        method, options, inputs, console = self.method, self.options, self.inputs, self.console
        quiet = bool(self.args.disable_tqdm) or console.quiet or not console.is_terminal
        self.tokenizer = inputs.load_tokenizer()
        train_set, self.held_out, self.drops = inputs.load_data(self.tokenizer, console, progress=not quiet)
        self.read_from(inputs.sources)
        set_seed(self.args.seed)  # the guide's first weights belong to the run as much as the order of its data
        self.model = model = self._build()
        self._describe()
        if not len(self.held_out):
            self.args = dataclasses.replace(self.args, eval_strategy="no", eval_steps=None)
        self.guide_trainer = GuideTrainer(
            model,
            method,
            self.args,
            train_dataset=train_set,
            eval_dataset=self.held_out if len(self.held_out) else None,
            data_collator=inputs.collator(model, method.name, self.tokenizer, (train_set, self.held_out), console),
            tokenizer=self.tokenizer,
            budget=options.logits_budget_mb and options.logits_budget_mb * 2**20,
        )
        self.trainer: Trainer = self.guide_trainer if method.peer is None else self._peer_trainer(train_set)
        if method.peer is None and method.fit is None and self.guide_trainer.loss.compiled:
            folder = compiled_folder()
            console.print(f"The first step compiles loops once (about 30 s). Later runs find them in {folder}.")

    def train(self) -> None:
        """See `Run`; `guide_trainer` knows the state of the trainer that trained."""
        if self.method.fit is not None:
            self._fit(self.method.fit)
            return
        super().train()
        self.model.eval()  # a peer's trainer leaves it as it trained
        self.guide_trainer.state = self.trainer.state

    def _fit(self, fit: FitOptions) -> None:
        """Compute the guide in one pass over all pairs, in every process the same."""
        started, trainer = time.perf_counter(), self.guide_trainer
        rows, size = trainer.train_dataset, self.args.per_device_eval_batch_size
        loader: Any = DataLoader(rows, size, collate_fn=trainer.data_collator)  # pyright: ignore[reportArgumentType]
        with Gauge("pairs", len(rows), quiet=bool(self.args.disable_tqdm) or self.console.quiet) as gauge:  # type: ignore[arg-type]

            def batches() -> Iterator[Any]:
                for batch in loader:
                    yield send_to_device(batch, self.model.device)
                    gauge.advance(len(batch["counts"]) // 2)

            self.fitted = fit.fit(self.model, self.method.name, batches())
        self.seconds = time.perf_counter() - started

    def measure(self) -> None:
        """Evaluate by our own objectives, a peer's guide too; by the trainer for a method without objectives."""
        evaluator = self.guide_trainer if self.method.objectives else self.trainer
        assert isinstance(evaluator, HeldOutTrainer)
        self.metrics = evaluator.evaluate_once() if len(self.held_out) else {}
        self.pair_metrics = evaluator.held_out

    def write(self) -> None:
        """Write guides, tokenizer, report and curves."""
        save_stored(self.model, self.tokenizer, self.output)
        report = summarise(self.trainer, self.pair_metrics, self.method, self.drops, self.seconds, self.metrics)
        if self.method.fit is not None:
            report["fit"] = self.fitted
        self.write_report(report, draw)
        noun = "replies" if self.method.learns_from == "feedback" else "pairs"
        print_report(report, self.output, self.console, noun)

    def _build(self) -> AlignedModel:
        """The backbone with new guides beside it, or with those that are moved to it."""
        method, options, inputs = self.method, self.options, self.inputs
        lm = inputs.load_lm()
        if options.move_guides:
            model = AlignedModel.from_pretrained(
                options.move_guides,
                backbone=lm,
                switch=True,
                adapter=True,
                vocab_map=options.vocab_map,
                tokenizer=self.tokenizer,
            )
            model.guides.requires_grad_(False)
            if not len(model.transfers):
                raise DualHeadError(f"The guides in '{options.move_guides}' were trained on this very backbone.")
        else:
            model = AlignedModel.from_backbone(lm, method.guides(), fusion=method.fusion, tokenizer=self.tokenizer)
        if isinstance(inputs, CachedInputs):
            model.config.backbone_fingerprint = inputs.backbone["fingerprint"]  # of all weights, not of the head's
            model.config.backbone_probe = inputs.backbone.get("probe")
        model.record_probe()  # now: when it is saved, processes may share the backbone, and one alone cannot run it
        model.config.training = {**method.as_dict(), "dataset": options.dataset_name, "objective": options.objective}
        return model

    def _describe(self) -> None:
        """Print how many parameters are trained, and a low rank where they are many."""
        shape, lm = self.model.backbone.shape, self.model.backbone.lm
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in lm.parameters())
        if isinstance(self.inputs, CachedInputs):
            frozen = self.inputs.backbone["parameters"]  # of the whole backbone
        if self.method.fit is not None:
            count = sum(p.numel() for p in self.model.guides.parameters())
            self.console.print(f"{count:,} numbers to compute in one pass, beside {frozen:,} frozen parameters.")
            return
        self.console.print(f"{trained:,} parameters to train beside {frozen:,} frozen ({trained / frozen:.1%}).")
        full_rank = getattr(self.method.guide, "rank", 0) is None and not self.options.move_guides
        if trained > LARGE * frozen and full_rank:
            low_rank = self.method.with_options({"guide.rank": LOW_RANK}).guides().values()
            with torch.device("meta"):
                guides = nn.ModuleList(build_guide(entry_of(config, shape), shape) for config in low_rank)
            fewer = sum(p.numel() for p in guides.parameters())
            if fewer < trained:
                self.console.print(
                    f"A head of full rank, over {LARGE:.0%} of the backbone; "
                    f"--rank {LOW_RANK} would train {fewer:,} ({fewer / frozen:.1%})."
                )

    def _peer_trainer(self, train_set: Any) -> Trainer:
        """The peer's own trainer on the model that the guide is; checkpoints and results are guides as any other."""
        peer, guide = self.method.peer, self.model.guide(self.method.name)
        assert peer is not None
        tokenizer: PreTrainedTokenizerBase = copy.deepcopy(self.tokenizer)
        peer.prepare(tokenizer)
        trainer = preference_trainer(
            peer,
            guide.tuned,  # type: ignore[arg-type]
            self.args,
            train_dataset=train_set,
            eval_dataset=self.held_out if len(self.held_out) else None,
            tokenizer=tokenizer,
            save=partial(save_stored, self.model, tokenizer),
            load=partial(load_stored, self.model),
        )
        brief(trainer)
        trainer.add_callback(Sealing())
        return trainer


def train_guide(method: Method, options: RunOptions, args: GuideTrainingArguments) -> GuideTrainer:
    """Train one guide and write it with its report; go on where a killed run of the same options stopped."""
    with output_lock(args):
        run = GuideRun(method, options, args)
        run.complete()
    return run.guide_trainer


def _require_no_steps(method: Method, args: GuideTrainingArguments) -> None:
    """Refuse what is asked of steps, where there are none."""
    plain = GuideTrainingArguments(args.output_dir, use_cpu=args.use_cpu)
    names = [f.name for f in dataclasses.fields(args) if f.name not in OF_FITS]
    if of_steps := [name for name in names if getattr(args, name) != getattr(plain, name)]:
        flags = ", ".join(f"--{name}" for name in of_steps)
        raise DualHeadError(f"'{method.name}' is computed in one pass over the pairs, not in steps. Leave out {flags}.")


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
