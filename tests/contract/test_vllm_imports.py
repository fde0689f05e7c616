"""What the vLLM plugin takes from the library runs beside vLLM: without `datasets`, on an older transformers."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import dual_head

PACKAGE = Path(dual_head.__file__).parent
PLUGIN = Path(__file__).parents[2] / "integrations" / "vllm" / "dual_head_vllm"
GUIDES = [f"dual_head.guides.{kind}" for kind in ("hidden", "linear", "multilayer", "reward_head")]
# What vLLM's environment does not have, or has for other ends.
BLOCKED = ("datasets", "accelerate", "pyarrow", "pandas", "peft", "trl", "matplotlib", "sklearn", "prometheus_client")
# Names of transformers that 5.19 has too, as `make test-vllm` shows. Before one is added here, look that 5.19 has it.
KNOWN = {
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "cache_utils.Cache",
    "cache_utils.CacheLayerMixin",
    "cache_utils.DynamicCache",
    "cache_utils.DynamicLayer",
    "cache_utils.DynamicSlidingWindowLayer",
    "cache_utils.LinearAttentionCacheLayerMixin",
    "cache_utils.StaticLayer",
    "cache_utils.get_layer_types_and_kwargs",
    "masking_utils.ALL_MASK_ATTENTION_FUNCTIONS",
    "masking_utils.create_masks_for_generate",
    "utils.hub.cached_file",
}
SCRIPT = """
import importlib, json, sys
sys.modules.update(dict.fromkeys({blocked!r}))  # as if they were not there
for name in {modules!r}:
    importlib.import_module(name)
ours = [name for name in sys.modules if name.startswith("dual_head")]
print(json.dumps([ours, [name for name in sys.modules if name.startswith("transformers.trainer")]]))
"""


def modules_of_plugin() -> list[str]:
    """The library's modules that the plugin's files name."""
    names = set()
    for file in PLUGIN.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dual_head":
                names.add(node.module)
    return sorted(names)


def imported(modules: list[str], blocked: tuple[str, ...] = BLOCKED) -> tuple[list[str], list[str]]:
    """The library's modules that these bring in, and those of transformers' Trainer."""
    script = SCRIPT.format(blocked=blocked, modules=modules)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    ours, trainers = json.loads(process.stdout.splitlines()[-1])
    return ours, trainers


def names_of_transformers(module: str) -> set[str]:
    """What a module of ours takes from transformers at its top, as "submodule.Name"."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return {
        f"{node.module}.{alias.name}".removeprefix("transformers.")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers"
        for alias in node.names
    }


def test_the_modules_of_the_vllm_plugin_import_where_datasets_and_accelerate_are_not():
    modules = modules_of_plugin()
    assert {"dual_head.model.policy", "dual_head.serve.vllm", "dual_head.guides.layers"} <= {*modules}
    ours, trainers = imported([*modules, *GUIDES])
    assert trainers == []
    used = set().union(*map(names_of_transformers, ours))
    assert used <= KNOWN, f"look whether transformers 5.19 has {sorted(used - KNOWN)}"
    assert {"PreTrainedModel", "cache_utils.Cache"} <= used


def test_a_module_that_needs_more_would_be_seen():
    ours, _ = imported(["dual_head.serve.vllm"])
    assert "dual_head.train.trainer" not in ours
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(blocked=BLOCKED, modules=["dual_head.train.trainer"])],
        capture_output=True,
        text=True,
    )
    assert "import of accelerate halted" in process.stderr or "import of datasets halted" in process.stderr


def test_the_command_for_vllm_is_imported_without_torch():
    script = "import sys, dual_head.serve.vllm; print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
