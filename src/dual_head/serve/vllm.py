"""Guides for vLLM: what a folder of guides holds, and the command that starts vLLM's own server with it.

    dual-head serve GUIDES --backend vllm    ->    PYTHON -m vllm.entrypoints.openai.api_server --model BACKBONE ...

vLLM itself is not imported here. The plugin `dual-head-vllm` of the folder integrations/vllm runs inside vLLM and reads
guides through this module, whose imports vLLM's older transformers has too.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.backbone.checkpoint import guide_folders, read_values, read_weights
from dual_head.errors import DualHeadError

if TYPE_CHECKING:
    from torch import Tensor

GUIDES = "DUAL_HEAD_GUIDES"  # the environment variable that names the folder to vLLM's processes
OTHER_PRECISION = "DUAL_HEAD_OTHER_PRECISION"
# Backbones that vLLM has classes of, for which the plugin has others; it takes the rest as transformers runs them.
NATIVE = ("Gemma2", "Gemma3", "Llama", "Mistral", "Qwen2", "Qwen3")
OF_TRANSFORMERS = "Transformers"
LAYERLESS = ("Gemma2", "Gemma3")  # whose classes in vLLM do not give the hidden states of their layers
INSTALL = (
    "Make an environment for it, since its versions are not this library's: python3 -m venv vllm-env, then "
    "vllm-env/bin/pip install 'vllm==0.32.*' dual-head-vllm and vllm-env/bin/pip install --no-deps dual-head, "
    "and give --vllm_python vllm-env/bin/python."
)
# Options of vLLM that say what the guides are of, and are set from the guides.
OURS = ("--model", "--tokenizer", "--served-model-name", "--hf-overrides", "--host", "--port")


@dataclass(frozen=True)
class ServedGuides:
    """The guides of a folder, or of the folders side by side in one, in the order in which they are summed.

    entries: {name: entry in config.json}; alpha: {name: default}; sources: {name: (folder, name there)}; values: the
    config.json that names the backbone, the first one's.
    """

    place: str
    entries: dict[str, dict[str, Any]]
    alpha: dict[str, float]
    sources: dict[str, tuple[str, str]]
    values: Mapping[str, Any] = field(repr=False)

    @property
    def fusion(self) -> str:
        """How guides join the backbone: in logits or in probabilities."""
        return self.values.get("fusion", "logits")

    @property
    def architecture(self) -> str:
        """The class of the plugin that runs them on their backbone."""
        names = self.values["backbone_config"].get("architectures") or [""]
        family = (self.values.get("backbone_fingerprint") or {}).get("architecture", names[0])
        family = family.removesuffix("ForCausalLM")
        native = family in NATIVE and not (family in LAYERLESS and self._reads_layers())
        return f"DualHead{family if native else OF_TRANSFORMERS}ForCausalLM"

    def _reads_layers(self) -> bool:
        return any(guide.hidden_layers for guide in build_all(self.entries).values())

    def tensors(self) -> "dict[str, Tensor]":
        """Every stored tensor as {"name.key": tensor}. Errors: see `read_weights`."""
        files = {folder: read_weights(folder) for folder, _ in self.sources.values()}
        return {
            f"{name}.{key.removeprefix(f'{there}.')}": x
            for name, (folder, there) in self.sources.items()
            for key, x in files[folder].items()
            if key.startswith(f"{there}.")
        }


def read_guides(place: str) -> ServedGuides:
    """Read what is served from a folder of guides, or of guide folders side by side, whose alphas are then 0.

    Errors: no guides there; folders that hold several, or fuse otherwise than the first.
    """
    folders = guide_folders(place)
    if not folders:
        values = read_values(place)
        entries = values.get("guides") or {}
        if not entries:
            raise DualHeadError(f"'{place}' holds no guide. Serve a plain model with vLLM's own command.")
        alpha = {name: (values.get("alpha") or {}).get(name, 1.0) for name in entries}
        return ServedGuides(place, entries, alpha, {name: (place, name) for name in entries}, values)
    all_values = {name: read_values(folder) for name, folder in folders.items()}
    first = next(iter(all_values.values()))
    entries, sources = {}, {}
    for name, values in all_values.items():
        if len(guides := values.get("guides") or {}) != 1:
            raise DualHeadError(f"'{folders[name]}' holds {len(guides)} guides. Side by side, each folder holds one.")
        if values.get("fusion", "logits") != first.get("fusion", "logits"):
            raise DualHeadError(f"'{folders[name]}' does not fuse as the others do. Serve it by itself.")
        ((there, entries[name]),) = guides.items()
        sources[name] = (folders[name], there)
    return ServedGuides(place, entries, dict.fromkeys(entries, 0.0), sources, first)


def build_all(entries: Mapping[str, Mapping[str, Any]]) -> "dict[str, Any]":
    """Build guides without memory for their weights, to ask what they need. Errors: one that vLLM cannot hold."""
    import torch

    from dual_head.backbone.decoder import BackboneShape
    from dual_head.guides import build_guide, guide_class

    guides = {}
    with torch.device("meta"):
        for name, entry in entries.items():
            if guide_class(entry["kind"]).reads_tokens:
                raise _refusal(name, entry, "it runs a model of its own, which vLLM's pages have no place for")
            guide = guides[name] = build_guide(dict(entry), BackboneShape.from_dict(entry["shape"]))
            if guide.reads_base:
                raise _refusal(name, entry, "it reads the backbone's logits at every token")
            if guide.cache_layers != (guide.causal_gate is not None):
                raise _refusal(name, entry, "it keeps more of a sequence than the keys and values of a gate")
    return guides


def _refusal(name: str, entry: Mapping[str, Any], reason: str) -> DualHeadError:
    return DualHeadError(
        f"The guide '{name}' of kind {entry['kind']} cannot be served by vLLM: {reason}. Leave it out ('dual-head "
        "compose' writes a folder of others), or serve without --backend vllm."
    )


# ---- the command -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VllmServer:
    """What vLLM's server is told; None leaves it to vLLM. arguments: of the user, handed on as they are."""

    guides: str
    name: str
    python: str | None = None
    backbone: str | None = None
    tokenizer: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    other_precision: bool = False
    flags: Mapping[str, object] = field(default_factory=dict)
    arguments: Sequence[str] = ()


def find_python(python: str | None) -> str:
    """The interpreter of vLLM's environment. Errors: none there, or one without vLLM or without the plugin."""
    if python is None:
        if importlib.util.find_spec("vllm") is None:
            raise DualHeadError(f"vLLM is not installed here. {INSTALL}")
        python = sys.executable
    probe = (
        "import importlib.util as u, json; print(json.dumps([u.find_spec(n) is not None for n in "
        "('vllm', 'dual_head', 'dual_head_vllm')]))"
    )
    try:
        answer = subprocess.run([python, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise DualHeadError(f"'{python}' is no Python that can be run. {INSTALL}") from error
    installed = json.loads(answer.stdout)
    for package, there in zip(("vllm", "dual-head", "dual-head-vllm"), installed, strict=True):
        if not there:
            raise DualHeadError(f"{package} is not installed for '{python}'. {INSTALL}")
    return python


def vllm_command(server: VllmServer) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM's server, and the environment to start it in.

    Errors: guides that cannot be served; an option of vLLM's that is set here; no backbone that is known.
    """
    for argument in server.arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag in OURS:
            raise DualHeadError(f"{flag} of vLLM follows from the guides and from the options before the --.")
    guides = read_guides(server.guides)
    build_all(guides.entries)
    backbone = server.backbone or guides.values.get("backbone_name_or_path")
    if not backbone:
        raise DualHeadError(f"'{server.guides}' does not say where its backbone is. Say --backbone NAME_OR_FOLDER.")
    folder = guides.sources[next(iter(guides.sources))][0]
    with_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
    tokenizer = server.tokenizer or (folder if with_tokenizer else backbone)
    names = [server.name, f"{server.name}:base", *(f"{server.name}:{name}" for name in guides.entries)]
    place = str(Path(server.guides).resolve()) if Path(server.guides).exists() else server.guides
    overrides = {"architectures": [guides.architecture], "dual_head_guides": place}
    command = [find_python(server.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", backbone, "--tokenizer", tokenizer, "--served-model-name", *names]
    command += ["--hf-overrides", json.dumps(overrides), "--middleware", "dual_head_vllm.middleware.Alpha"]
    command += ["--host", server.host, "--port", str(server.port)]
    for flag, value in server.flags.items():
        if value is not None and value is not False:
            command += [flag] if value is True else [flag, str(value)]
    environment = {**os.environ, GUIDES: place}
    if server.api_key:
        environment["VLLM_API_KEY"] = server.api_key  # not an argument: every user of the machine sees those
    if server.other_precision:
        environment[OTHER_PRECISION] = "1"
    return [*command, *server.arguments], environment
