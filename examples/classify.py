"""Train a classifier on rationales in the demonstration's world, and classify requests without any.

python examples/classify.py [--steps 60]
"""

import argparse
import tempfile

from transformers import AutoTokenizer

from dual_head.classify import Example, TextForm
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions, tokenize_examples
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.predict import Predictor
from dual_head.classify.train.trainer import ClassifierTrainer, ClassifierTrainingArguments, save_classifier
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.world import sample_requests

LABELS = ("harmless", "harmful")


def main() -> None:
    """Train, save, load, classify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    tokenizer = AutoTokenizer.from_pretrained(TOY_BACKBONE)
    examples = [
        Example(request.prompt, int(request.harmful), rationale=f"they ask about {request.topic} .")
        for request in sample_requests(400, seed=0)
    ]
    form = TextForm()
    lengths = ClassifyTokenizeOptions(max_input_length=48, max_rationale_length=48)
    rows, dropped = tokenize_examples(examples, tokenizer, lengths, form=form, names=LABELS)
    print(dropped.table())

    model = DualHeadReasoningModel.from_backbone(TOY_BACKBONE, labels=list(LABELS), head="linear")
    model.config.text = {"form": form.as_dict(), "template": None, "max_input_length": 48, "truncate_inputs": "end"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ClassifierTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            eval_strategy="no",
            disable_tqdm=True,
        )
        ClassifierTrainer(model, arguments, train_dataset=rows, tokenizer=tokenizer).train()
        save_classifier(model.eval(), tokenizer, folder)
        requests = sample_requests(6, seed=1, split="test")
        predictions = Predictor.load(folder).predict(request.prompt for request in requests)
        for request, prediction in zip(requests, predictions, strict=True):
            print(f"{prediction.label:<9} {max(prediction.probabilities.values()):.2f}  {request.prompt}")


if __name__ == "__main__":
    main()
