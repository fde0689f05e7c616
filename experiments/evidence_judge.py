"""The judge of real dialogues: reward models trained on prompts that no guide and no table sees.

One for each objective and one for both together; each is a sequence classifier that begins as the chat backbone, its
weights or those of its upper layers trained by TRL's Bradley-Terry trainer. What they are worth is said first: accuracy
on held-out pairs.
"""

import math
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from evidence_data import write_json
from evidence_worlds import Dialogues
from transformers import AutoModelForSequenceClassification, set_seed

from dual_head import GuideTrainingArguments, TokenizeOptions, load_pairs, tokenize_pairs
from dual_head.data import Cut
from dual_head.evaluate.rewards import Classifier, ReplyIds
from dual_head.methods.reward import RewardOptions
from dual_head.model.generate import Prompt
from dual_head.model.pretrained import load_tokenizer
from dual_head.stats import wilson
from dual_head.train.resume import last_whole_checkpoint
from dual_head.train.trl import preference_trainer

BATCH, SAVE_STEPS = 16, 20
ROWS = 64  # scored at a time


def judge_folder(folder: Path, objective: str) -> Path:
    """Where the judge of an objective is in an evidence folder."""
    return folder / "judge" / objective


def train_judge(world: Dialogues, objective: str, *, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Train one judge, as the world has it or for so many steps, and measure it on pairs of parts that it never saw.

    A killed run goes on from its last checkpoint.
    """
    folder, judging = judge_folder(world.folder, objective), world.judging
    tokenizer: Any = load_tokenizer(world.backbone)
    if tokenizer.pad_token == tokenizer.eos_token:  # a judge reads the last token that is no padding, which is EOS
        written = tokenizer.chat_template or tokenizer.eos_token
        tokenizer.pad_token = next(token for token in tokenizer.all_special_tokens if token not in written)
    set_seed(seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(world.backbone, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.init.zeros_(model.score.weight)  # no reply is preferred before any was seen
    if judging.top_layers:
        model.base_model.requires_grad_(False)
        model.base_model.layers[-judging.top_layers :].requires_grad_(True)
    rows = tokenize_pairs(
        load_pairs(str(world.part(objective, "judge")), max_rows=world.most)[0],
        tokenizer,
        TokenizeOptions(max_length=384),
    )[0]
    steps = steps or math.ceil(judging.epochs * len(rows) / BATCH)
    started, work = time.perf_counter(), folder / "work"
    trainer = preference_trainer(
        RewardOptions(),
        model,
        GuideTrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=judging.rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.1,
            train_sampling_strategy="random",
            save_steps=SAVE_STEPS,
            save_total_limit=2,  # the last may be torn when the run is killed
            eval_strategy="no",
            disable_tqdm=True,
            bf16=judging.bf16,
            seed=seed,
        ),
        train_dataset=rows,
        tokenizer=tokenizer,
    )
    last = last_whole_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = time.perf_counter() - started
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _judge.cache_clear()  # of an earlier judge in this folder
    report = {
        "pairs": len(rows),
        "steps": steps,
        "batch": BATCH,
        "learning_rate": judging.rate,
        "layers": judging.top_layers or "all",
        "seconds": round(seconds, 1),  # of the last start, where it was resumed
        "resumed": last is not None,
        "held_out": held_out(world, folder),
    }
    write_json(folder / "judge.json", report)
    shutil.rmtree(work, ignore_errors=True)
    return report


def held_out(world: Dialogues, folder: Path) -> dict[str, dict[str, Any]]:
    """How often the chosen reply of a pair of the parts dev and test scores higher, by objective and overall."""
    judge, outcomes, most = _judge(str(folder)), {}, world.most or world.judging.held_out
    for objective in world.mixed:
        pairs = [
            pair for part in ("dev", "test") for pair in load_pairs(str(world.part(objective, part)), max_rows=most)[0]
        ]
        rows = [dict(row) for row in tokenize_pairs(pairs, judge.tokenizer, TokenizeOptions(max_length=384))[0]]
        ids = [ReplyIds(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
        scores = _scores(world, judge, ids)
        both = zip(scores[: len(rows)], scores[len(rows) :], strict=True)
        right = [(a > b) + 0.5 * (a == b) for a, b in both]
        outcomes[objective] = right, [len(row["chosen_ids"]) > len(row["rejected_ids"]) for row in rows]
    if len(outcomes) > 1:
        every = ([each for pair in outcomes.values() for each in pair[i]] for i in (0, 1))
        outcomes = {"overall": tuple(every), **outcomes}
    return {name: accuracy(*pair) for name, pair in outcomes.items()}


def accuracy(right: Sequence[float], longer: Sequence[bool]) -> dict[str, Any]:
    """A share of pairs with its Wilson interval, beside what preferring the longer reply would give."""
    return {
        "pairs": len(right),
        "accuracy": sum(right) / len(right),
        "interval": list(wilson(sum(right), len(right))),
        "by_length": sum(longer) / len(longer),
    }


def judged(world: Dialogues, objective: str, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> list[float]:
    """Score replies as the judge saw replies in training: ended where they ended by themselves.

    After a space where a transcript stands for a template.
    """
    judge = _judge(str(judge_folder(world.folder, objective)))
    space = "" if judge.tokenizer.chat_template else " "
    ids = []
    for prompt, row in zip(prompts, rows, strict=True):
        text = space + row["reply"].strip()
        ids.append(judge.encode(prompt, text if row["finished"] else Cut(text)))
    return _scores(world, judge, ids)


def _scores(world: Dialogues, judge: Classifier, ids: Sequence[ReplyIds]) -> list[float]:
    with torch.autocast(judge.model.device.type, torch.bfloat16, enabled=world.judging.bf16):
        return judge.score_rows(ids, batch_size=ROWS)


@cache
def _judge(folder: str) -> Classifier:
    return Classifier(folder)
