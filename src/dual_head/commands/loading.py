"""How every command that runs guides finds them: the same options, loaded the same way."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dual_head.commands.help import DTYPE_HELP
from dual_head.commands.paths import add_guides
from dual_head.errors import DualHeadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dual_head.model.aligned import AlignedModel


def add_loading(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """Add the folder of guides and the options that say where the rest is."""
    add_guides(parser)
    load = parser.add_argument_group("loading")
    load.add_argument("--backbone", help="another backbone: a copy of the one trained on, or one to move the guides to")
    load.add_argument(
        "--vocab_map",
        action="store_true",
        help="move to a backbone of another tokenizer: tokens are matched by their strings, others get delta 0",
    )
    load.add_argument("--tokenizer", help="tokenizer, if not the one saved with the guides or beside --backbone")
    load.add_argument("--dtype", default="auto", help=DTYPE_HELP)
    if device:
        load.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: where it loads")
    load.add_argument("--device_map", help="as transformers has it, e.g. auto")
    load.add_argument("--attn_implementation", help="attention of the backbone: sdpa, eager, flash_attention_2")
    load.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the backbone")


def load_guided(args: argparse.Namespace) -> "tuple[AlignedModel, PreTrainedTokenizerBase]":
    """Load the guides on their backbone, or moved to --backbone, and the tokenizer that goes with it."""
    # Imported late: a mistyped prompt file should not wait for torch.
    from dual_head.model.aligned import AlignedModel
    from dual_head.model.pretrained import load_tokenizer

    trust = args.trust_remote_code
    given = load_tokenizer(args.tokenizer, trust) if args.tokenizer else None
    model = AlignedModel.from_pretrained(
        args.guides,
        backbone=args.backbone,
        switch=args.backbone is not None,
        vocab_map=args.vocab_map,
        tokenizer=given,
        dtype=args.dtype,
        device_map=args.device_map,
        attn_implementation=args.attn_implementation,
        trust_remote_code=trust,
    )
    if getattr(args, "device", None):
        try:
            model.to(args.device)
        except (RuntimeError, AssertionError) as error:
            raise DualHeadError(f"Cannot use --device {args.device}: {str(error).splitlines()[0]}") from error
    return model, given or load_tokenizer(_tokenizer_home(args.guides, model), trust)


def _tokenizer_home(guides: str, model: "AlignedModel") -> str:
    """Prefer the tokenizer saved beside the guides; guides saved by hand, or moved, may have none of their own."""
    saved = (Path(guides) / "tokenizer_config.json").is_file()
    moved = any(entry.get("vocab_map") for entry in (model.config.guides or {}).values())
    return guides if (saved and not moved) or not Path(guides).is_dir() else str(model.backbone.config._name_or_path)
