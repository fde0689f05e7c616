"""`dual-head generate GUIDES`: generate text with guides, at any strength.

Prompts come from --prompt and --prompts, or else from standard input.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from dual_head.cli.loading import DeviceOptions, load_guided
from dual_head.cli.prompts import PromptOptions, conversations, read_prompts, shown
from dual_head.console.terminal import Terminal, printable
from dual_head.data import Cut
from dual_head.errors import DualHeadError
from dual_head.files.lines import add_lines
from dual_head.files.places import exclusive, require_unread
from dual_head.options import option, require_effect
from dual_head.options.fields import SAMPLING
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha
from dual_head.serve.settings import EngineSettings

if TYPE_CHECKING:
    from dual_head.data import Prompt
    from dual_head.model.alpha import Alpha


@dataclass(kw_only=True)
class GenerateOptions(PromptOptions, DeviceOptions):
    """What to generate, and how; prompts default to standard input."""

    alpha: str | None = option(
        None, "strength: a number, or name=number,...; 0 is the backbone, 1 as trained", heading="decoding"
    )
    max_new_tokens: int = option(128, "longest reply in tokens", least=1)
    temperature: float | None = option(
        None,
        "sample at this temperature, greedy at 0 [as the model's own settings say; greedy where they do not]",
        least=0,
    )
    top_p: float | None = option(None, "nucleus sampling", least=0, most=1)
    top_k: int | None = option(None, "sample among this many tokens", least=1)
    num_beams: int | None = option(None, "beam search", least=1)
    seed: int | None = option(None, "make sampling repeatable", least=0)
    best_of: int = option(1, "sample so many replies to each prompt, and keep the best", least=1)
    best_by: str | None = option(
        None,
        "what chooses: rule:NAME, module:function of prompt and reply, or a folder of guides or of a reward model; "
        "default: these guides at the strengths of their config",
        metavar="REWARD",
    )
    batch_size: int = option(16, "prompts at a time", least=1)
    trace: bool = option(False, "colour tokens by the gate and list what guidance changed", heading="output")
    output: str | None = option(None, "append JSONL here instead of printing", metavar="FILE")
    no_stream: bool = option(False, "print when finished")


build_parser = partial(OptionParser, GenerateOptions, command="generate", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and generate; a file that is written to is held."""
    (args,) = build_parser().read(arguments)
    prompts = read_prompts(args, stdin=True)
    alpha = parse_alpha(args.alpha)
    _require_choice(args)
    if not args.output:
        return _generate(args, prompts, alpha)
    require_unread(Path(args.output), [args.prompts])
    with exclusive(args.output):
        return _generate(args, prompts, alpha)


def _generate(args: GenerateOptions, prompts: "Sequence[Prompt]", alpha: "Alpha") -> int:
    """Load, generate, print or append."""
    model, tokenizer = load_guided(args)
    # Imported late: a mistyped prompt file should not wait for torch.
    import torch

    if args.seed is not None:
        torch.manual_seed(args.seed)
    _require_samples(args, model)
    console = Terminal(soft_wrap=True)
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams")
    options: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    whole = args.trace or args.output or args.no_stream or (args.num_beams or 1) > 1 or args.best_of > 1
    if streams := len(prompts) == 1 and not whole:
        options["streamer"] = _streamer(tokenizer)
    empty = 0
    messages = conversations(prompts, args, tokenizer)
    replies = (_best if args.best_of > 1 else _replies)(args, model, tokenizer, messages, alpha, options)
    for prompt, conversation, (text, trace, facts) in zip(prompts, messages, replies, strict=True):
        empty += not text.strip()
        if args.output:
            # As `score` reads it: what was asked, and whether the reply has an end.
            row = {"prompt": prompt if args.system is None else conversation, "alpha": args.alpha, "output": text}
            cut = {"cut": True} if isinstance(text, Cut) else {}
            tokens = {"trace": [asdict(token) for token in trace]} if trace else {}
            line = json.dumps(row | cut | facts | tokens, ensure_ascii=False)
            add_lines(Path(args.output), [line], remedy="Choose another --output.")
            continue
        if len(prompts) > 1:
            console.print(shown(prompt), style="bold")
        if trace:
            console.print(show_trace(trace, tokenizer))
        elif not streams:
            print(printable(text))  # rich would turn tabs into spaces
        if facts:
            console.print(", ".join(f"{name} {value:.4g}" for name, value in facts.items()), style="dim")
    if empty:
        print(f"{empty} of {len(prompts)} replies are empty: the model ended its turn at once.", file=sys.stderr)
    return 0


def _require_choice(args: GenerateOptions) -> None:
    """Refuse options that best-of-n cannot keep."""
    if args.best_by and args.best_of == 1:
        raise DualHeadError("--best_by chooses among several replies. Say how many with --best_of.")
    beside = {"--trace": args.trace, "--num_beams": args.num_beams, "--temperature 0": args.temperature == 0}
    for name, is_set in beside.items():
        if args.best_of > 1 and is_set:
            raise DualHeadError(f"--best_of samples several replies, which {name} does not. Leave one out.")


def _require_samples(args: GenerateOptions, model: Any) -> None:
    """Refuse to choose among samples where none is drawn."""
    draws = args.temperature if args.temperature is not None else model.generation_config.do_sample
    require_effect(args, (("top_p", "top_k"), args.best_of > 1 or draws, SAMPLING))


def _best(
    args: GenerateOptions,
    model: Any,
    tokenizer: Any,
    messages: "Sequence[Prompt]",
    alpha: "Alpha",
    options: dict[str, Any],
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The best of several samples for each prompt by a reward, with what it scored."""
    from dual_head.evaluate.rewards import GuideReward, load_reward, score_all
    from dual_head.model.generate import end_tokens
    from dual_head.replies.sample import generate_replies, reply_text

    name, reward = (
        load_reward(args.best_by, device=model.device)
        if args.best_by
        else ("guides", GuideReward(args.guides, model, tokenizer))
    )
    ends = end_tokens(model)
    sampling = {"temperature": 1.0, **options, "do_sample": True, "alpha": alpha}
    for message in messages:
        texts: list[str] = []
        while len(texts) < args.best_of:
            copies = [message] * min(args.batch_size, args.best_of - len(texts))
            _, _, new = generate_replies(model, tokenizer, copies, **sampling)
            texts += [reply_text(ids, tokenizer, ends) for ids in new.tolist()]
        numbers = score_all(name, reward, [(message, text) for text in texts], batch_size=args.batch_size)
        number, text = max(zip(numbers, texts, strict=True), key=lambda one: one[0])
        yield text, None, {"best_of": args.best_of, f"reward:{name}": number}


def _replies(
    args: GenerateOptions,
    model: Any,
    tokenizer: Any,
    messages: "Sequence[Prompt]",
    alpha: "Alpha",
    options: dict[str, Any],
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Reply, trace (None without --trace) and facts of each prompt, in order, each as soon as it is there."""
    from dual_head.serve.offline import generate_in_order, is_faster

    # Without the chat template, which `conversations` has decided on.
    request = {"tokenizer": tokenizer, "alpha": alpha, "chat_template": False}
    if not args.trace and is_faster(model, len(messages), **options):
        request |= {"max_new_tokens": args.max_new_tokens, "settings": EngineSettings(max_rows=args.batch_size)}
        for piece in generate_in_order(model, messages, **request):
            text = tokenizer.decode([token.id for token in piece.tokens], skip_special_tokens=True)
            yield Cut(text) if piece.finish_reason == "length" else text, None, {}
        return
    for start in range(0, len(messages), args.batch_size):
        batch = messages[start : start + args.batch_size]
        result: Any = model.generate(batch, return_trace=args.trace, **request, **options)
        pairs = zip(*result, strict=True) if args.trace else ((text, None) for text in result)
        yield from ((text, trace, {}) for text, trace in pairs)


def _streamer(tokenizer: Any) -> Any:
    """A streamer that prints a reply piece by piece."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def show_trace(trace, tokenizer) -> Text:
    """Colour each token by its gate, from blue (closed) to red (open), and list what guidance changed most."""
    text, before = Text(), ""
    for i, token in enumerate(trace):
        gate = sum(token.gates.values()) / max(1, len(token.gates))
        shade = f"rgb({int(255 * gate)},{int(90 * (1 - abs(2 * gate - 1)))},{int(255 * (1 - gate))})"
        # Decoded with those before it: a token alone would lose its leading space.
        reply = tokenizer.decode([t.token_id for t in trace[: i + 1]])
        text.append(printable(reply[len(before) :].replace("\n", "\\n")), style=f"on {shade}")
        before = reply
    text.append("\n\n")
    header = f"{'token':>14} {'gate':>6} {'log p base':>11} {'policy':>8} {'KL':>7}  promoted / demoted\n"
    text.append(header, style="bold")
    for token in trace:
        name = _piece(token.token_id, tokenizer)
        gates = "/".join(f"{gate:.2f}" for gate in token.gates.values()) or "-"
        rises = " ".join(f"{_piece(t, tokenizer)!r}{change:+.2f}" for t, change in token.promoted[:2])
        falls = " ".join(f"{_piece(t, tokenizer)!r}{change:+.2f}" for t, change in token.demoted[:2])
        text.append(f"{name:>14} {gates:>6} {token.base_logp:11.3f} {token.policy_logp:8.3f} {token.kl:7.4f}  ")
        text.append(f"{rises} / {falls}\n", style="dim")
    return text


def _piece(token_id: int, tokenizer) -> str:
    """Show a token with its leading space, which decoding it alone would lose."""
    token = tokenizer.convert_ids_to_tokens(token_id) or f"<{token_id}>"  # a backbone may have more ids than tokens
    piece = token.replace("\u2581", " ").replace("\u0120", " ")
    return printable(piece.replace("\u010a", "\\n").replace("<0x0A>", "\\n").replace("\n", "\\n"))
