"""`dual-head generate GUIDES`: text from a guided model, at a strength chosen on the spot."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dual_head.commands.help import Help, at_least
from dual_head.commands.loading import add_loading, load_guided
from dual_head.errors import DualHeadError
from dual_head.strength import Alpha


def run(arguments: Sequence[str]) -> int:
    """Parse, load, generate, print."""
    args = _parser().parse_args(arguments)
    prompts = read_prompts(args.prompt, args.prompts_file)
    alpha = parse_alpha(args.alpha)
    # Imported late: a mistyped prompt file should not wait for torch.
    from transformers import TextStreamer, set_seed

    model, tokenizer = load_guided(args)
    if args.seed is not None:
        set_seed(args.seed)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    decoding = {
        name: getattr(args, name)
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams")
        if getattr(args, name) is not None
    }
    stream = len(prompts) == 1 and not (args.trace or args.output or args.no_stream or (args.num_beams or 1) > 1)
    for start in range(0, len(prompts), args.batch_size):
        batch = prompts[start : start + args.batch_size]
        asked = [[{"role": "user", "content": p}] for p in batch] if args.chat else batch
        if stream:
            model.generate(
                asked,
                tokenizer=tokenizer,
                alpha=alpha,
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                **decoding,
            )
            continue
        result: Any = model.generate(asked, tokenizer=tokenizer, alpha=alpha, return_trace=args.trace, **decoding)
        texts: list[str] = result.output if args.trace else result
        traces: list[Any] = result.trace if args.trace else [None] * len(batch)
        for prompt, text, trace in zip(batch, texts, traces, strict=True):
            if args.output:
                row = {"prompt": prompt, "alpha": args.alpha, "output": text}
                traced = {"trace": [asdict(token) for token in trace]} if trace else {}
                _append(Path(args.output), row | traced)
                continue
            if len(prompts) > 1:
                console.print(prompt, style="bold")
            console.print(show_trace(trace, tokenizer) if trace else text)
    return 0


def read_prompts(given: Sequence[str] | None, file: str | None) -> list[str]:
    """Collect prompts from --prompt, a file (one a line, or JSONL with "prompt") or standard input."""
    if given:
        prompts = list(given)
    elif file:
        try:
            with Path(file).open(encoding="utf-8") as stream:
                lines = [line.rstrip("\r\n") for line in stream]
        except (OSError, UnicodeDecodeError) as error:
            raise DualHeadError(f"Cannot read the prompts in '{file}': {error}") from error
        prompts = [_prompt_of(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    elif sys.stdin.isatty():
        raise DualHeadError("Give a prompt with --prompt, --prompts_file or on standard input.")
    else:
        prompts = [sys.stdin.read().strip("\n")]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise DualHeadError("The prompt is empty. Give at least one word.")
    return prompts


def parse_alpha(text: str | None) -> Alpha:
    """Read "1.0" or "helpful=0.8,harmless=0.2"; None leaves the guides' own defaults."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        return {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise DualHeadError(f"--alpha is a number, or name=number,..., not '{text}'.") from error


def show_trace(trace, tokenizer) -> Text:
    """Colour each token by its gate, from blue (closed) to red (open), and list what guidance changed most."""
    text, said = Text(), ""
    for i, token in enumerate(trace):
        gate = sum(token.gates.values()) / max(1, len(token.gates))
        shade = f"rgb({int(255 * gate)},{int(90 * (1 - abs(2 * gate - 1)))},{int(255 * (1 - gate))})"
        # Decoded with what precedes it: a token alone would lose the space before it.
        whole = tokenizer.decode([t.token_id for t in trace[: i + 1]])
        text.append(whole[len(said) :].replace("\n", "\\n"), style=f"on {shade}")
        said = whole
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
    """Show a token with the space it begins with, which decoding it alone would lose."""
    named = tokenizer.convert_ids_to_tokens(token_id) or f"<{token_id}>"  # a backbone may have more ids than names
    piece = named.replace("\u2581", " ").replace("\u0120", " ")
    return piece.replace("\u010a", "\\n").replace("<0x0A>", "\\n").replace("\n", "\\n")


def _prompt_of(line: str, file: str, number: int) -> str:
    if not line.lstrip().startswith("{"):
        return line
    try:
        prompt = json.loads(line)["prompt"]
        if not isinstance(prompt, str):
            raise ValueError(prompt)
        return prompt
    except (ValueError, KeyError) as error:
        raise DualHeadError(f'{file}:{number} is not a JSON object with a text "prompt".') from error


def _append(file: Path, row: dict) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{file}': {error.strerror}. Choose another --output.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dual-head generate",
        usage="dual-head generate GUIDES [options]",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    where = parser.add_argument_group("prompts (one of; else standard input)")
    where.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    where.add_argument("--prompts_file", help='a file with one prompt a line, or JSONL with "prompt"')
    where.add_argument(
        "--chat", action="store_true", help="treat prompts as a user's message: chat template or transcript"
    )
    how = parser.add_argument_group("decoding")
    how.add_argument("--alpha", help="strength: a number, or name=number,...; 0 is the backbone, 1 as trained")
    how.add_argument("--max_new_tokens", type=at_least(1), default=128, help="default: 128")
    how.add_argument("--temperature", type=at_least(0, float), help="sample at this temperature; greedy without it")
    how.add_argument("--top_p", type=float, help="nucleus sampling")
    how.add_argument("--top_k", type=at_least(1), help="sample among so many")
    how.add_argument("--num_beams", type=at_least(1), help="beam search")
    how.add_argument("--seed", type=at_least(0), help="make sampling repeatable")
    how.add_argument("--batch_size", type=at_least(1), default=8, help="prompts at a time; default: 8")
    out = parser.add_argument_group("output")
    out.add_argument("--trace", action="store_true", help="colour tokens by the gate and list what guidance changed")
    out.add_argument("--output", metavar="FILE", help="append JSONL here instead of printing")
    out.add_argument("--no_stream", action="store_true", help="print when finished")
    add_loading(parser)
    return parser
