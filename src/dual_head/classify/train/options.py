"""What a training run of a classifier is told; the same names on the command line, in YAML and here."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dual_head.classify.config import HeadKind, LmScope, ProblemType, Tune, scope_of
from dual_head.classify.data.columns import columns_of, labels_of
from dual_head.classify.train.controls import Control
from dual_head.classify.types import TextForm
from dual_head.errors import DualHeadError
from dual_head.options import Options, option
from dual_head.train.identity import identity_of_options

PLACES = ("model_name_or_path", "dataset_name", "eval_dataset_name")  # perhaps local
PLACEMENT = ("restart", "device_map", "attn_implementation")  # changes where, not what


@dataclass
class ClassifyOptions(Options):
    """Which backbone, which data, which losses."""

    _argument_group_name: ClassVar[str] = "backbone, data and losses"

    model_name_or_path: str = option(None, "Backbone: any decoder, a folder or a name on the hub.")
    dataset_name: str = option(None, "Training data: a file, a folder, or a name on the hub.")
    dataset_format: str = option("auto", "Format of the rows, told from the first ones by default.")
    dataset_split: str = option("train", "Split to train on.")
    data_dir: str | None = option(None, "Subfolder, or configuration of a data set on the hub.")
    eval_dataset_name: str | None = option(None, "Held-out data; without it, a share of the training data.")
    eval_split: str | None = option(None, "Split of the held-out data [validation, or that of its only file].")
    held_out: float = option(
        0.1, "Share of inputs kept for evaluation where there is no held-out data.", least=0, below=1
    )
    columns: str | dict[str, Any] | None = option(
        None, "Which columns are what: input=text,label=class, or the same in JSON."
    )
    explanation: str = option("1", "Which of a row's rationales, from 1, or all: a row for each.")
    template: str | None = option(None, "How an input is written from columns: '{premise} Therefore {hypothesis}?'.")
    labels: str | list[str] | None = option(
        None, "Names of the classes in their order, separated by commas, or a JSON list of them."
    )
    num_labels: int | None = option(None, "How many classes; only checked against the data.")
    max_rows: int | None = option(None, "Read at most so many training rows.", least=1)
    max_eval_rows: int | None = option(None, "Classify at most so many held-out rows.", least=1)
    max_input_length: int | None = option(None, "Longest input in tokens [512, or half of the positions].")
    max_rationale_length: int | None = option(None, "Longest rationale and answer [1024, or what positions are left].")
    truncate_inputs: Literal["no", "start", "end"] = option("no", "Cut long inputs there instead of dropping rows.")
    problem_type: ProblemType = option("single_label_classification", "One label a row, or any number of them.")
    class_weights: str | None = option(
        None,
        "'balanced', or a weight for each class with commas between; of several labels a row, of its presence.",
        commas=True,
    )
    head: HeadKind = option("mlp", "Class head: two layers, or a linear one that can be exported as a plain model.")
    head_width: int | None = option(None, "Width of the mlp's hidden layer [the backbone's].")
    dropout: float = option(0.1, "Dropout in the class head.")
    cls_weight: float = option(1.0, "Weight of the class loss.")
    lm_weight: float = option(1.0, "Weight of the reasoning loss; 0 is the plain pooled classifier.")
    loss_weight_alpha: float | None = option(None, "a: a L_cls + (1 - a) L_lm instead of the two weights.")
    lm_scope: LmScope = option("everything", "What the reasoning head learns: input too, what follows, rationale only.")
    answer: Literal["after", "before", "absent"] = option("after", "Where the answer stands.")
    reason_prefix: str | None = option(None, "What stands before a rationale ['Reasoning: ' on a new line].")
    answer_prefix: str | None = option(None, "What stands before an answer ['Final Answer: ' on a new line].")
    control: Control = option("none", "Train a control instead: rationales left out or spoilt.")
    tune: Tune = option("lora", "What of the backbone is trained.")
    lora_r: int = option(16, "Rank of the LoRA.", least=1)
    lora_alpha: float = option(32, "Its alpha.", above=0)
    lora_dropout: float = option(0.1, "Its dropout.")
    lora_targets: str | None = option(None, "Layers, separated by commas, or all-linear [the paper's].", commas=True)
    dtype: str = option("auto", "dtype of the backbone: auto, float32, bfloat16, float16.")
    device_map: str | None = option(None, "Where transformers places the backbone, as auto.")
    attn_implementation: str | None = option(None, "Attention: sdpa, eager, flash_attention_2.")
    trust_remote_code: bool = option(False, "Run code that comes with the backbone or tokenizer.")
    restart: bool = option(False, "Delete the checkpoints in output_dir instead of resuming from them.")

    def __post_init__(self):
        for name, noun in (("model_name_or_path", "backbone"), ("dataset_name", "training data")):
            if not getattr(self, name):
                raise DualHeadError(f"Say which {noun} with --{name}.")
        super().__post_init__()
        if self.loss_weight_alpha is not None and (self.cls_weight, self.lm_weight) != (1, 1):
            raise DualHeadError(
                "--loss_weight_alpha stands for --cls_weight and --lm_weight both. Leave it out, or the two."
            )
        self.column_names()  # a mistake in them should not wait for data
        self.label_names()
        self.text_form()
        self.lm_scope = scope_of(self.lm_scope)

    def column_names(self) -> dict[str, Any] | None:
        """Which columns are what. Errors: see `columns_of`."""
        return columns_of(self.columns)

    def label_names(self) -> list[str] | None:
        """Names of the classes, where they were given. Errors: see `labels_of`."""
        return labels_of(self.labels)

    def text_form(self) -> TextForm:
        """How rationales and answers are written. Errors: see `TextForm`."""
        prefixes = {name: getattr(self, name) for name in ("reason_prefix", "answer_prefix")}
        return TextForm(answer=self.answer, **{name: prefix for name, prefix in prefixes.items() if prefix is not None})

    def model_options(self) -> dict[str, Any]:
        """What `DualHeadReasoningModel.from_backbone` is told of these, class weights and labels aside."""
        targets = self.lora_targets
        named = targets if targets in (None, "all-linear") else [name.strip() for name in targets.split(",")]
        losses = {"loss_weight_alpha": self.loss_weight_alpha}
        if self.loss_weight_alpha is None:
            losses = {"cls_weight": self.cls_weight, "lm_weight": self.lm_weight}
        return {
            "head": self.head,
            "head_width": self.head_width,
            "dropout": self.dropout,
            "lm_scope": self.lm_scope,
            "tune": self.tune,
            "lora": {"r": self.lora_r, "alpha": self.lora_alpha, "dropout": self.lora_dropout, "targets": named},
            "problem_type": self.problem_type,
            **losses,
        }


def identity_of(options: ClassifyOptions, args: Any) -> dict[str, Any]:
    """Collect what makes a run this run: a resumed one must agree on all of it."""
    return identity_of_options(options, args, places=PLACES, placement=PLACEMENT)
