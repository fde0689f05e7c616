"""Train a guide from Python: rows, pairs, tokens, trainer, and its accuracy on held-out pairs.

    python examples/train.py --steps 60 --output_dir toy-guide

Offline: the backbone is shipped, the pairs come from the demo's small world. examples/steer.py and
examples/trace.py take the output folder as --guides, and train one themselves without it.
"""

import argparse
import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, set_seed

import dual_head
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.world import preference_rows


def train(folder: Path, *, steps: int, rows: int = 1200) -> None:
    """Train a guide on `rows` preferences, and write it with its tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(rows, seed=0)))
    pairs, drops = dual_head.load_pairs(str(file))
    print(drops.table())

    tokenizer = AutoTokenizer.from_pretrained(TOY_BACKBONE)
    options = dual_head.TokenizeOptions(max_length=128)
    sides = dual_head.split_by_prompt(pairs, 0.2)
    train_set, held_out = (dual_head.tokenize_pairs(side, tokenizer, options)[0] for side in sides)

    # At this learning rate the paper's lambda_g = 0.01 lets the gate close before the head has learnt anything.
    chosen = dual_head.method("dual_head").with_options({"preference_on": "policy", "beta_r": 0.5, "lambda_g": 1.0})
    arguments = {"max_steps": steps, "learning_rate": 0.01, "per_device_train_batch_size": 16, "disable_tqdm": True}
    set_seed(0)
    trainer = dual_head.GuideTrainer(
        dual_head.DualHeadModel.from_backbone(TOY_BACKBONE, guide=chosen.guide, tokenizer=tokenizer),
        chosen,
        dual_head.GuideTrainingArguments(str(folder), **arguments, eval_strategy="no", save_strategy="no"),
        train_dataset=train_set,
        eval_dataset=held_out,
        data_collator=dual_head.PairCollator(tokenizer.pad_token_id),
        tokenizer=tokenizer,
    )
    trainer.evaluate()  # D = 0: these are the backbone's own log-probabilities
    before = trainer.held_out["accuracy"].mean()
    trainer.train()
    trainer.evaluate()
    print(f"held-out accuracy: {before:.3f} before, {trainer.held_out['accuracy'].mean():.3f} after {steps} steps")
    trainer.save_model()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output_dir", type=Path, default=Path(tempfile.gettempdir(), "toy-guide"))
    args = parser.parse_args()
    train(args.output_dir, steps=args.steps)
