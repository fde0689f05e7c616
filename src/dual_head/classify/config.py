"""The configuration of a classifier with a reasoning head: backbone, classes, losses, what of it is trained.

It is what config.json of a checkpoint holds. It knows sizes and names, never weights.
"""

from typing import Any, Literal, get_args

from dual_head.config import BackboneConfig
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.reading import reading
from dual_head.options import fit
from dual_head.seed_names import CONSTRUCTOR

LmScope = Literal["everything", "continuation", "rationale", "rationale + answer"]
Tune = Literal["lora", "full", "frozen"]
HeadKind = Literal["linear", "mlp"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
# The paper's targets, by the names that Llama, Mistral and Qwen give them; other architectures: all-linear.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")


class DualHeadReasoningConfig(BackboneConfig):
    """Configuration of `DualHeadReasoningModel`.

    backbone_name_or_path: where to load the backbone from, unless all of it is trained; head: "linear" or a two-layer
    "mlp" of head_width (None: as wide as the backbone) with dropout; class_weights: one for each label (of several a
    row: how much its presence weighs, binary cross-entropy's pos_weight), or None; cls_weight, lm_weight: of the two
    losses; lm_scope: what the reasoning head learns to write, "everything" (the input too, as published),
    "continuation" ("rationale + answer") or "rationale"; tune: what is trained beside the class head, a "lora" (lora:
    PEFT's r, alpha, dropout, targets), the "full" backbone, or nothing ("frozen"); text: how inputs, rationales and
    answers are written, so that what is classified reads as what was trained on.
    """

    model_type = "dual_head_reasoning"

    head: str = "mlp"
    head_width: int | None = None
    dropout: float = 0.1
    class_weights: list | None = None
    cls_weight: float = 1.0
    lm_weight: float = 1.0
    lm_scope: str = "everything"
    tune: str = "lora"
    lora: dict | None = None
    text: dict | None = None

    def __post_init__(self, **kwargs: Any):
        for name, options in (("head", HeadKind), ("lm_scope", LmScope), ("tune", Tune)):
            if (value := getattr(self, name)) not in get_args(options):
                raise DualHeadError(f"Unknown {name} '{value}'.{did_you_mean(str(value), get_args(options))}")
        for name in ("dropout", "cls_weight", "lm_weight", "head_width", "class_weights", "text", "lora"):
            setattr(self, name, fit(getattr(self, name), _TYPES[name], name))
        if not 0 <= self.dropout <= 1:
            raise DualHeadError(f"dropout is a share between 0 and 1, not {self.dropout}.")
        if self.head_width is not None and self.head_width < 1:
            raise DualHeadError(f"head_width is at least 1, not {self.head_width}.")
        if self.cls_weight < 0 or self.lm_weight < 0 or not self.cls_weight + self.lm_weight:
            raise DualHeadError("cls_weight and lm_weight are at least 0, and not both 0.")
        self.lm_scope = scope_of(self.lm_scope)
        self.lora = {"r": 16, "alpha": 32, "dropout": 0.1, "targets": None} | (self.lora or {})
        super().__post_init__(**kwargs)
        if self.problem_type not in (None, *get_args(ProblemType)):
            raise DualHeadError(f"Unknown problem_type.{did_you_mean(str(self.problem_type), get_args(ProblemType))}")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise DualHeadError(f"class_weights has {len(self.class_weights)} entries for {self.num_labels} labels.")

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.problem_type == "multi_label_classification"


_TYPES: dict[str, Any] = DualHeadReasoningConfig.__annotations__


def read_classifier_config(source: str, **hub: Any) -> DualHeadReasoningConfig:
    """Read a classifier's config. Errors: none there, damaged, or of another kind of model."""
    problem, remedy = f"Cannot read a classifier's config in '{source}'", "Train one with 'dual-head classify train'."
    with reading(problem, remedy, source):
        config = DualHeadReasoningConfig.from_pretrained(source, **hub)
    if not isinstance(config, DualHeadReasoningConfig) or config.backbone_config is None:
        raise DualHeadError(f"'{source}' is not a classifier of dual-head. Train one with 'dual-head classify train'.")
    return config


def scope_of(scope: str) -> Any:
    """The one name that a scope is recorded under."""
    return "continuation" if scope == "rationale + answer" else scope


def how_to_build(backbone: Any, options: dict[str, Any]) -> str:
    """Say how to build what the DHRD README's constructor was called for."""
    renamed = {CONSTRUCTOR.get(name, name): value for name, value in options.items()}
    place = renamed.pop("backbone", backbone)
    place = place if isinstance(place, str) else "NAME_OR_FOLDER"
    listed = "".join(f", {name}={value!r}" for name, value in ({"num_labels": 2} | renamed).items())
    return f"A classifier is built on a backbone: DualHeadReasoningModel.from_backbone({place!r}{listed})."
