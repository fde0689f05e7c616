"""`dual-head serve [GUIDES]`: answer OpenAI's clients over HTTP, each request at a strength of its own.

GUIDES is a folder of guides, one of such folders side by side, or a plain model, which is served with no guide. Without
it, the published guides are served where their chat model is on this machine ('dual-head demo --real' fetches it). Else
the demonstration's two guides are served: from demo-out/both, or trained there first, in some minutes.

With --backend vllm, vLLM's own server is started with the guides in it, from the environment of --vllm_python. Options
behind -- are vLLM's: dual-head serve out/both --backend vllm -- --tensor-parallel-size 2
"""

import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dual_head.backbone.checkpoint import CONFIG_NAME, MODEL_TYPE, find_file, guide_folders
from dual_head.cli.loading import DeviceOptions, load_guided, to_device
from dual_head.console.terminal import note
from dual_head.demo import PUBLISHED_GUIDES, TOY_BACKBONE
from dual_head.demo.chat_model import find_chat_model
from dual_head.demo.options import DemoOptions
from dual_head.errors import DualHeadError
from dual_head.files.places import exclusive
from dual_head.files.reading import read_json
from dual_head.options import option
from dual_head.options.flags import OptionParser
from dual_head.serve.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dual_head.model.aligned import AlignedModel

DEMO = Path("demo-out")
YOURS = "To serve a model of yours: dual-head serve FOLDER_OR_HUB_NAME."


@dataclass(kw_only=True)
class ServeOptions(ServerSettings, EngineSettings, DeviceOptions):
    """What to serve, and how. Errors: there is no model at that place."""

    guides: str = option(
        None, "folder of guides or of a plain model, or a name on the hub [guides that are there]", positional=True
    )
    backend: Literal["transformers", "vllm"] = option(
        "transformers", "what generates: this process, or vLLM in an environment of its own", heading="backend"
    )
    vllm_python: str | None = option(None, "interpreter of vLLM's environment [this one]", metavar="PATH")
    untrained: bool = field(default=False, init=False)  # the demonstration's guides are not there yet

    def __post_init__(self) -> None:
        if not self.guides and not self._take_published():
            self.untrained = not (DEMO / "both" / CONFIG_NAME).is_file()
            self.guides = str(TOY_BACKBONE if self.untrained else DEMO / "both")
            if not self.untrained:
                note(f"serving the demonstration's guides of {self.guides}. {YOURS}")
        super().__post_init__()

    def _take_published(self) -> bool:
        """Choose the published guides, if they and their chat model are there."""
        model = find_chat_model() if guide_folders(PUBLISHED_GUIDES) else None
        if model is None:
            return False
        self.guides = str(PUBLISHED_GUIDES)
        if self.backbone is None:
            self.backbone, self.other_precision = model.place, model.other_precision or self.other_precision
        note(f"serving the published guides on {self.backbone}: nothing acts until a strength is asked for. {YOURS}")
        return True


build_parser = partial(
    OptionParser, ServeOptions, command="serve", description=__doc__, usage="[GUIDES] [options] [-- VLLM_OPTIONS]"
)


def run(arguments: Sequence[str]) -> int:
    """Parse, take the port, load and serve."""
    arguments, behind = _split(arguments)
    (options,) = build_parser().read(arguments)
    if options.backend == "vllm":
        return _start_vllm(options, behind)
    for name, value in (("--vllm_python", options.vllm_python), ("--", behind)):
        if value:
            raise DualHeadError(f"{name} goes with --backend vllm. Add that, or leave {name} out.")
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.serve.server import listen, require_server, serve

    require_server()
    with listen(options) as listener:  # before the model is loaded, which may take minutes
        if options.untrained:
            _train_guides()
            options.guides = str(DEMO / "both")
        model, tokenizer = _load(options)
        serve(model, tokenizer, _name(options), options, options, listener)
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first -- and what stands behind it."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


# What vLLM calls the same. Options that are neither here nor in `_start_vllm` are this process's own.
VLLM_FLAGS = {
    "context_length": "--max-model-len",
    "page_size": "--block-size",
    "num_blocks": "--num-gpu-blocks-override",
    "max_batch_tokens": "--max-num-batched-tokens",
    "max_rows": "--max-num-seqs",
    "memory_share": "--gpu-memory-utilization",
    "max_queue": "--max-num-queued-reqs",
    "trust_remote_code": "--trust-remote-code",
}
VLLM_TOO = ("guides", "backbone", "tokenizer", "other_precision", "dtype", "host", "port", "api_key")
VLLM_TOO += ("served_model_name", "allow_origin", "drain", "backend", "vllm_python")


def _start_vllm(options: ServeOptions, behind: Sequence[str]) -> int:
    """Become vLLM's server. Errors: options that mean nothing to it; see `vllm_command`."""
    from dual_head.serve.vllm import VllmServer, vllm_command

    values = {f.name: getattr(options, f.name) for f in fields(options) if f.init}
    defaults = {f.name: f.default for f in fields(options)}
    for name, value in values.items():
        if name not in (*VLLM_FLAGS, *VLLM_TOO) and value != defaults[name]:
            raise DualHeadError(f"--{name} means nothing to vLLM. Leave it out, or leave out --backend vllm.")
    if options.untrained:
        raise DualHeadError("There are no guides here to serve. Give a folder of them, as 'dual-head train' writes.")
    changed = {name: value for name, value in values.items() if name in VLLM_FLAGS and value != defaults[name]}
    flags: dict[str, object] = {VLLM_FLAGS[name]: value for name, value in changed.items()}
    if options.dtype not in ("auto", "stored"):  # which are one to vLLM
        flags["--dtype"] = options.dtype
    if options.allow_origin:
        flags["--allowed-origins"] = json.dumps(options.allow_origin)
    flags["--shutdown-timeout"] = math.ceil(options.drain)
    taken = ("guides", "backbone", "tokenizer", "other_precision", "host", "port", "api_key")
    server = VllmServer(
        name=_name(options),
        python=options.vllm_python,
        flags=flags,
        arguments=behind,
        **{name: values[name] for name in taken},
    )
    command, environment = vllm_command(server)
    note(f"starting {shlex.join(command)}")
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def _train_guides() -> None:
    from dual_head.demo.demonstration import two_guides

    state = f"{DEMO} is half made" if DEMO.is_dir() else f"no {DEMO}/both here"
    note(f"{state}: the demonstration's two guides are trained first, in some minutes. {YOURS}")
    with exclusive(str(DEMO)):
        two_guides(DemoOptions(output_dir=str(DEMO)))


def _load(options: ServeOptions) -> "tuple[AlignedModel, PreTrainedTokenizerBase]":
    """The guides on their backbone, or a plain model without any."""
    remedy = "Give a folder that save_pretrained wrote."
    if options.folders() or read_json(find_file(options.guides, CONFIG_NAME), remedy).get("model_type") == MODEL_TYPE:
        return load_guided(options)
    if options.backbone or options.vocab_map:
        raise DualHeadError(f"'{options.guides}' is a plain model, which has no other --backbone. Leave it out.")
    from dual_head.model.aligned import AlignedModel
    from dual_head.model.pretrained import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer or options.guides, options.trust_remote_code)
    names = ("dtype", "device_map", "attn_implementation", "trust_remote_code")
    load = {name: getattr(options, name) for name in names}
    model = AlignedModel.from_backbone(options.guides, {}, tokenizer=tokenizer, **load)
    to_device(model, options)
    return model, tokenizer


def _name(options: ServeOptions) -> str:
    """The name of the model in requests."""
    return options.served_model_name or Path(options.guides).resolve().name
