"""`dual-head merge GUIDES`: fold linear guides into the lm_head of a plain checkpoint, or write them as its LoRA.

A LoRA of the lm_head is small and needs the backbone beside it: PEFT loads it, and servers that take such adapters.
Steering vectors become a control vector instead, a GGUF that repeng and llama.cpp read.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.cli.loading import LoadingOptions, load_guided
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError, require
from dual_head.files.places import MERGE_FILE, MODEL_FILES, atomic_folder, exclusive, require_empty
from dual_head.options import option
from dual_head.options.fields import DTYPE_HELP
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha

if TYPE_CHECKING:
    from torch import Tensor

    from dual_head.export.folder import Exported
    from dual_head.model.alpha import Alpha

ROWS, TOKENS = 2, 16  # random input on which the written and the unmerged model are compared
TOLERANCE = 1e-5  # of the largest logit, in fp32
ROUNDINGS = 16  # of the largest logit, in a shorter format


@dataclass(kw_only=True)
class MergeOptions(LoadingOptions):
    """What to merge, at which strength, and where it is written."""

    output_dir: str = option(help="folder for the merged checkpoint")
    alpha: str | None = option(None, "strength: a number, or name=number,...; default: what the guides' config says")
    lora: bool = option(False, "write a LoRA of the lm_head for PEFT, not a checkpoint; guides of low rank")
    control_vector: bool = option(False, "write steering vectors as a GGUF for repeng and llama.cpp, not a checkpoint")
    dequantize: bool = option(False, "write the weights of a GGUF backbone as floats, several times its size")
    overwrite: bool = option(False, "replace the model in a folder that is not empty")
    # The checkpoint is written in the dtype that was read.
    dtype: str = option("stored", DTYPE_HELP, heading="loading")


build_parser = partial(OptionParser, MergeOptions, command="merge", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and merge into a folder that is held."""
    (args,) = build_parser().read(arguments)
    alpha = parse_alpha(args.alpha)
    if args.lora and args.control_vector:
        raise DualHeadError("--lora and --control_vector are two forms of what is written. Give one of them.")
    with exclusive(args.output_dir):
        return (_control_vector if args.control_vector else _merge)(args, alpha, Path(args.output_dir))


def _control_vector(args: MergeOptions, alpha: "Alpha", output: Path) -> int:
    """Write steering vectors as a GGUF, and read them again."""
    require("gguf", "gguf")
    require_empty(output, record=MERGE_FILE, overwrite=args.overwrite, reads=(args.guides, args.backbone))
    # Imported late: a mistyped alpha should not wait for torch.
    from dual_head.export.control_vector import (
        FILE,
        control_vector_identity,
        control_vectors,
        read_control_vector,
        write_control_vector,
    )

    model, _ = load_guided(args)
    vectors, identity = control_vectors(model, alpha=alpha), control_vector_identity(model, alpha)
    if not require_empty(output, record=MERGE_FILE, identity=identity, overwrite=args.overwrite):
        with atomic_folder(output, replaces=MODEL_FILES if args.overwrite else ()) as staging:
            written = read_control_vector(write_control_vector(model, staging, alpha=alpha))
            if {i: v.tolist() for i, v in written.items()} != {i: v.tolist() for i, v in vectors.items()}:
                raise DualHeadError("The GGUF does not hold the vectors that were written. Nothing was kept.")
    console = Terminal(soft_wrap=True)
    for layer, vector in vectors.items():
        console.print(f"layer {layer:<3} length {vector.norm().item():.3g}")
    console.print(f"written  {output / FILE}")
    console.print(f"load it  llama-cli --model MODEL.gguf --control-vector {output / FILE}")
    return 0


def _merge(args: MergeOptions, alpha: "Alpha", output: Path) -> int:
    """Load, merge, write, and check what was written."""
    # Imported late: a mistyped alpha should not wait for torch.
    import torch

    from dual_head.backbone.load import auto_class, context_length, is_gguf
    from dual_head.export.folder import already_merged, write_merged
    from dual_head.export.lora import LORA, write_lora

    if args.lora:
        require("peft", "peft")
    require_empty(output, record=MERGE_FILE, overwrite=args.overwrite, reads=(args.guides, args.backbone))
    model, tokenizer = load_guided(args)
    model.require_same_tokenizer(tokenizer)
    length = min(TOKENS, context_length(model.backbone.config) or TOKENS)
    ids = torch.randint(len(tokenizer), (ROWS, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        unmerged = model(ids.to(model.device), alpha=alpha).logits.float().cpu()
    if not args.lora and not args.dequantize and is_gguf(model.backbone.config._name_or_path):
        place = model.backbone.config._name_or_path
        raise DualHeadError(
            f"'{place}' was dequantised as it was read, and a merged checkpoint would hold {model.dtype}. "
            "Add --dequantize to write them, or --lora for an adapter of the lm_head."
        )
    loader = auto_class(model.backbone.config).__name__
    options = {"alpha": alpha, "source": args.guides}
    backbone = args.backbone or model.config.backbone_name_or_path
    loading = {"device_map": args.device_map, "trust_remote_code": args.trust_remote_code}
    loading["backbone"] = backbone if args.lora else None
    form = LORA if args.lora else None
    exported = already_merged(model, output, overwrite=args.overwrite, form=form, **options)
    if exported is not None:
        del model  # two models may not fit in memory
        result = check(output, ids, unmerged, **loading)
    else:
        with atomic_folder(output, replaces=MODEL_FILES if args.overwrite else ()) as staging:
            exported = (write_lora if args.lora else write_merged)(model, tokenizer, staging, **options)
            del model
            result = check(staging, ids, unmerged, **loading)
    console = Terminal(soft_wrap=True)
    for line in (*_lines(exported, output), result):
        console.print(line)
    plain = f"{loader}.from_pretrained"
    loads = f'PeftModel.from_pretrained({plain}("{backbone}"), "{output}")' if args.lora else f'{plain}("{output}")'
    console.print(f"load it  {loads}")
    return 0


def check(
    folder: Path,
    ids: "Tensor",
    unmerged: "Tensor",
    *,
    device_map: str | None,
    trust_remote_code: bool,
    backbone: str | None = None,
) -> str:
    """Load a written checkpoint, or an adapter of `backbone`, and compare its logits [B, T, V] at `ids`.

    Says how much they differ. Errors: a difference larger than rounding explains.
    """
    import torch

    from dual_head.backbone.load import load_backbone

    place = backbone or str(folder)
    lm: Any = load_backbone(place, dtype="stored", device_map=device_map, trust_remote_code=trust_remote_code)
    if backbone:
        with warnings.catch_warnings():  # of PEFT about transformers, and about a tied lm_head, which stays as it is
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", ".*tie_word_embeddings", UserWarning)
            lm = require("peft", "peft").PeftModel.from_pretrained(lm, str(folder))
    with torch.no_grad():
        merged = lm(ids.to(lm.device)).logits.float().cpu()
    largest = unmerged.abs().max().item()
    difference = (merged - unmerged).abs().max().item()
    allowed = max(1.0, largest) * max(TOLERANCE, ROUNDINGS * torch.finfo(lm.dtype).eps)
    if not difference <= allowed:
        raise DualHeadError(
            f"The merged checkpoint differs from the guided model: logits differ by {difference:.2g}, and rounding to "
            f"{lm.dtype} explains {allowed:.2g}. Nothing was written; please report this with the name of the backbone."
        )
    return (
        f"checked  logits of the written checkpoint differ by at most {difference:.2g} from the guided model's "
        f"(the largest is {largest:.3g}, allowed {allowed:.2g})"
    )


def _lines(exported: "Exported", output: Path) -> list[str]:
    parts = [f"{p.name}: {p.kind}, alpha {p.alpha:g}, rank {p.rank or 'full'}" for p in exported.folded]
    lines = [f"folded   {part}" for part in parts or ["nothing: no guide acts at this alpha"]]
    if cost := exported.untied_bytes:
        lines.append(f"untied   the lm_head no longer shares the input embeddings, which costs {cost:,} bytes")
    return [*lines, f"written  {output} ({exported.bytes:,} bytes)"]
