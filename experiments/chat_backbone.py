"""Make a small chat backbone of texts at hand: tokenizer, pretraining, fine-tuning on chosen replies.

    python experiments/chat_backbone.py --data data --output_dir chat
    python experiments/chat_backbone.py --data data --output_dir strong --hidden_size 256 --layers 8 --tokenizer chat

`data` holds hh_rlhf/*.test.jsonl.gz and text/. Dialogues are split by what the user said first into four parts;
only the part "train" is seen here, the others are for the judge, the search and the tables of evidence.py. The same
command goes on where a killed one stopped. Writes a Hugging Face folder with its card (card.json), and beside it the
pairs of each part, pairs-OBJECTIVE-PART.jsonl.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence_data import documents, transcripts, write_json, write_parts
from evidence_script import parsed
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dual_head import TokenizeOptions, load_pairs, tokenize_pairs
from dual_head.data import Pair
from dual_head.train.resume import last_whole_checkpoint

BLOCK = 256  # tokens of a pretraining row
CONTEXT = 512
SPECIAL = ("<pad>", "<s>", "</s>")
SMALL = {"hidden_size": 32, "layers": 2, "steps": 4, "sft_steps": 2, "vocabulary": 600, "batch": 4}


def main() -> None:
    """Make each part that is not there yet, then write the card."""
    args = _arguments()
    data, output = Path(args.data), Path(args.output_dir)
    if not (output / "parts.json").is_file():
        write_json(output / "parts.json", write_parts(data, output))
    pairs = {part: load_pairs(str(output / f"pairs-overall-{part}.jsonl"))[0] for part in ("train", "dev")}
    tokenizer = _tokenizer(args, data, pairs["train"], output)
    held_out = [tokenizer(text)["input_ids"][:CONTEXT] for text in transcripts(pairs["dev"])[:300]]
    pretrained = _stage(
        output / "pretrained",
        lambda work: _pretrain(args, tokenizer, data, pairs["train"], held_out, work),
    )
    tuned = _stage(
        output / "tuned",
        lambda work: _fine_tune(args, tokenizer, output / "pretrained", pairs, work),
    )
    for file in (output / "tuned").glob("*"):
        if file.name != "done.json":
            shutil.copy2(file, output / file.name)
    tokenizer.save_pretrained(output)
    card = {
        "command": " ".join(["python", "experiments/chat_backbone.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{torch.get_num_threads()} threads, torch {torch.__version__}, bf16 {args.bf16}",
        "vocabulary": len(tokenizer),
        "pairs": json.loads((output / "parts.json").read_text()),
        "pretraining": pretrained,
        "fine_tuning": tuned,
    }
    write_json(output / "card.json", card)
    print(json.dumps(card, indent=1))


def _stage(folder: Path, make: Any) -> dict[str, Any]:
    """What a finished stage says of itself; made first where it is not finished."""
    done = folder / "done.json"
    if not done.is_file():
        work = folder / "work"
        model, report = make(work)
        model.save_pretrained(folder)
        write_json(done, report)
        shutil.rmtree(work, ignore_errors=True)  # the Trainer's checkpoints
    return json.loads(done.read_text())


# ---- tokenizer ------------------------------------------------------------------------------------------


def _tokenizer(args: argparse.Namespace, data: Path, pairs: Sequence[Pair], output: Path) -> PreTrainedTokenizerFast:
    if args.tokenizer:
        return AutoTokenizer.from_pretrained(args.tokenizer)
    if not (output / "tokenizer.json").is_file():
        texts = documents(data, pairs, characters=200_000 if args.small else 12_000_000, seed=args.seed)
        build_tokenizer(texts, args.vocabulary).save_pretrained(output)
    return AutoTokenizer.from_pretrained(output)


def build_tokenizer(texts: Iterable[str], entries: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with "<s>" in front; no chat template, so that conversations are written as transcripts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# ---- training -------------------------------------------------------------------------------------------


def build_model(vocabulary: int, hidden_size: int, layers: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings: at d = 192 a quarter of its parameters is one matrix as it is."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=8 * hidden_size // 3,
            num_hidden_layers=layers,
            num_attention_heads=max(2, hidden_size // 32),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def blocks(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, count: int) -> torch.Tensor:
    """The first `count` blocks of texts written one after the other, [count, BLOCK]."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= count * BLOCK:
            return torch.tensor(ids[: count * BLOCK]).view(count, BLOCK)
    raise ValueError(f"The texts have {len(ids)} tokens, and {count * BLOCK} are wanted.")


def _pretrain(args, tokenizer, data: Path, pairs, held_out, work: Path):
    set_seed(args.seed)
    model = build_model(len(tokenizer), args.hidden_size, args.layers)
    count = args.steps * args.batch
    # No text of these sources has more characters to a token than that.
    texts = documents(data, pairs, characters=count * BLOCK * 8, seed=args.seed)
    rows = blocks(texts, tokenizer, count)
    before = loss_of(model, held_out)
    report = _train(model, [{"input_ids": row, "labels": row} for row in rows], args, work, args.steps, 2e-3)
    stage = {
        **report,
        "parameters": model.num_parameters(),
        "tokens": count * BLOCK,
        "held_out_loss": {"before": before, "after": loss_of(model, held_out)},
    }
    return model, stage


def _fine_tune(args, tokenizer, pretrained: Path, pairs: dict[str, list[Pair]], work: Path):
    set_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(pretrained)
    options = TokenizeOptions(max_length=384)
    rows = {part: _responses(tokenize_pairs(of_part, tokenizer, options)[0]) for part, of_part in pairs.items()}
    before = loss_of(model, rows["dev"])
    report = _train(model, rows["train"], args, work, args.sft_steps, 5e-4, _padded)
    stage = {**report, "rows": len(rows["train"]), "held_out_loss": {"before": before}}
    stage["held_out_loss"]["after"] = loss_of(model, rows["dev"])
    return model, stage


def _responses(rows: Any) -> list[dict[str, list[int]]]:
    """Prompts with their chosen replies, each once; the loss is of the reply only."""
    unique = {(*row["prompt_ids"], -1, *row["chosen_ids"]): row for row in rows}
    return [
        {"input_ids": prompt + chosen, "labels": [-100] * len(prompt) + chosen}
        for prompt, chosen in ((row["prompt_ids"], row["chosen_ids"]) for row in unique.values())
    ]


def _padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _train(model, rows, args, work: Path, steps: int, rate: float, collate: Any = None) -> dict[str, Any]:
    """Train in place, from the last checkpoint in `work` if there is one; what was seen on the way."""
    started = time.perf_counter()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=args.batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 10),
            adam_beta2=0.95,
            weight_decay=0.1,
            bf16=args.bf16,
            use_cpu=not torch.accelerator.is_available(),
            dataloader_pin_memory=False,
            logging_steps=min(50, max(1, steps // 2)),
            save_steps=200,
            save_total_limit=2,  # the last may be torn when the run is killed
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    last = last_whole_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    model.eval()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "steps": steps,
        "batch": args.batch,
        "learning_rate": rate,
        "train_loss": {"first": losses[0], "last": losses[-1]},
        "seconds": round(time.perf_counter() - started, 1),  # of the last start, where it was resumed
        "resumed": last is not None,
    }


@torch.no_grad()
def loss_of(model: Any, rows: Sequence[Any]) -> float:
    """Mean negative log-likelihood in nats per token: of all tokens, or of those that rows of labels name."""
    model.eval()
    named = [row if isinstance(row, dict) else {"input_ids": row, "labels": row} for row in rows]
    named.sort(key=lambda row: len(row["input_ids"]))
    total = tokens = 0.0
    for start in range(0, len(named), 16):
        batch = _padded(named[start : start + 16])
        counted = int((batch["labels"][:, 1:] != -100).sum())
        total, tokens = total + model(**batch).loss.item() * counted, tokens + counted
    return total / tokens if tokens else math.nan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with hh_rlhf and text")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokenizer", help="use that of another backbone, for a sibling of it")
    parser.add_argument("--steps", type=int, default=2000, help=f"of pretraining, each --batch rows of {BLOCK} tokens")
    parser.add_argument("--sft_steps", type=int, default=400, help="of fine-tuning on chosen replies")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="autocast, where the machine is faster so")
    parser.add_argument("--seed", type=int, default=0)
    return parsed(parser, SMALL)


if __name__ == "__main__":
    main()
