"""Published guides on a real chat model: what they do at each strength, mixed, and where they break."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from dual_head.backbone.checkpoint import guide_folders
from dual_head.console.terminal import Terminal
from dual_head.demo import PUBLISHED_GUIDES
from dual_head.demo.answers import QUESTIONS, Answer, answer
from dual_head.demo.chat_model import ChatModel, fetch_chat_model
from dual_head.demo.findings import ALPHAS, STRONG, Findings, findings_of, kl, mean, rows_of
from dual_head.demo.options import NEW_TOKENS, RealOptions
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.places import atomic_folder
from dual_head.model.collection import load_collection
from dual_head.replies import RULES

FIRST = ("concise", "positive")  # what is shown where nothing is named, if their rules can be computed

LONGEST, LINES = 280, 8  # characters and lines of a reply that are printed


def show_guides(options: RealOptions, output_dir: str, seed: int) -> None:
    """Show two guides; write into a folder that the caller holds."""
    started = time.perf_counter()
    folders = guides_to_show(options)
    chat = chat_model(options)
    model = load_collection(folders, chat.place, other_precision=chat.other_precision)
    show(model, options, chat, Path(output_dir), seed=seed)
    place = Path(next(iter(folders.values()))).parent
    say_how_to_serve(place, chat, list(folders), by_default=options.guides is None and options.backbone is None)
    print(f"{time.perf_counter() - started:.0f} seconds in all.")


def say_how_to_serve(place: Path, chat: ChatModel, names: Sequence[str], *, by_default: bool) -> None:
    """Print the commands that serve the guides in a folder and that write one reply."""
    console = Terminal(soft_wrap=True)
    command, alpha = f"{place} {chat.flags}", ",".join(f"{name}=1" for name in names)
    console.print(f"Serve them, with a page to try them: dual-head serve{'' if by_default else f' {command}'}")
    console.print(f"One reply: dual-head generate {command} --prompt '{QUESTIONS[2]}' --alpha {alpha}")


def chat_model(options: RealOptions) -> ChatModel:
    """The chat model that is named, or found, or fetched."""
    return ChatModel(options.backbone, options.other_precision) if options.backbone else fetch_chat_model()


def guides_to_show(options: RealOptions) -> dict[str, str]:
    """{name: folder} of the guides to show, the first two where none are named. Errors: none there, or no rule."""
    place = options.guides or str(PUBLISHED_GUIDES)
    folders = {name: folder for name, folder in guide_folders(place).items() if name in RULES}
    if not folders:
        raise DualHeadError(
            f"'{place}' holds no folders of guides that are named after a rule ({', '.join(RULES)}). Give one with "
            "--guides, or make a guide with --train."
        )
    for name in options.show:
        if name not in folders:
            raise DualHeadError(f"There is no guide '{name}' in '{place}'.{did_you_mean(name, folders)}")
    there = [name for name in dict.fromkeys((*FIRST, *RULES)) if name in folders and RULES[name].is_there]
    names = options.show or there[:2]
    if not names:
        raise DualHeadError(f"The rules {', '.join(folders)} need pip install 'dual-head[rules]'.")
    return {name: folders[name] for name in names}


def show(model: Any, options: RealOptions, chat: ChatModel, output: Path, *, seed: int) -> None:
    """Ask, print, draw and write figures."""
    console = Terminal(plain_width=120)
    names = list(model.guides)
    rows = rows_of(names)
    console.print(f"Sampling {len(rows)} replies of {chat.place} ...")
    answers = answer(model, model.own_tokenizer(), rows, max_new_tokens=options.max_new_tokens or NEW_TOKENS, seed=seed)
    findings = findings_of(names, answers)
    for question in QUESTIONS:
        console.print(_side_by_side(findings, question))
    console.print(_means(findings))
    for name in names:
        console.print(_break(findings, name))
    with atomic_folder(output) as staging:
        has_plot = _draw(findings, staging / "real.png")
        (staging / "real.json").write_text(json.dumps(_summary(findings, chat), indent=2))
    picture = str(output / "real.png") if has_plot else "none, matplotlib is missing (pip install 'dual-head[plot]')"
    console.print(f"Picture: {picture}   figures: {output / 'real.json'}")


# ---- what is printed -----------------------------------------------------------------------------------------


def _side_by_side(findings: Findings, question: str) -> Table:
    table = Table(title=question, title_justify="left", show_lines=True)
    table.add_column("alpha", justify="right", no_wrap=True)
    for name in findings.names:
        table.add_column(f"{name} ({RULES[name].about})", ratio=1)
    for alpha in ALPHAS:
        replies = [_to(question, findings.alone[name][alpha]) for name in findings.names]
        cells = [_cell(reply, [name]) for name, reply in zip(findings.names, replies, strict=True)]
        table.add_row(f"{alpha:g}", *cells)
    if findings.mixed:
        table.add_row("both 1", _cell(_to(question, findings.mixed), findings.names), *[""] * (len(findings.names) - 1))
    return table


def _cell(reply: Answer, rules: Sequence[str]) -> str:
    lines = [line for line in reply.text[:LONGEST].splitlines() if line.strip()]
    whole = len(reply.text) <= LONGEST and len(lines) <= LINES
    text = "\n".join(lines[:LINES]) + ("" if whole else " ...")
    counts = ", ".join(f"{rule} {reply.score(rule):.3g}" for rule in rules)
    return f"{text}\n[{counts}; KL {reply.kl:.0f}]"


def _means(findings: Findings) -> Table:
    both = {"both at 1": findings.mixed} if findings.mixed else {}
    table = Table(title=f"means over {len(QUESTIONS)} questions: what the rule counts, and KL in nats a reply")
    table.add_column("guide")
    table.add_column("unit")
    for column in (*(f"alpha {alpha:g}" for alpha in ALPHAS), *both):
        table.add_column(column, justify="right")
    for name in findings.names:
        groups = [*(findings.alone[name][alpha] for alpha in ALPHAS), *both.values()]
        cells = [f"{mean(replies, name):.2f} (KL {kl(replies):.0f})" for replies in groups]
        table.add_row(name, RULES[name].unit, *cells)
    return table


def _break(findings: Findings, name: str) -> str:
    broken = findings.break_of(name)
    if broken is None:
        return f"No reply falls apart with {name} up to {STRONG[-1]:g}."
    alpha, reply = broken
    return f"{name} breaks at {alpha:g}: the reply to '{reply.question}' {reply.collapse}:\n{_cell(reply, [name])}\n"


def _to(question: str, replies: Sequence[Answer]) -> Answer:
    return next(reply for reply in replies if reply.question == question)


# ---- what is written -----------------------------------------------------------------------------------------


def _draw(findings: Findings, file: Path) -> bool:
    """Draw the picture; False if the `plot` extra is missing."""
    try:
        from dual_head.demo.real_picture import real_picture
    except ImportError:
        return False
    real_picture(findings, file)
    return True


def _summary(findings: Findings, chat: ChatModel) -> dict[str, Any]:
    groups = {
        f"{name}={alpha:g}": replies for name in findings.names for alpha, replies in findings.alone[name].items()
    }
    groups |= {"mixed": findings.mixed} if findings.mixed else {}
    rows = {key: [_row(reply, findings.names) for reply in replies] for key, replies in groups.items()}
    return {"model": asdict(chat), "replies": rows}


def _row(reply: Answer, rules: Sequence[str]) -> dict[str, Any]:
    scores = {rule: reply.score(rule) for rule in rules}
    return {name: getattr(reply, name) for name in ("question", "text", "kl", "loss", "collapse")} | scores
