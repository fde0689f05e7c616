"""Options and loading of guides, the same for every command that runs them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.backbone.checkpoint import CONFIG_NAME, find_file, guide_folders
from dual_head.errors import DualHeadError
from dual_head.options import Options, option
from dual_head.options.fields import DTYPE_HELP, OTHER_PRECISION_HELP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dual_head.model.aligned import AlignedModel


@dataclass(kw_only=True)
class GuidesOptions(Options):
    """A folder of guides. Errors: a place without guides."""

    guides: str = option(help="folder of guides (the output_dir of training), or a name on the hub", positional=True)

    def __post_init__(self) -> None:
        if not self.folders():
            find_file(self.guides, CONFIG_NAME)
        super().__post_init__()

    def folders(self) -> dict[str, str]:
        """{name: folder} where the place holds folders of guides side by side, for a command that takes them."""
        return {}


@dataclass(kw_only=True)
class LoadingOptions(GuidesOptions):
    """The guides, the backbone, and how they are loaded. Errors: a place without guides."""

    guides: str = option(
        help="folder of guides (the output_dir of training), of such folders side by side, or a name on the hub",
        positional=True,
    )
    backbone: str | None = option(
        None, "another backbone: a copy of the one trained on, or one to move the guides to", heading="loading"
    )
    vocab_map: bool = option(
        False, "move to a backbone of another tokenizer: tokens are matched by their strings, others get delta 0"
    )
    other_precision: bool = option(False, OTHER_PRECISION_HELP)
    tokenizer: str | None = option(None, "tokenizer, if not the one saved with the guides or beside --backbone")
    dtype: str = option("auto", DTYPE_HELP)
    device_map: str | None = option(None, "where transformers places the backbone, e.g. auto")
    attn_implementation: str | None = option(None, "attention of the backbone: sdpa, eager, flash_attention_2")
    trust_remote_code: bool = option(False, "run code that comes with the backbone")

    def folders(self) -> dict[str, str]:
        """See `GuidesOptions`."""
        return guide_folders(self.guides)


@dataclass(kw_only=True)
class DeviceOptions(LoadingOptions):
    """Loading for a command that runs on one device."""

    device: str | None = option(None, "cpu, cuda, cuda:1, mps; default: where it loads", heading="loading")


def load_guided(args: LoadingOptions) -> "tuple[AlignedModel, PreTrainedTokenizerBase]":
    """Load the guides on their backbone, or moved to --backbone, and the tokenizer that goes with it."""
    # Imported late: a mistyped prompt file should not wait for torch.
    from dual_head.model.aligned import AlignedModel
    from dual_head.model.collection import load_collection
    from dual_head.model.pretrained import load_tokenizer

    trust = args.trust_remote_code
    tokenizer = load_tokenizer(args.tokenizer, trust) if args.tokenizer else None
    names = ("backbone", "other_precision", "dtype", "device_map", "attn_implementation", "trust_remote_code")
    options: dict[str, Any] = {"tokenizer": tokenizer, **{name: getattr(args, name) for name in names}}
    if folders := args.folders():
        if args.vocab_map:
            raise DualHeadError("Guides side by side stay on their backbone. With --vocab_map, name one of them.")
        model = load_collection(folders, **options)
        tokenizer = model.own_tokenizer()
    else:
        switch = args.backbone is not None and not args.other_precision
        model = AlignedModel.from_pretrained(args.guides, switch=switch, vocab_map=args.vocab_map, **options)
        tokenizer = tokenizer or load_tokenizer(_tokenizer_folder(args.guides, model), trust)
    to_device(model, args)
    return model, tokenizer


def to_device(model: "AlignedModel", args: LoadingOptions) -> None:
    """Move a model to --device, if given. Errors: a device that does not exist."""
    if device := getattr(args, "device", None):
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise DualHeadError(f"Cannot use --device {device}: {str(error).splitlines()[0]}") from error


def _tokenizer_folder(guides: str, model: "AlignedModel") -> str:
    """The folder of the guides if they bring a tokenizer that still fits, else that of the backbone."""
    remapped = any(entry.get("vocab_map") for entry in (model.config.guides or {}).values())
    fits = (Path(guides) / "tokenizer_config.json").is_file() and not remapped
    return guides if fits or not Path(guides).is_dir() else str(model.backbone.config._name_or_path)
