"""One training run: preference data and a backbone in, a folder of guides, metrics and curves out.

Everything on the way is printed: rows dropped by reason, lengths, parameters, where it resumes. It knows the
order of things; how each is done is elsewhere.
"""

import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.checkpoint import MODEL_TYPE
from dual_head.data.collate import PairCollator
from dual_head.data.tokenize import longest_sequence
from dual_head.errors import DualHeadError
from dual_head.guides import build_guide, guide_class
from dual_head.held_out import HeldOutTrainer
from dual_head.methods import Method
from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import read_config
from dual_head.model.switch import entry_of
from dual_head.ops.vocab_kernels import compiled_folder
from dual_head.places import atomic_folder
from dual_head.progress import brief
from dual_head.report import draw, print_report, summarise
from dual_head.resume import (
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
from dual_head.run_inputs import CachedInputs, by_length, load_data, load_lm, load_tokenizer
from dual_head.run_options import RunOptions, identity_of
from dual_head.terminal import Terminal
from dual_head.training import GuideTrainer, GuideTrainingArguments, require_trackers
from dual_head.tuning import kind_of_peer, preference_trainer

REPORT_FILE = "report.json"
LARGE = 0.1  # of the backbone: checkpoints are three times as large, with AdamW's moments
LOW_RANK = 64


def train_guide(method: Method, options: RunOptions, args: GuideTrainingArguments) -> GuideTrainer:
    """Train one guide and write it with its report; go on where a killed run of the same options stopped."""
    with held(args):
        return _train_guide(method, options, args)


def _train_guide(method: Method, options: RunOptions, args: GuideTrainingArguments) -> GuideTrainer:
    if options.move_guides:
        method = _as_trained(method, options.move_guides)
    cached = CachedInputs(method, options) if options.feature_cache else None
    options = cached.options if cached else options
    processes = PartialState(cpu=args.use_cpu)
    main = processes.is_main_process
    console = Terminal(quiet=not main)
    reads = (options.model_name_or_path, options.dataset_name, options.feature_cache, options.move_guides)
    output = writable(args.output_dir, kind=MODEL_TYPE, reads=reads)
    require_trackers(args)
    identity = identity_of(method, options, args)
    resume = None if options.restart else resume_point(output, identity, args.resume_from_checkpoint)
    if cached:
        tokenizer, (train_set, held_out, drops) = cached.load_tokenizer(), cached.load_data(console)
    else:
        tokenizer = load_tokenizer(options.tokenizer_name or options.model_name_or_path, options.trust_remote_code)
        quiet = bool(args.disable_tqdm) or console.quiet or not console.is_terminal
        train_set, held_out, drops = load_data(options, tokenizer, console, progress=not quiet)
        held_out = by_length(held_out)
    identity[DATA] = cached.sources if cached else drops["rows"].sources
    require_same_data(resume, identity[DATA])
    set_seed(args.seed)  # the guide's first weights belong to the run as much as the order of its data
    model = _model(method, options, tokenizer, cached)
    _describe(model, method, options, cached, console)
    if not len(held_out):
        args = dataclasses.replace(args, eval_strategy="no", eval_steps=None)
    collator = cached.collator if cached else _collator(model, method, tokenizer, (train_set, held_out), console)
    measuring = GuideTrainer(
        model,
        method,
        args,
        train_dataset=train_set,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=collator,
        tokenizer=tokenizer,
        budget=options.logits_budget_mb and options.logits_budget_mb * 2**20,
    )
    trainer = measuring if method.peer is None else _peer_trainer(method, model, args, train_set, held_out, tokenizer)
    if trainer is measuring and measuring.loss.compiled:
        console.print(f"The first step compiles loops once (about 30 s). Later runs find them in {compiled_folder()}.")
    begin(output, identity, processes, restart=options.restart)
    started = time.perf_counter()
    if resume and is_finished(resume):
        console.print(f"Already trained to the end: {resume}. Add --restart to train again.", soft_wrap=True)
        trainer.state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
        load_guides(model, kept_checkpoint(resume, trainer.state.best_model_checkpoint, args))
        if (output / REPORT_FILE).is_file() and (output / SAFE_WEIGHTS_NAME).is_file():
            return measuring  # all of it is written; another evaluation would say the same
    else:
        if resume:
            console.print(f"Resuming from {resume}.", soft_wrap=True)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    model.eval()  # a peer's trainer leaves it as it trained
    # Our own objectives measure, whoever trained; where there are none, the trainer does.
    judge = measuring if method.objectives else trainer
    assert isinstance(judge, HeldOutTrainer)
    metrics = judge.evaluate_once() if len(held_out) else {}
    if main:
        save_guides(model, tokenizer, output)
        report = summarise(trainer, judge.held_out, method, drops, seconds, metrics)
        with atomic_folder(output) as staging:
            (staging / REPORT_FILE).write_text(json.dumps(report, indent=2))
            draw(report, staging)
        print_report(report, output, console)
    measuring.state = trainer.state
    return measuring


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
    kind = kind_of_peer(method.peer)
    tokenizer = copy.deepcopy(tokenizer)
    if kind == "reward" and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # The score is read at the last token that is no padding, and that is the end of the reply.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token
    trainer = preference_trainer(
        kind,
        guide.tuned,
        args,
        train_dataset=train_set,
        eval_dataset=held_out if len(held_out) else None,
        tokenizer=tokenizer,
        options=asdict(method.peer),
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
