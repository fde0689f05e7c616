"""`dual-head compose NAME=SOURCE ...`: put several guides, or models or prompts as guides, into one folder.

A source is a folder of guides (NAME=FOLDER, or NAME=FOLDER:GUIDE where it holds several), a causal LM or a PEFT
adapter (a tuned model: delta = its logits less the backbone's), two causal LMs (EXPERT-minus-ANTIEXPERT: proxy
tuning, DExperts), a sequence classifier with one label (a reward model: ARGS), or a control vector (FILE.gguf, as
repeng and llama.cpp have it: a steering guide).

--positive NAME=TEXT and --negative NAME=TEXT make a guide of system prompts: delta = the backbone's logits under the
first less those under the second. One that is not given is the request as it is; an empty text is no system prompt.
"""

import json
from collections.abc import Mapping, Sequence
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

    sources: list[str] = option([], "a guide's name and its source", positional=True, metavar="NAME=SOURCE", nargs="*")
    positive: list[str] | None = option(
        None, "system prompt to move towards, as a guide of that name; repeatable", repeat=True, metavar="NAME=TEXT"
    )
    negative: list[str] | None = option(
        None, "system prompt to move away from; empty: none", repeat=True, metavar="NAME=TEXT"
    )
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
    sources, prompts = _pairs(args.sources), _prompts(args)
    if clash := sources.keys() & prompts.keys():
        raise DualHeadError(f"Two guides have the same name, '{min(clash)}'. Give each its own: NAME=SOURCE.")
    names = [*sources, *prompts]
    if not names:
        raise DualHeadError("There is no guide. Give NAME=SOURCE, or --positive NAME=TEXT or --negative NAME=TEXT.")
    alpha = parse_alpha(args.alpha)
    strengths: dict[str, Any] = alpha if isinstance(alpha, dict) else dict.fromkeys(names, alpha)
    for name in strengths:
        if name not in names:
            raise DualHeadError(f"--alpha names an unknown guide '{name}'.{did_you_mean(name, names)}")
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
    loaded = ("other_precision", "dtype", "trust_remote_code")
    loading = {"tokenizer": tokenizer, **{name: getattr(args, name) for name in loaded}}
    model = AlignedModel.from_backbone(backbone, {}, fusion=fusion, **loading)
    for name, source in sources.items():
        if kinds[source] == "control vector":
            from dual_head.export.control_vector import attach_control_vector

            attach_control_vector(model, name, source, alpha=strengths.get(name))
            continue
        config = _config(source)
        if config is not None:
            _require_same_tokens(source, tokenizer)
        folder, _, guide = source.partition(":")
        model.attach(name, config or folder, source_name=guide or None, alpha=strengths.get(name))
    for name, sides in prompts.items():
        model.attach(name, _contrast(sides), alpha=strengths.get(name))
    with atomic_folder(output) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        record = {"guides": sources, **({"prompts": prompts} if prompts else {}), "backbone": backbone}
        (staging / COMPOSE_FILE).write_text(json.dumps(record, indent=2))
    console = Terminal(soft_wrap=True)
    count = "1 guide" if len(names) == 1 else f"{len(names)} guides"
    console.print(f"{count} written to {args.output_dir}: {', '.join(names)}.")
    text = ",".join(f"{name}={strength:g}" for name, strength in (model.config.alpha or {}).items())
    console.print(f"Try: dual-head generate {args.output_dir} --prompt '...' --alpha {text}")
    return 0


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """{name: source}. Errors: no name, no source, or one name twice."""
    pairs = {}
    for text in texts:
        name, _, source = text.partition("=")
        if not source:
            raise DualHeadError(f"'{text}' is not NAME=SOURCE. Give each guide a name, as in helpful=outputs/helpful.")
        if name in pairs:
            raise DualHeadError(f"Two guides have the same name, '{name}'. Give each its own: NAME=SOURCE.")
        pairs[name] = source
    return pairs


def _prompts(args: ComposeOptions) -> dict[str, dict[str, str]]:
    """{name: {"positive" and "negative", or one of them: text}}. Errors: no name, or the same prompt twice."""
    prompts: dict[str, dict[str, str]] = {}
    for side in ("positive", "negative"):
        for value in getattr(args, side) or ():
            name, separator, text = value.partition("=")
            if not separator:
                raise DualHeadError(f"--{side} '{value}' is not NAME=TEXT. Name it, as in polite='You are polite.'")
            if side in prompts.setdefault(name, {}):
                raise DualHeadError(f"--{side} has two prompts for '{name}'. Give each guide a name of its own.")
            prompts[name][side] = text
    return prompts


def _contrast(sides: Mapping[str, str]) -> "GuideConfig":
    from dual_head.guides.prompt_contrast import PromptContrastConfig

    return PromptContrastConfig(positive=sides.get("positive"), negative=sides.get("negative"))


def _folder(source: str) -> str:
    return source.partition(":")[0]


def _kind(source: str) -> str:
    """Tell guides, causal LMs, adapters, classifiers, pairs of LMs and control vectors apart by their files."""
    if MINUS in source:
        return "pair"
    if source.endswith(".gguf") and Path(source).is_file():
        return "control vector"
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
