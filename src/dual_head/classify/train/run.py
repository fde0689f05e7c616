"""One training run of a classifier: examples and a backbone in, a folder with classifier, report and pictures out.

Everything on the way is printed: rows dropped by reason, lengths, parameters, where it resumes. It knows the order of
things; how each is done is elsewhere.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.classify.config import DualHeadReasoningConfig
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions, Tokenized, tokenize_examples
from dual_head.classify.evaluate import metrics
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.train.controls import Controlled, apply_control
from dual_head.classify.train.inputs import lengths_of, load_sets
from dual_head.classify.train.options import ClassifyOptions, identity_of
from dual_head.classify.train.trainer import ClassifierTrainer, ClassifierTrainingArguments, save_classifier
from dual_head.classify.types import Example
from dual_head.data import RowReport
from dual_head.errors import DualHeadError
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.base import Run
from dual_head.train.report import too_few
from dual_head.train.resume import output_lock


class ClassifierRun(Run):
    """Trains one classifier on inputs, labels and rationales."""

    kind = DualHeadReasoningConfig.model_type
    trainer: ClassifierTrainer

    def __init__(self, options: ClassifyOptions, args: ClassifierTrainingArguments):
        reads = (options.model_name_or_path, options.dataset_name)
        super().__init__(options, args, identity_of(options, args), reads)

    def load(self) -> None:
        """Read the rows, spoil them where the run is a control, and build classifier and trainer."""
        options, console = self.options, self.console
        self.tokenizer = tokenizer = load_tokenizer(options.model_name_or_path, options.trust_remote_code)
        sets = load_sets(options, console)
        self.read_from(sets.sources)
        controlled = apply_control(options.control, sets.train, seed=self.args.seed)
        if controlled.note:
            console.print(controlled.note)
        form = replace(options.text_form(), **controlled.form)
        lengths = lengths_of(options)
        set_seed(self.args.seed)
        self.model = model = self._build(controlled, sets.labels)
        writing: dict[str, Any] = {"form": form, "names": sets.labels}
        rows, self.drops = tokenize_examples(
            controlled.examples,
            tokenizer,
            lengths,
            scope=model.config.lm_scope,  # type: ignore[arg-type]
            rationales=model.config.lm_weight > 0,
            **writing,
        )
        console.print(f"training rows\n{self.drops.table()}")
        held_rows, held_drops = _held_out_rows(sets.held_out, tokenizer, lengths, **writing)
        self.held_out = [sets.held_out[row.index] for row in held_rows]
        if held_rows:
            console.print(f"held-out rows\n{held_drops.table()}")
        model.config.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # as Trainer.train does, which may have ended
            setattr(model.config, name, getattr(tokenizer, name))
        model.config.text = {
            "form": form.as_dict(),
            "format": sets.format,
            "columns": options.column_names(),
            "template": options.template,
            "max_input_length": lengths.max_input_length,
            "truncate_inputs": lengths.truncate_inputs,
        }
        self._describe(rows)
        self._require_learnt(rows, explained=any(row.rationale.strip() for row in sets.train))
        self.trainer = ClassifierTrainer(
            model,
            self.args if held_rows else _without_evaluation(self.args),
            train_dataset=rows,
            eval_dataset=held_rows or None,
            tokenizer=tokenizer,
            compute_metrics=lambda outcome: {
                name: figure["mean"] for name, figure in _means(self._figures(outcome.predictions, outcome.label_ids))
            },
        )

    def measure(self) -> None:
        """Classify the held-out rows; each process has a part of them."""
        self.model.eval()
        if self.held_out:
            self.trainer.evaluate_once()

    def write(self) -> None:
        """Write classifier, tokenizer and report."""
        save_classifier(self.model, self.tokenizer, self.output)
        report = self._report()
        self.write_report(report)
        _print(report, self.output, self.console)

    def _build(self, controlled: Controlled, labels: tuple[str, ...]) -> DualHeadReasoningModel:
        """The backbone with a new class head, as options and control say."""
        options, model_options = self.options, self.options.model_options()
        if "lm_weight" in controlled.model:
            model_options.pop("loss_weight_alpha", None)
            model_options = {"cls_weight": 1.0, **model_options}
        return DualHeadReasoningModel.from_backbone(
            options.model_name_or_path,
            labels=list(labels),
            class_weights=_class_weights(options.class_weights, controlled.examples, len(labels)),
            dtype=options.dtype,
            device_map=options.device_map,
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
            **{**model_options, **controlled.model},
        )

    def _describe(self, rows: Sequence[Tokenized]) -> None:
        """Print how many parameters are trained, on how many tokens."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        parameters = sum(p.numel() for p in self.model.parameters())
        lengths = [len(row.learnt) for row in rows]
        learnt = sum(sum(row.learnt) for row in rows)
        self.console.print(f"{trained:,} parameters to train of {parameters:,} ({trained / parameters:.1%}).")
        self.console.print(
            f"{len(rows):,} rows of {statistics.median(lengths):g} tokens (median; {max(lengths)} at most), "
            f"{learnt:,} tokens for the reasoning head."
        )

    def _require_learnt(self, rows: Sequence[Tokenized], *, explained: bool) -> None:
        """Warn where the reasoning head learns the inputs alone. Errors: it learns nothing, and its loss has a weight.

        explained: whether a training row has a rationale.
        """
        config, control = self.model.config, self.options.control
        if not config.lm_weight:
            return
        learns = any(any(row.learnt) for row in rows)
        if explained:
            under = "" if control == "none" else f" under --control {control}"
            reason = f"No token of --lm_scope {config.lm_scope} is left{under}"
            remedy = "Say --lm_scope continuation, raise --max_rationale_length"
        else:
            reason = "No training row has a rationale"
            remedy = "Train on rows with rationales (dual-head classify rationales has a teacher write them)"
        content = "to write the inputs alone" if learns else "nothing"
        problem = (
            f"{reason}: the reasoning head learns {content}. {remedy}, or set --lm_weight 0, the plain classifier."
        )
        if not learns:  # the plain classifier under another name
            raise DualHeadError(problem)
        if not explained and control != "input_lm":
            self.console.print(problem)

    def _figures(self, logits: Any, labels: Any) -> dict[str, Any]:
        """See `metrics.report`, of the held-out rows."""
        groups = [example.group for example in self.held_out]
        groups = groups if any(groups) else None
        return metrics.report(logits, labels, groups=groups, multi_label=self.model.config.multi_label)

    def _report(self) -> dict[str, Any]:
        trainer = self.trainer
        report: dict[str, Any] = {
            "control": self.options.control,
            "data": self.drops.as_dict(),
            "steps": trainer.state.global_step,
            **({} if trainer.best_step is None else {"best_step": trainer.best_step}),
            "seconds": round(self.seconds, 2),
            "log": trainer.state.log_history,
            "held_out": {},
        }
        if self.held_out:
            assert trainer.held_out is not None
            logits, labels = trainer.held_out
            report["held_out"] = self._figures(logits.numpy(), labels.numpy())
            report["majority"] = None if self.model.config.multi_label else _majority(labels)
        return report


def train_classifier(options: ClassifyOptions, args: ClassifierTrainingArguments) -> ClassifierTrainer:
    """Train one classifier and write it with its report; go on where a killed run of the same options stopped."""
    with output_lock(args):
        run = ClassifierRun(options, args)
        run.complete()
    return run.trainer


def _class_weights(option: str | None, train: Sequence[Example], classes: int) -> list[float] | None:
    """The weights in the option; "balanced": N / (K n_k), so that every class weighs the same."""
    if option is None:
        return None
    if option == "balanced":
        counts = Counter(example.label for example in train if example.label is not None)
        if not all(counts[i] for i in range(classes)):
            raise DualHeadError("class_weights=balanced needs rows of every label, and plain labels.")
        return [sum(counts.values()) / (classes * counts[i]) for i in range(classes)]
    try:
        return [float(value) for value in option.split(",")]
    except ValueError as error:
        raise DualHeadError("--class_weights is 'balanced' or numbers separated by commas.") from error


def _held_out_rows(
    examples: Sequence[Example], tokenizer: Any, lengths: ClassifyTokenizeOptions, **writing: Any
) -> tuple[list[Tokenized], RowReport]:
    """The rows that have a label, as ids; writing: as of `tokenize_examples`."""
    if all(example.label is None for example in examples):
        return [], RowReport(rows=len(examples))
    # Cut rather than dropped: a score is over the same rows whatever the lengths.
    lengths = replace(lengths, truncate_inputs="end" if lengths.truncate_inputs == "no" else lengths.truncate_inputs)
    rows, drops = tokenize_examples(examples, tokenizer, lengths, rationales=False, **writing)
    return [row for row in rows if row.label is not None], drops


def _without_evaluation(args: ClassifierTrainingArguments) -> ClassifierTrainingArguments:
    if args.load_best_model_at_end:
        raise DualHeadError(
            "Nothing is held out, so no checkpoint is the best. Leave out --load_best_model_at_end, or give "
            "--eval_dataset_name, --eval_split or a larger --held_out."
        )
    return replace(args, eval_strategy="no", eval_steps=None)


def _majority(labels: torch.Tensor) -> float | None:
    """Accuracy of always giving the label that is most frequent among the held-out rows: of shares, the largest."""
    if not len(labels):
        return None
    classes = labels if labels.dim() == 1 else labels.argmax(-1)
    return classes.bincount().max().item() / len(labels)


def _means(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The metrics among the figures of a report."""
    return [(name, figure) for name, figure in figures.items() if isinstance(figure, dict) and "mean" in figure]


def _print(report: dict[str, Any], output: Path, console: Console) -> None:
    if report["held_out"]:
        best = f" (weights of step {report['best_step']}, the best)" if "best_step" in report else ""
        title = f"held-out rows after {report['steps']} steps{best}, {report['seconds']:.0f} s"
        table = Table(title=title, box=box.SIMPLE)
        for column in ("", "mean", "95% interval"):
            table.add_column(column, justify="left" if not column else "right")
        for name, figure in _means(report["held_out"]):
            low, high = figure["interval"]
            table.add_row(name, f"{figure['mean']:.4f}", f"{low:.4f} to {high:.4f}")
        if report.get("majority") is not None:
            table.add_row("always the most frequent label", f"{report['majority']:.4f}", "")
        console.print(table)
        if note := too_few(report["held_out"]["rows"], "rows"):
            console.print(note)
    console.print(
        f"Classifier written to {output}. Try: dual-head classify predict {output} --input FILE.jsonl", soft_wrap=True
    )
