"""One training run: preference data and a backbone in, a folder of guides, metrics and curves out.

Everything on the way is printed: rows dropped by reason, lengths, parameters, where it resumes. It knows the
order of things; how each is done is elsewhere.
"""

import copy
import dataclasses
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase, Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone import load_backbone, load_context_length
from dual_head.checkpoint import atomic_folder
from dual_head.data import split_by_prompt
from dual_head.data.collate import PairCollator
from dual_head.data.formats import load_pairs
from dual_head.data.tokenize import COLUMNS, TokenizeOptions, tokenize_pairs
from dual_head.errors import DualHeadError, require
from dual_head.guides import guide_class
from dual_head.loading import read_config
from dual_head.methods import Method
from dual_head.model import AlignedModel
from dual_head.progress import brief
from dual_head.report import draw, print_report, summarise
from dual_head.resume import check_same_run, is_finished, last_whole_checkpoint, load_guides, save_guides
from dual_head.run_options import RunOptions, identity_of
from dual_head.training import GuideTrainer, GuideTrainingArguments
from dual_head.tuning import kind_of_peer, preference_trainer

RUN_FILE = "run.json"
REPORT_FILE = "report.json"
TRACKERS = ("tensorboard", "wandb", "mlflow")  # each an extra of the same name


def train_guide(method: Method, options: RunOptions, args: GuideTrainingArguments) -> GuideTrainer:
    """Train one guide and write it with its report; go on where a killed run of the same options stopped."""
    if options.move_guides:
        method = _as_trained(method, options.move_guides)
    processes = PartialState(cpu=args.use_cpu)
    main = processes.is_main_process
    console = Console(quiet=not main, highlight=False, markup=False, emoji=False)
    output = _writable(args.output_dir)
    for tracker in args.report_to or ():
        if tracker in TRACKERS:
            require(tracker, tracker)
    identity = identity_of(method, options, args)
    resume = None if options.restart else _resume_point(output, identity, args)
    tokenizer = load_tokenizer(options.tokenizer_name or options.model_name_or_path, options.trust_remote_code)
    train_set, held_out, drops = _data(options, args, tokenizer, console)
    set_seed(args.seed)  # the guide's first weights belong to the run as much as the order of its data
    model = _model(method, options, tokenizer)
    _describe(model, console)
    if not len(held_out):
        args = dataclasses.replace(args, eval_strategy="no", eval_steps=None)
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    measuring = GuideTrainer(
        model,
        method,
        args,
        train_dataset=train_set,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=PairCollator(pad),
        tokenizer=tokenizer,
        budget=options.logits_budget_mb * 2**20,
    )
    trainer = measuring if method.peer is None else _peer_trainer(method, model, args, train_set, held_out, tokenizer)
    _begin(output, identity, options, processes)
    started = time.perf_counter()
    if resume and is_finished(resume):
        console.print(f"Already trained to the end: {resume}. Add --restart to train again.")
        trainer.state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
        load_guides(model, resume)
        if (output / REPORT_FILE).is_file() and (output / SAFE_WEIGHTS_NAME).is_file():
            return measuring  # all of it is written; another evaluation would say the same
    else:
        if resume:
            console.print(f"Resuming from {resume}.")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    model.eval()  # a peer's trainer leaves it as it trained
    metrics = _measure(trainer, measuring) if len(held_out) else {}
    save_guides(model, tokenizer, output)
    if main:
        report = summarise(trainer, measuring.held_out, method, drops, seconds, metrics)
        with atomic_folder(output) as staging:
            (staging / REPORT_FILE).write_text(json.dumps(report, indent=2))
            draw(report, staging)
        print_report(report, output, console)
    measuring.state = trainer.state
    return measuring


def _as_trained(method: Method, folder: str) -> Method:
    """The method with the options that the guide in `folder` was trained with: it stays as it is."""
    config = read_config(folder)
    entry = (config.guides or {}).get(method.name)
    if entry is None:
        raise DualHeadError(
            f"'{folder}' holds no guide '{method.name}', only {', '.join(config.guides or {})}. "
            "Train with the method that made them."
        )
    own = guide_class(entry["kind"]).Config.from_dict(entry["config"])
    return dataclasses.replace(method, guide=own, fusion=config.fusion)


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
    return trainer


def _measure(trainer: Trainer, measuring: GuideTrainer) -> dict[str, float]:
    """Evaluate by our own objectives, whoever trained; by the trainer's own where there are none."""
    if trainer is measuring:
        return measuring.evaluate_once()
    return measuring.evaluate() if measuring.objectives else trainer.evaluate()


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Errors: none there."""
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise DualHeadError(
            f"Could not load a tokenizer from '{name_or_path}': {str(error).splitlines()[0]} "
            "Say where it is with --tokenizer (in training: --tokenizer_name)."
        ) from error


def _writable(output_dir: str | None) -> Path:
    if not output_dir:
        raise DualHeadError("Say where to write with --output_dir.")
    output = Path(output_dir)
    with atomic_folder(output):
        return output


def _resume_point(output: Path, identity: dict[str, Any], args: GuideTrainingArguments) -> Path | None:
    """Find the checkpoint to go on from, after checking that it is this run's."""
    asked = args.resume_from_checkpoint
    if asked and asked.lower() != "true":
        if not Path(asked).is_dir():
            raise DualHeadError(
                f"There is no checkpoint at '{asked}'. Leave --resume_from_checkpoint out to use the last one."
            )
        return Path(asked)
    found = last_whole_checkpoint(output)
    record = output / RUN_FILE
    if found and record.is_file():
        check_same_run(json.loads(record.read_text()), identity, str(output))
    return found


def _begin(output: Path, identity: dict[str, Any], options: RunOptions, processes: PartialState) -> None:
    """Record the run, and clear the way for --restart: only now, when nothing can be mistyped any more."""
    if processes.is_main_process:
        if options.restart:
            for folder in output.glob("checkpoint-*"):
                if folder.is_dir():
                    shutil.rmtree(folder)
        with atomic_folder(output) as staging:
            (staging / RUN_FILE).write_text(json.dumps(identity, indent=2))
    processes.wait_for_everyone()


def _data(options: RunOptions, args: GuideTrainingArguments, tokenizer: PreTrainedTokenizerBase, console: Console):
    pairs, drops = load_pairs(
        options.dataset_name,
        split=options.dataset_split,
        objective=options.objective,
        data_dir=options.data_dir,
        format=options.dataset_format,
        max_rows=options.max_pairs,
    )
    console.print(f"{options.dataset_name}\n{drops.table()}")
    kept, aside = split_by_prompt(pairs, options.held_out)
    if not kept:
        raise DualHeadError("No pair is left to train on. Lower --held_out, or give more data.")
    context = load_context_length(options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    lengths = TokenizeOptions(
        max_length=min(options.max_length, context or options.max_length),
        max_prompt_length=options.max_prompt_length,
        truncate_responses=options.truncate_responses,
    )
    quiet = bool(args.disable_tqdm) or console.quiet
    train_set, dropped = tokenize_pairs(kept, tokenizer, lengths, progress=not quiet)
    held_out: Any = []
    if aside:
        try:
            held_out, more = tokenize_pairs(aside, tokenizer, lengths, progress=False)
            held_out, dropped = _by_length(held_out), dropped + more
        except DualHeadError:
            console.print(f"None of the {len(aside)} held-out pairs can be used, so nothing is held out.")
    console.print(f"tokenised, at most {lengths.max_length} tokens\n{dropped.table()}")
    console.print(f"{len(train_set)} pairs to train on, {len(held_out)} held out by prompt.")
    return train_set, held_out, {"rows": drops, "tokens": dropped}


def _by_length(rows: Any) -> Any:
    """Order held-out pairs by length, so that a batch pads little; their order means nothing."""
    longest = [len(p) + max(len(c), len(r)) for p, c, r in zip(*(rows[column] for column in COLUMNS), strict=True)]
    return rows.select(sorted(range(len(longest)), key=longest.__getitem__))


def _model(method: Method, options: RunOptions, tokenizer: PreTrainedTokenizerBase) -> AlignedModel:
    quantization = None
    if options.quantization != "none":
        require("bitsandbytes", "quantization")
        quantization = BitsAndBytesConfig(
            load_in_4bit=options.quantization == "4bit", load_in_8bit=options.quantization == "8bit"
        )
    lm = load_backbone(
        options.model_name_or_path,
        dtype=options.dtype,
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        quantization_config=quantization,
        trust_remote_code=options.trust_remote_code,
    )
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
    model.config.training = {
        **method.as_dict(),
        "dataset": options.dataset_name,
        "objective": options.objective,
    }
    return model


def _describe(model: AlignedModel, console: Console) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.backbone.lm.parameters())
    console.print(f"{trained:,} parameters to train beside {frozen:,} frozen ({trained / frozen:.1%}).")
