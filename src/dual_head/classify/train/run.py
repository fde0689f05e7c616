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
from dual_head.classify.evaluate.metrics import report as measured
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.train.controls import apply_control
from dual_head.classify.train.inputs import lengths_of, load_sets
from dual_head.classify.train.options import ClassifyOptions, identity_of
from dual_head.classify.train.trainer import ClassifierTrainer, ClassifierTrainingArguments, save_classifier
from dual_head.classify.types import Example, TextForm
from dual_head.data import RowReport
from dual_head.errors import DualHeadError
from dual_head.model.pretrained import load_tokenizer
from dual_head.train.base import Run
from dual_head.train.report import too_few
from dual_head.train.resume import held


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
        train, held_out, labels, rows_format, sources = load_sets(options, console)
        self.read_from(sources)
        controlled = apply_control(options.control, train, seed=self.args.seed)
        if controlled.note:
            console.print(controlled.note)
        form = replace(options.text_form(), **controlled.form)
        lengths = lengths_of(options)
        set_seed(self.args.seed)
        self.model = model = _model(options, controlled.examples, labels, controlled.model)
        rows, self.drops = tokenize_examples(
            controlled.examples,
            tokenizer,
            lengths,
            form=form,
            names=labels,
            scope=model.config.lm_scope,  # type: ignore[arg-type]
            rationales=model.config.lm_weight > 0,
        )
        held_rows, held_drops = _held_out_rows(held_out, tokenizer, lengths, form, labels)
        self.held_out = [held_out[row.index] for row in held_rows]
        console.print(f"training rows\n{self.drops.table()}")
        if held_rows:
            console.print(f"held-out rows\n{held_drops.table()}")
        model.config.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # as Trainer.train does, which may have ended
            setattr(model.config, name, getattr(tokenizer, name))
        model.config.text = {
            "form": form.as_dict(),
            "format": rows_format,
            "columns": options.column_names(),
            "template": options.template,
            "max_input_length": lengths.max_input_length,
            "truncate_inputs": lengths.truncate_inputs,
        }
        _describe(model, rows, console)
        _require_learnt(rows, train, options.control, model, console)
        self.trainer = ClassifierTrainer(
            model,
            self.args if held_rows else _without_evaluation(self.args),
            train_dataset=rows,
            eval_dataset=held_rows or None,
            tokenizer=tokenizer,
            compute_metrics=lambda outcome: _metrics(outcome, self.held_out, model),
        )

    def load_finished(self, checkpoint: Path) -> None:
        """See `Run`."""
        self.trainer.load_finished(checkpoint)

    def measure(self) -> None:
        """Classify the held-out rows; each process has a part of them."""
        self.model.eval()
        if self.held_out:
            self.trainer.evaluate_once()

    def write(self) -> None:
        """Write classifier, tokenizer and report."""
        save_classifier(self.model, self.tokenizer, self.output)
        report = _report(self.trainer, self.options, self.drops, self.held_out, self.seconds)
        self.write_report(report)
        _print(report, self.output, self.console)


def train_classifier(options: ClassifyOptions, args: ClassifierTrainingArguments) -> ClassifierTrainer:
    """Train one classifier and write it with its report; go on where a killed run of the same options stopped."""
    with held(args):
        run = ClassifierRun(options, args)
        run.complete()
    return run.trainer


def _model(
    options: ClassifyOptions, train: Sequence[Example], labels: tuple[str, ...], changed: dict[str, Any]
) -> DualHeadReasoningModel:
    options_of_model = options.model_options()
    if "lm_weight" in changed:
        options_of_model.pop("loss_weight_alpha", None)
        options_of_model = {"cls_weight": 1.0, **options_of_model}
    return DualHeadReasoningModel.from_backbone(
        options.model_name_or_path,
        labels=list(labels),
        class_weights=_class_weights(options, train, labels),
        dtype=options.dtype,
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
        **{**options_of_model, **changed},
    )


def _class_weights(options: ClassifyOptions, train: Sequence[Example], labels: tuple[str, ...]) -> list[float] | None:
    """Weights as said; "balanced": N / (K n_k), so that every class weighs the same."""
    if options.class_weights is None:
        return None
    if options.class_weights == "balanced":
        counts = Counter(example.label for example in train if example.label is not None)
        if not all(counts[i] for i in range(len(labels))):
            raise DualHeadError("class_weights=balanced needs rows of every label, and plain labels.")
        return [sum(counts.values()) / (len(labels) * counts[i]) for i in range(len(labels))]
    try:
        return [float(value) for value in options.class_weights.split(",")]
    except ValueError as error:
        raise DualHeadError("--class_weights is 'balanced' or numbers separated by commas.") from error


def _held_out_rows(
    examples: Sequence[Example],
    tokenizer: Any,
    lengths: ClassifyTokenizeOptions,
    form: TextForm,
    labels: tuple[str, ...],
) -> tuple[list[Tokenized], RowReport]:
    labelled = [example.label is not None for example in examples]
    if not any(labelled):
        return [], RowReport(rows=len(examples))
    # Cut rather than dropped: a score is over the same rows whatever the lengths.
    whole = replace(lengths, truncate_inputs="end" if lengths.truncate_inputs == "no" else lengths.truncate_inputs)
    rows, drops = tokenize_examples(examples, tokenizer, whole, form=form, names=labels, rationales=False)
    return [row for row in rows if row.label is not None], drops


def _metrics(outcome: Any, examples: Sequence[Example], model: DualHeadReasoningModel) -> dict[str, float]:
    figures = _measured(outcome.predictions, outcome.label_ids, examples, model)
    return {name: value["mean"] for name, value in figures.items() if isinstance(value, dict) and "mean" in value}


def _measured(logits: Any, labels: Any, examples: Sequence[Example], model: DualHeadReasoningModel) -> dict[str, Any]:
    groups = [example.group for example in examples] if any(example.group for example in examples) else None
    return measured(logits, labels, groups=groups, multi_label=model.config.multi_label)


def _describe(model: DualHeadReasoningModel, rows: Sequence[Tokenized], console: Console) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    lengths = [len(row.learnt) for row in rows]
    learnt = sum(sum(row.learnt) for row in rows)
    console.print(f"{trained:,} parameters to train of {whole:,} ({trained / whole:.1%}).")
    console.print(
        f"{len(rows):,} rows of {statistics.median(lengths):g} tokens (median; {max(lengths)} at most), "
        f"{learnt:,} tokens for the reasoning head."
    )


def _require_learnt(
    rows: Sequence[Tokenized], train: Sequence[Example], control: str, model: DualHeadReasoningModel, console: Console
) -> None:
    """Say where the reasoning head learns the inputs alone. Errors: it learns nothing, and its loss has a weight."""
    if not model.config.lm_weight:
        return
    learns = any(any(row.learnt) for row in rows)
    explained = any(row.rationale.strip() for row in train)
    if explained:
        under = "" if control == "none" else f" under --control {control}"
        why = f"No token of --lm_scope {model.config.lm_scope} is left{under}"
        remedy = "Say --lm_scope continuation, raise --max_rationale_length"
    else:
        why = "No training row has a rationale"
        remedy = "Train on rows with rationales (dual-head classify rationales has a teacher write them)"
    content = "to write the inputs alone" if learns else "nothing"
    problem = f"{why}: the reasoning head learns {content}. {remedy}, or set --lm_weight 0, the plain classifier."
    if not learns:  # the plain classifier, taken for another
        raise DualHeadError(problem)
    if not explained and control != "input_lm":
        console.print(problem)


def _without_evaluation(args: ClassifierTrainingArguments) -> ClassifierTrainingArguments:
    if args.load_best_model_at_end:
        raise DualHeadError(
            "Nothing is held out, so no checkpoint is the best. Leave out --load_best_model_at_end, or give "
            "--eval_dataset_name, --eval_split or a larger --held_out."
        )
    return replace(args, eval_strategy="no")


def _report(
    trainer: ClassifierTrainer, options: ClassifyOptions, drops: RowReport, held_out: Sequence[Example], seconds: float
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "control": options.control,
        "data": {"rows": drops.rows, "kept": drops.kept, "dropped": dict(drops.reasons), "notes": dict(drops.notes)},
        "steps": trainer.state.global_step,
        **({} if trainer.best_step is None else {"best_step": trainer.best_step}),
        "seconds": round(seconds, 2),
        "log": trainer.state.log_history,
        "held_out": {},
    }
    if held_out:
        assert trainer.held_out is not None
        logits, labels = trainer.held_out
        report["held_out"] = _measured(logits.numpy(), labels.numpy(), held_out, trainer.classifier)
        report["majority"] = None if trainer.classifier.config.multi_label else _majority(labels)
    return report


def _majority(labels: torch.Tensor) -> float | None:
    """Accuracy of always giving the label that is most frequent among the held-out rows: of shares, the largest."""
    if not len(labels):
        return None
    classes = labels if labels.dim() == 1 else labels.argmax(-1)
    return classes.bincount().max().item() / len(labels)


def _print(report: dict[str, Any], output: Path, console: Console) -> None:
    if report["held_out"]:
        best = f" (weights of step {report['best_step']}, the best)" if "best_step" in report else ""
        title = f"held-out rows after {report['steps']} steps{best}, {report['seconds']:.0f} s"
        table = Table(title=title, box=box.SIMPLE)
        for column in ("", "mean", "95% interval"):
            table.add_column(column, justify="left" if not column else "right")
        for name, value in report["held_out"].items():
            if isinstance(value, dict) and "mean" in value:
                low, high = value["interval"]
                table.add_row(name, f"{value['mean']:.4f}", f"{low:.4f} to {high:.4f}")
        if report.get("majority") is not None:
            table.add_row("always the most frequent label", f"{report['majority']:.4f}", "")
        console.print(table)
        if note := too_few(report["held_out"]["rows"], "rows"):
            console.print(note)
    console.print(
        f"Classifier written to {output}. Try: dual-head classify predict {output} --input FILE.jsonl", soft_wrap=True
    )
