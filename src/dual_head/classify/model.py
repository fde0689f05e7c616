"""A decoder that classifies, and learns from rationales that it never writes.

    l = head(h_t)                                 t the last token of the input, before any rationale
    L = w_cls L_cls(l, y) + w_lm L_lm             L_lm: next-token cross-entropy of the model's own lm_head

    input_ids   i i i i | r r r | a a .        one row while training: input, rationale, answer, padding
    pool_at           ^                        h_t, which no rationale can reach
    lm_at             ^   ^ ^ ^   ^            what predicts r r r a a, for lm_scope "continuation"

Source: Dual-Head Reasoning Distillation (Xu et al. 2025). After training a row is its input, and no lm_head runs. It
knows tensors, and neither data sets nor text.
"""

import copy
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.generic import ModelOutput

from dual_head.backbone.checkpoint import COPY, load_strictly, read_weights
from dual_head.backbone.decoder import Decoder
from dual_head.backbone.load import context_length, load_backbone
from dual_head.classify.config import DualHeadReasoningConfig, how_to_build, read_classifier_config
from dual_head.classify.head import IGNORED, ClassHead, class_loss, last_tokens, weights_of
from dual_head.classify.tune import require_same_backbone, tuned
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.reading import reading
from dual_head.model.pretrained import absolute, hub_options, load_options, recorded_backbone, save_checkpoint
from dual_head.ops.compiled import worth_compiling
from dual_head.ops.token_scores import Head, Tokens, auto_budget, reduce_tokens

# What `from_backbone` hands on to the config.
OPTIONS = ("head", "head_width", "dropout", "class_weights", "cls_weight", "lm_weight", "lm_scope")
OPTIONS += ("tune", "lora", "problem_type", "text", "tokenizer_fingerprint")

__all__ = ["DualHeadReasoningModel", "DualHeadReasoningOutput"]


@dataclass
class DualHeadReasoningOutput(ModelOutput):
    """The result of a forward: logits [B, K]; with labels, loss and its two parts, each a mean [].

    hidden_states: on request those of every layer [B, T, d], the embedding's first.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_loss: Tensor | None = None
    lm_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class DualHeadReasoningModel(PreTrainedModel):
    """A backbone with a class head and, while training, its own lm_head as a reasoning head."""

    config_class = DualHeadReasoningConfig
    config: DualHeadReasoningConfig
    class_weights: Tensor | None  # pyright: ignore[reportIncompatibleVariableOverride]
    auto_classes: ClassVar = {  # transformers' class, and ours that it finds
        "AutoConfig": "dual_head.classify.config.DualHeadReasoningConfig",
        "AutoModelForSequenceClassification": "dual_head.classify.model.DualHeadReasoningModel",
    }
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self, config: DualHeadReasoningConfig | None = None, lm: PreTrainedModel | None = None, **options: Any
    ):
        if not isinstance(config, DualHeadReasoningConfig) or options:
            raise DualHeadError(how_to_build(config, options))
        config = copy.deepcopy(config)
        backbone: Any = AutoModelForCausalLM.from_config(config.backbone_config) if lm is None else lm
        config._attn_implementation = backbone.config._attn_implementation
        super().__init__(config)
        weights = weights_of(config.class_weights)
        self.decoder = Decoder(tuned(backbone, config))
        self.num_labels = len(config.id2label or ())
        self.positions = context_length(self.decoder.config)
        self.reasoning_tokens = math.inf  # that a run will score: whether its loops are worth compiling
        device, size = self.decoder.output_device, self.decoder.shape.hidden_size
        head = {"kind": config.head, "width": config.head_width, "dropout": config.dropout}
        self.head = ClassHead(size, self.num_labels, **head).to(device)
        self.register_buffer("class_weights", None if weights is None else weights.to(device), persistent=False)
        self.eval()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        num_labels: int | None = None,
        *,
        labels: list[str] | None = None,
        loss_weight_alpha: float | None = None,
        **options: Any,
    ) -> "DualHeadReasoningModel":
        """Put a fresh class head on any decoder, given by name, folder or as a loaded model (changed in place).

        num_labels, or labels: their names; loss_weight_alpha a: the seed's a L_cls + (1 - a) L_lm; options: those of
        `DualHeadReasoningConfig`, such as head, lm_scope, tune, lora, class_weights, problem_type, and those of
        `load_backbone` (dtype, device_map, attn_implementation, trust_remote_code, ...). Errors: unknown options (the
        nearest is offered), no or fewer than two labels.
        """
        load = load_options(options)
        for name in options:
            if name not in OPTIONS:
                choices = (*OPTIONS, *inspect.signature(load_backbone).parameters)
                raise DualHeadError(f"Unknown option '{name}' of from_backbone.{did_you_mean(name, choices)}")
        if loss_weight_alpha is not None:
            if not 0 <= loss_weight_alpha <= 1 or {"cls_weight", "lm_weight"} & options.keys():
                raise DualHeadError("loss_weight_alpha lies in [0, 1] and stands for cls_weight and lm_weight both.")
            options |= {"cls_weight": loss_weight_alpha, "lm_weight": 1 - loss_weight_alpha}
        names = labels or [str(i) for i in range(num_labels or 0)]
        fewest = 1 if options.get("problem_type") == "multi_label_classification" else 2
        if len(names) < fewest or (num_labels is not None and len(names) != num_labels):
            raise DualHeadError("Say how many classes there are, two at least: num_labels=2, or labels=['no', 'yes'].")
        plain = Decoder(backbone if isinstance(backbone, nn.Module) else load_backbone(str(backbone), **load))
        config = DualHeadReasoningConfig(
            backbone_config=copy.deepcopy(plain.config),
            backbone_name_or_path=absolute(plain.config._name_or_path),
            backbone_fingerprint=plain.fingerprint().as_dict(),
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            **options,
        )
        return cls(config, plain.lm)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pool_at: Tensor | None = None,
        labels: Tensor | None = None,
        lm_at: Tensor | None = None,
        lm_labels: Tensor | None = None,
        totals: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DualHeadReasoningOutput | tuple[Any, ...]:
        """Score input_ids [B, T]; with labels, the loss too.

        attention_mask [B, T]; pool_at [B]: index of the last token of each input, the last that is not masked where
        not given; labels: [B] with -100 for none, [B, K] shares (soft labels) or of zeros and ones (multi-label);
        lm_at [n]: positions among the B T that predict lm_labels [n], the tokens of the reasoning head's text;
        totals [2]: what the two sums are divided by, those of a whole optimizer step where this is a part of one
        (`loss_totals`), of this batch where not given; output_hidden_states, return_dict: as transformers has them,
        by the config where not given; token_type_ids: what tokenizers may give, and no decoder has a use for.
        Errors: more tokens than the backbone has positions, labels of a shape that does not fit.
        """
        del token_type_ids
        if self.positions is not None and input_ids.shape[1] > self.positions:
            raise DualHeadError(
                f"There are rows of {input_ids.shape[1]} tokens, padding included, and the backbone has "
                f"{self.positions} positions. Cut them: tokenizer(..., truncation=True, max_length={self.positions})."
            )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        every = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output, _ = self.decoder(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **({"options": {"output_hidden_states": True}} if every else {}),
        )
        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        at = last_tokens(input_ids, attention_mask) if pool_at is None else pool_at
        logits = self.head(hidden[rows, at.to(hidden.device)])
        losses = (None, None, None)
        if labels is not None:
            losses = self._losses(logits, hidden, labels, lm_at, lm_labels, totals)
        loss, cls_loss, lm_loss = losses
        outputs = DualHeadReasoningOutput(loss, logits, cls_loss, lm_loss, output.hidden_states if every else None)
        as_object = self.config.return_dict if return_dict is None else return_dict
        return outputs if as_object else outputs.to_tuple()

    def _losses(
        self,
        logits: Tensor,
        hidden: Tensor,
        labels: Tensor,
        lm_at: Tensor | None,
        lm_labels: Tensor | None,
        totals: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both losses, each its sum over what `totals` says, and before them their weighted sum."""
        config = self.config
        totals = self.loss_totals(labels, lm_labels) if totals is None else totals
        totals = totals.to(logits).clamp_min(1e-12)
        cls_loss = class_loss(logits, labels, self.class_weights, multi_label=config.multi_label) / totals[0]
        loss = config.cls_weight * cls_loss
        if not config.lm_weight or lm_at is None or lm_labels is None or not len(lm_labels):
            return loss, cls_loss, None
        lm_loss = -self._logps(hidden, lm_at, lm_labels).sum() / totals[1]
        return loss + config.lm_weight * lm_loss, cls_loss, lm_loss

    def loss_totals(self, labels: Tensor, lm_labels: Tensor | None) -> Tensor:
        """What the losses of these rows are averaged over: [labelled rows (weighted, as torch does), tokens]."""
        if labels.dim() == 1:
            labelled = labels != IGNORED
            weights = self.class_weights
            rows = labelled.sum() if weights is None else weights.to(labels.device)[labels[labelled]].sum()
        else:
            rows = (labels[:, 0] != IGNORED).sum()
        tokens = 0 if lm_labels is None else lm_labels.numel()
        return torch.stack([rows.float(), torch.tensor(float(tokens), device=labels.device)])

    def _logps(self, hidden: Tensor, at: Tensor, labels: Tensor) -> Tensor:
        """log p of each token [n] under the lm_head, at those positions and no others."""
        shape = self.decoder.shape
        head = Head(
            products=lambda h, _, __: {"z": self.decoder.logits(h)},
            combine=lambda products, _: {"policy": products["z"].float()},
            compiled=worth_compiling(shape.vocab_size, self.reasoning_tokens),
        )
        tokens = Tokens(hidden.flatten(0, 1)[at], {}, labels, torch.zeros_like(labels))
        budget = auto_budget(shape.vocab_size, shape.hidden_size)
        return reduce_tokens(tokens, head, ("policy_logps",), budget=budget)["policy_logps"]

    # ---- on disk -------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the class head and whatever of the backbone is trained."""
        trained = {name: p for name, p in self.decoder.lm.named_parameters() if p.requires_grad}
        if self.config.tune == "full":
            trained |= dict(self.decoder.lm.named_buffers())
        head = {f"head.{name}": x for name, x in self.head.state_dict().items()}
        saved = set(self.decoder.lm.state_dict())
        return head | {f"decoder.{name}": x for name, x in trained.items() if name in saved}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: str | Path | PreTrainedModel | None = None,
        config: DualHeadReasoningConfig | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a classifier: its heads, its adapters, and the backbone they were trained on.

        backbone: another place of the same one; config: instead of the one there; revision: of the classifier;
        options: those of `load_backbone` for the backbone, and the hub's for the classifier. Errors: no, corrupt or
        mismatching files; another backbone; an unknown option.
        """
        source, load = str(pretrained_model_name_or_path), load_options(options)
        hub = hub_options(options, cls.from_pretrained, load_backbone)
        if config is None:
            config = read_classifier_config(source, revision=revision or "main", **hub)
        lm: Any = backbone
        if config.tune == "full":
            if load.get("device_map") is not None:
                raise DualHeadError(
                    f"The whole backbone of '{source}' was trained, and such a classifier is loaded onto one device. "
                    "Leave device_map out, and say which with .to(device) or --device."
                )
            building = {name: load[name] for name in ("attn_implementation", "trust_remote_code") if name in load}
            with reading(f"Cannot build the classifier of '{source}' from its config.json", COPY):
                lm = AutoModelForCausalLM.from_config(config.backbone_config, **building)
        elif not isinstance(backbone, nn.Module):
            lm = load_backbone(str(backbone or recorded_backbone(config, source)), **load)
        if config.tune != "full":
            require_same_backbone(config, lm, source)
        with reading(f"Cannot build the classifier of '{source}' from its config.json", COPY):
            model = cls(config, lm)
        load_strictly(model.stored(), read_weights(source, revision=revision, **hub), source)
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: Any = None, push_to_hub: bool = False, **hub: Any
    ) -> None:
        """Write head, adapters (or all of a fully trained backbone) and config, whole or not at all.

        state_dict and the hub's options are transformers' protocol; the tensors written are our own. Errors: an
        unknown option.
        """
        del state_dict
        save_checkpoint(self, save_directory, push_to_hub=push_to_hub, **hub)

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.decoder.lm.get_input_embeddings()


AutoConfig.register(DualHeadReasoningConfig.model_type, DualHeadReasoningConfig)
AutoModelForSequenceClassification.register(DualHeadReasoningConfig, DualHeadReasoningModel)
