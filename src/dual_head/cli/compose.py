"""`dual-head compose NAME=SOURCE ...`: put several guides, or models as guides, into one folder.

A source is a folder of guides (NAME=FOLDER, or NAME=FOLDER:GUIDE where it holds several), a causal LM or a PEFT
adapter (a tuned model: delta = its logits less the backbone's), two causal LMs (EXPERT-minus-ANTIEXPERT: proxy
tuning, DExperts), or a sequence classifier with one label (a reward model: ARGS).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_head.backbone.checkpoint import COPY, MODEL_TYPE, require_kind
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.places import atomic_folder, exclusive, require_place
from dual_head.files.reading import read_json
from dual_head.options import Options, option
from dual_head.options.fields import DTYPE_HELP, OTHER_PRECISION_HELP
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha

if TYPE_CHECKING:
    from dual_head.guides import GuideConfig

MINUS = "-minus-"
COMPOSE_FILE = "compose.json"  # the sources, beside the guides


@dataclass(kw_only=True)
class ComposeOptions(Options):
    """Which guides, on which backbone, and where they are written."""

    sources: list[str] = option(help="a guide's name and its source", positional=True, metavar="NAME=SOURCE")
    output_dir: str = option(help="folder for all the guides together")
    alpha: str | None = option(None, "default strengths: a number, or name=number,...")
    model_name_or_path: str | None = option(None, "backbone; default: the one the first guides were trained on")
    tokenizer_name: str | None = option(None, "tokenizer, if it is not beside the backbone")
    other_precision: bool = option(False, OTHER_PRECISION_HELP)
    dtype: str = option("auto", DTYPE_HELP)
    trust_remote_code: bool = option(False, "run code that comes with the backbone")


build_parser = partial(OptionParser, ComposeOptions, command="compose", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and compose into a folder that is held."""
    (args,) = build_parser().read(arguments)
    with exclusive(args.output_dir):
        return _compose(args)


def _compose(args: ComposeOptions) -> int:
    """Attach each guide, write all."""
    sources = dict(_pair(text) for text in args.sources)
    if len(sources) < len(args.sources):
        raise DualHeadError("Two guides have the same name. Give each its own: NAME=SOURCE.")
    alpha = parse_alpha(args.alpha)
    strengths: dict[str, Any] = alpha if isinstance(alpha, dict) else dict.fromkeys(sources, alpha)
    for name in strengths:
        if name not in sources:
            raise DualHeadError(f"--alpha names an unknown guide '{name}'.{did_you_mean(name, sources)}")
    output, folders = Path(args.output_dir), [_folder(part) for x in sources.values() for part in x.split(MINUS)]
    require_place(output, record=COMPOSE_FILE, reads=(args.model_name_or_path, *folders))
    require_kind(output, MODEL_TYPE)
    kinds = {source: _kind(source) for source in sources.values()}
    # Imported late: a missing folder should be refused without loading torch.
    from dual_head.model.aligned import AlignedModel
    from dual_head.model.pretrained import load_tokenizer, read_config

    first = next((source for source, kind in kinds.items() if kind == "guides"), None)
    backbone = args.model_name_or_path or (first and read_config(_folder(first)).backbone_name_or_path)
    if not backbone:
        raise DualHeadError("Name the backbone that the guides steer with --model_name_or_path.")
    fusion = read_config(_folder(first)).fusion if first else "logits"
    tokenizer = load_tokenizer(args.tokenizer_name or backbone, args.trust_remote_code)
    names = ("other_precision", "dtype", "trust_remote_code")
    loading = {"tokenizer": tokenizer, **{name: getattr(args, name) for name in names}}
    model = AlignedModel.from_backbone(backbone, {}, fusion=fusion, **loading)
    for name, source in sources.items():
        config = _config(source)
        if config is not None:
            _require_same_tokens(source, tokenizer)
        folder, _, guide = source.partition(":")
        model.attach(name, config or folder, source_name=guide or None, alpha=strengths.get(name))
    with atomic_folder(output) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / COMPOSE_FILE).write_text(json.dumps({"guides": sources, "backbone": backbone}, indent=2))
    console = Terminal(soft_wrap=True)
    console.print(f"{len(sources)} guides written to {args.output_dir}: {', '.join(sources)}.")
    text = ",".join(f"{name}={strength:g}" for name, strength in (model.config.alpha or {}).items())
    console.print(f"Try: dual-head generate {args.output_dir} --prompt '...' --alpha {text}")
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, separator, source = text.partition("=")
    if not separator or not source:
        raise DualHeadError(f"'{text}' is not NAME=SOURCE. Give each guide a name, as in helpful=outputs/helpful.")
    return name, source


def _folder(source: str) -> str:
    return source.partition(":")[0]


def _kind(source: str) -> str:
    """Tell guides, causal LMs, adapters, classifiers and pairs of LMs apart by the files in the folder."""
    if MINUS in source:
        return "pair"
    folder = Path(_folder(source))
    if (folder / "adapter_config.json").is_file():
        return "lm"
    file = folder / "config.json"
    if not file.is_file():
        raise DualHeadError(f"'{folder}' is not a model: it has no config.json. Give a local folder.")
    values = read_json(file, COPY)
    if values.get("model_type") == "dual_head":
        return "guides"
    classifies = any("SequenceClassification" in name for name in values.get("architectures") or ())
    return "classifier" if classifies else "lm"


def _config(source: str) -> "GuideConfig | None":
    """The config of a model as a guide; None for a folder of guides."""
    from dual_head.guides.language_model import LanguageModelConfig
    from dual_head.guides.reward_model import RewardModelConfig

    kind = _kind(source)
    if kind == "pair":
        expert, anti = (str(Path(part).resolve()) for part in source.split(MINUS, 1))
        return LanguageModelConfig(model=expert, against=anti, tune="none")
    folder = str(Path(_folder(source)).resolve())
    if kind == "lm":
        return LanguageModelConfig(model=folder, against="backbone", tune="none")
    return RewardModelConfig(model=folder) if kind == "classifier" else None


def _require_same_tokens(source: str, tokenizer: Any) -> None:
    """Refuse a model whose tokenizer gives other tokens for the same ids; additional tokens are allowed."""
    from dual_head.model.pretrained import load_tokenizer
    from dual_head.model.vocabulary import compare_tokenizers

    for folder in source.split(MINUS, 1):
        if (Path(folder) / "tokenizer_config.json").is_file():
            comparison = compare_tokenizers(load_tokenizer(folder), tokenizer)
            if any(None not in tokens for _, *tokens in comparison.differing):
                raise DualHeadError(f"The model in '{folder}' reads other tokens than the backbone: {comparison}.")
