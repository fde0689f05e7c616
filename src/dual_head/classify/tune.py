"""The backbone of a classifier: whether it is the right one, and what of it is trained. It knows no head."""

from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from dual_head.backbone.decoder import Decoder
from dual_head.backbone.fingerprint import Fingerprint
from dual_head.classify.config import LORA_TARGETS, DualHeadReasoningConfig
from dual_head.errors import DualHeadError, require
from dual_head.guides.second_model import injecting, left_out, require_layers


def tuned(lm: PreTrainedModel, config: DualHeadReasoningConfig) -> PreTrainedModel:
    """The model (changed in place) with what is trained of it: all, an adapter, or nothing.

    Errors: an adapter of a layer that the model does not have.
    """
    if config.tune == "full":
        return lm.float().requires_grad_(True)  # steps of an optimizer are smaller than bf16 can hold
    lm.requires_grad_(False)
    if config.tune == "lora":
        lora = config.lora or {}
        peft = require("peft", "peft")
        targets = lora["targets"] or _targets(lm)
        require_layers(lm, targets, "--lora_targets")
        adapter = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=list(targets) if not isinstance(targets, str) else targets,
            exclude_modules=left_out(lm),
        )
        with injecting(lm):
            return peft.get_peft_model(lm, adapter)
    return lm


def _targets(lm: PreTrainedModel) -> list[str] | str:
    """The paper's layers where the model has them all by name; every linear layer of the decoder otherwise."""
    names = {name.rsplit(".", 1)[-1] for name, _ in lm.named_modules()}
    return list(LORA_TARGETS) if names.issuperset(LORA_TARGETS) else "all-linear"


def fold_adapters(lm: PreTrainedModel, *, copy: bool = False) -> None:
    """W <- W + s B A in place, and the adapters gone; copy: into new weights, where others share the old ones."""
    if not is_peft_available():
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(lm.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=copy)
            lm.set_submodule(name, layer.get_base_layer())


def require_same_backbone(config: DualHeadReasoningConfig, lm: PreTrainedModel, source: str) -> None:
    """Refuse another backbone than the classifier in `source` was trained on."""
    if config.backbone_fingerprint is None:
        return
    differences = Fingerprint.from_dict(config.backbone_fingerprint).differences(Decoder(lm).fingerprint())
    if differences:
        raise DualHeadError(
            f"The classifier in '{source}' was trained on another backbone: {'; '.join(differences)}. Load it with "
            f"the one it was trained on ({config.backbone_name_or_path})."
        )
