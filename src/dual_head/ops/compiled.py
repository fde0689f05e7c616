"""Loops over the vocabulary compiled by torch: when that pays, where they are kept, and what serves where it fails.

It knows functions of tensors, and not what they compute.
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

LARGE_VOCABULARY = 8192  # below, loops are short and are left as they are
# Entries of all logits of a run. Compiled, each takes a thread 35 ns less (docs/results/speed.md); compiling takes
# half a minute.
PAYS = 2 * 10**9
CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable
VARIANTS = 64  # loops that a process may compile: one for each method, side of a pair, and what is looked at
# Products and sums in one instruction; the compiler's default keeps them apart.
COMPILER: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
LEAST_EXPONENT = -87.0  # e^x is a normal number of fp32


def worth_compiling(vocab_size: int, tokens: float = math.inf) -> bool:
    """Whether compiled loops save more time than compiling takes, for a run that scores so many tokens."""
    return vocab_size >= LARGE_VOCABULARY and vocab_size * tokens >= PAYS


def compiled_folder() -> Path:
    """Where compiled loops are kept across runs: TORCHINDUCTOR_CACHE_DIR, or else a folder in the user's cache."""
    folder = os.environ.get(CACHE_FOLDER, default_cache_dir())
    if folder != default_cache_dir():  # torch sets the variable to its own default, which a restart may empty
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dual-head", "kernels")


def use_compiled_folder() -> None:
    """Have torch keep compiled loops in `compiled_folder`; its own folder serves where that cannot be made."""
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[CACHE_FOLDER] = str(folder)
    except OSError:
        pass


def compiled_or(loop: Callable, eager: Callable) -> Callable:
    """`loop` compiled; `eager` from the first time that the compiler fails, for want of a C++ compiler or of Triton."""
    compiled = torch.compile(loop, dynamic=True, options=COMPILER)
    failed = False

    def run(*args: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                with torch._dynamo.config.patch(recompile_limit=VARIANTS):
                    return compiled(*args)
            except TorchDynamoException as error:
                failed = True
                warnings.warn(
                    f"torch.compile cannot be used here ({str(error).splitlines()[0]}); training goes on without it, "
                    "slower. Install a C++ compiler (on GPUs: Triton) for speed.",
                    stacklevel=2,
                )
        return eager(*args)

    return run


def fast_exp(x: Tensor) -> Tensor:
    """e^x to 1e-7 of itself for x <= 87, from 2^n e^f with f a polynomial of x - n ln 2, |f| < 0.35 (Cephes' expf).

    A processor's compiled loops call a library for torch.exp, entry by entry of a register; this stays in the loop.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.exp()
    x = x.clamp_min(LEAST_EXPONENT)
    n = (x * 1.44269504088896341).round()
    f = x - n * 0.693359375 + n * 2.12194440e-4  # ln 2 in two parts, the first of which n multiplies without rounding
    p = 1.9875691500e-4
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * f + coefficient
    return (p * (f * f) + f + 1.0) * ((n.to(torch.int32) + 127) << 23).view(torch.float32)  # 2^n by its exponent bits
