"""Merge a linear guide into the lm_head, and load the result with transformers alone.

    python examples/merge.py --alpha 1.0 --output_dir merged

Offline. The same on the command line is `dual-head merge GUIDES --alpha 1.0 --output_dir merged`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.world import preference_rows
from dual_head.export.folder import export
from dual_head.train.run import RunOptions, train_guide


def merge(folder: Path, output: Path, *, steps: int, alpha: float, prompt: str) -> None:
    """Train an IAV guide, write the merged checkpoint, and compare it with the guided model."""
    file, guides = folder / "pairs.jsonl", folder / "guides"
    file.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(800, seed=0)))
    arguments = {"max_steps": steps, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "disable_tqdm": True}
    train_guide(
        method("iav").with_options({"beta": 0.5, "rank": 16}),
        RunOptions(model_name_or_path=str(TOY_BACKBONE), dataset_name=str(file), held_out=0.0),
        GuideTrainingArguments(str(guides), **arguments, save_strategy="no"),
    )

    model, tokenizer = AlignedModel.from_pretrained(guides), AutoTokenizer.from_pretrained(guides)
    written = export(model, tokenizer, output, alpha=alpha)
    for part in written.folded:
        print(f"folded {part.name}: {part.kind} of rank {part.rank}, alpha {part.alpha:g}, {written.bytes:,} bytes")

    plain = AutoModelForCausalLM.from_pretrained(output)  # a checkpoint like any other
    inputs = AutoTokenizer.from_pretrained(output)(prompt, return_tensors="pt")
    with torch.no_grad():
        difference = plain(**inputs).logits - model(**inputs, alpha=alpha).logits
    print(f"{type(plain).__name__}: logits differ by at most {difference.abs().max():.1e}")
    new = plain.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(tokenizer.decode(new, skip_special_tokens=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, help="where to keep the merged checkpoint")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--prompt", default="user : how do i bake bread ? assistant :")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = args.output_dir or Path(folder, "merged")
        merge(Path(folder), output, steps=args.steps, alpha=args.alpha, prompt=args.prompt)
