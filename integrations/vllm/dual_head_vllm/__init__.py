"""Guides of dual-head in vLLM: a plugin that every process of vLLM loads, and that is idle until guides are named.

    from dual_head_vllm import engine_options
    llm = vllm.LLM(**engine_options("out/both"), max_model_len=4096)
    llm.generate(prompts, SamplingParams(extra_args={"alpha": {"helpful": 0.8}}))

Nothing here imports torch or vLLM: `register` runs in each of vLLM's processes, most of which have no model.
"""

import os
from pathlib import Path
from typing import Any

FIRST, BEYOND = (0, 32), (0, 33)  # the versions of vLLM that were tested: what the plugin builds on is not stable


def register() -> None:
    """Tell vLLM of the classes that run guides; vLLM calls this. Errors: a version of vLLM that was not tested."""
    from vllm import ModelRegistry

    from dual_head.serve.vllm import GUIDES, NATIVE, OF_TRANSFORMERS

    if os.environ.get(GUIDES):  # plain models run with any version
        require_tested_vllm()
    known = ModelRegistry.get_supported_archs()
    for family in (*NATIVE, OF_TRANSFORMERS):
        name = f"DualHead{family}ForCausalLM"
        if name not in known:
            ModelRegistry.register_model(name, f"dual_head_vllm.models:{name}")


def require_tested_vllm() -> None:
    """Refuse a version of vLLM that was not tested."""
    from vllm import __version__

    from dual_head.errors import DualHeadError

    version = tuple(int(part) for part in __version__.split(".")[:2] if part.isdigit())
    if not FIRST <= version < BEYOND:
        first, beyond = (".".join(map(str, x)) for x in (FIRST, BEYOND))
        raise DualHeadError(
            f"dual-head-vllm was tested with vLLM >={first},<{beyond}, and this is {__version__}. Install a tested "
            f"one with: pip install 'vllm>={first},<{beyond}'"
        )


def engine_options(guides: str | Path, backbone: str | None = None, **options: Any) -> dict[str, Any]:
    """Arguments of `vllm.LLM` or `vllm.EngineArgs` that serve a folder of guides; options: vLLM's own.

    backbone: where it is, if not where the guides say. Sets DUAL_HEAD_GUIDES, from which vLLM's processes know the
    guides' names. Errors: no guides there, kinds that vLLM cannot hold.
    """
    from dual_head.errors import DualHeadError
    from dual_head.serve.vllm import GUIDES, build_all, read_guides

    place = str(Path(guides).resolve()) if Path(guides).exists() else str(guides)
    served = read_guides(place)
    build_all(served.entries)
    model = backbone or served.values.get("backbone_name_or_path")
    if model is None:
        raise DualHeadError(f"'{guides}' does not say where its backbone is. Give backbone=NAME_OR_FOLDER.")
    os.environ[GUIDES] = place
    overrides = {
        **options.pop("hf_overrides", {}),
        "architectures": [served.architecture],
        "dual_head_guides": place,
    }
    return {"model": model, "hf_overrides": overrides, **options}
