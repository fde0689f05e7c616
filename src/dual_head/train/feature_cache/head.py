"""What of a backbone is outside its decoder, kept in one file, and a causal LM that has that and no decoder.

Bias, soft-capping and scales act as in the whole model, since its own forward is what runs after the decoder.
It knows models, not features.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dual_head.backbone.checkpoint import require_finite, require_same_shapes
from dual_head.backbone.decoder import Decoder, name_base_model
from dual_head.backbone.load import auto_class, load_config
from dual_head.errors import DualHeadError
from dual_head.files.reading import reading
from dual_head.train.feature_cache.store import HEAD_FILE


class _Absent(nn.Module):
    """Stands where a decoder would be, with no weights to load, move or count.

    It has the decoder's factors, which a head may look up there, as Falcon-H1's does.
    """

    def __init__(self, decoder: nn.Module, source: str):
        super().__init__()
        self.source = source
        for name, value in vars(decoder).items():
            if isinstance(value, float):
                setattr(self, name, value)

    def get_input_embeddings(self) -> "_Absent":
        """Return this module: transformers recognises a language model by its embeddings."""
        return self

    def forward(self, input_ids: Any = None, position_ids: Any = None, **_options: Any) -> Any:
        del input_ids, position_ids
        raise DualHeadError(
            f"The decoder was not loaded: '{self.source}' is a feature cache, which holds its hidden states instead. "
            "Leave out --feature_cache (in Python: load_backbone) to run the backbone itself."
        )


def save_head(decoder: Decoder, folder: Path) -> None:
    """Write what is outside the decoder, and the backbone's config. Errors: a head its config does not describe."""
    head = outside(decoder.lm)
    with torch.device("meta"):
        expected = {name: tuple(x.shape) for name, x in outside(_from_config(decoder.config, decoder.lm.dtype)).items()}
    shapes = {name: tuple(x.shape) for name, x in head.items()}
    if shapes != expected:
        wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise DualHeadError(
            f"What comes after the decoder of this backbone is not what its config describes ('{wrong[0]}'), so it "
            "cannot be kept apart. Merge adapters into the backbone first, or train without a feature cache."
        )
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in head.items()}
    save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})
    (folder / HEAD_FILE).chmod(0o644)
    decoder.config.save_pretrained(folder)


def load_head(
    folder: str | Path, *, name_or_path: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build the causal LM of a feature cache with its head and without its decoder, which cannot be run.

    name_or_path: the name of the model, by default the folder.
    """
    file = Path(folder) / HEAD_FILE
    with reading(f"'{folder}' is not a whole feature cache", "Write it with: dual-head cache."):
        config = load_config(str(folder), trust_remote_code=trust_remote_code)
        tensors = load_file(file)
        dtype = next(iter(tensors.values())).dtype
        with torch.device("meta"):
            lm = _from_config(config, dtype, trust_remote_code)
        require_same_shapes(outside(lm), tensors, str(folder))
        for name, x in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = lm.get_submodule(owner)
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(x, requires_grad=False)
            else:
                module._buffers[leaf] = x
    require_finite(tensors, file)
    # Weights on no device could neither be moved nor sent to another process; a tied head now has its own copy.
    lm._modules[lm.base_model_prefix] = _Absent(lm.base_model, str(folder))
    lm.config._name_or_path = name_or_path or str(folder)
    return lm.eval()


def outside(lm: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters and buffers outside the decoder, the lm_head's even where they are tied to the embedding."""
    within = f"{lm.base_model_prefix}."
    tensors = (*lm.named_parameters(remove_duplicate=False), *lm.named_buffers(remove_duplicate=False))
    return {name: x for name, x in tensors if not name.startswith(within)}


def _from_config(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    lm = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    name_base_model(lm)
    return lm
