"""The format that a backbone's numbers are loaded in: one by name, the one they are stored in, or the processor's.

It knows what processors multiply and what configs say, and loads nothing.
"""

import logging
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedConfig

from dual_head.errors import DualHeadError, did_you_mean

FLOATS = ("float32", "bfloat16", "float16")
DTYPES = ("auto", "stored", *FLOATS)
# Instructions for products of a short format, as `torch.cpu.get_capabilities` names them. Without one, every number is
# widened before it is multiplied, which took a forward over 128 tokens 3.9 times as long as fp32.
PRODUCTS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
logger = logging.getLogger(__name__)


def require_dtype(name: str) -> None:
    """Refuse an unknown name, with the nearest one."""
    if name not in DTYPES:
        raise DualHeadError(f"Unknown dtype '{name}'.{did_you_mean(name, DTYPES)}")


def multiplies(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies this format as fast as fp32 or faster."""
    capabilities = torch.cpu.get_capabilities()
    return dtype not in PRODUCTS or (
        torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in PRODUCTS[dtype])
    )


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is floats in memory: quantised ones are subclasses, and some call themselves floats."""
    return type(weight) in (torch.nn.Parameter, torch.Tensor) and weight.is_floating_point()


def stored_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype that a model is stored in; None where its config does not say."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def automatic_dtype(config: PreTrainedConfig, device_map: Any = None) -> torch.dtype | None:
    """The dtype that "auto" loads a model in: that of its files, or fp32 where a processor would be slow in that.

    None where its config does not say. A model goes to the accelerator where there is one, unless device_map is "cpu".
    """
    dtype = stored_dtype(config)
    on_processor = device_map == "cpu" or not torch.accelerator.is_available()
    quantised = getattr(config, "quantization_config", None) is not None
    if dtype is None or quantised or not on_processor or multiplies(dtype):
        return dtype
    return torch.float32


@cache
def announce(name: str, stored: torch.dtype) -> None:
    """Warn once for each model that is not loaded in the dtype of its files."""
    kind = str(stored).removeprefix("torch.")
    logger.warning(
        "'%s' is stored in %s, which this processor has no instruction to multiply: it is loaded in float32, in which "
        "a prompt is read several times as fast, in twice the memory. --dtype %s (in Python dtype='stored') keeps it.",
        name,
        kind,
        kind,
    )
