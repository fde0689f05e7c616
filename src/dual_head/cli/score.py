"""`dual-head score GUIDES`: use guides as a reward model of replies that are there.

A reply's reward is log pi - log pi_base, summed over its tokens: how much likelier the guides make it, in nats.
--replies ranks the replies to each prompt. --pairs counts how often the guides prefer the chosen reply.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich import box
from rich.table import Table

from dual_head.cli.loading import DeviceOptions, load_guided
from dual_head.console.gauge import Gauge
from dual_head.console.terminal import Terminal
from dual_head.data import Cut, Prompt, RowReport
from dual_head.data.cells import was_cut
from dual_head.data.files import rows_of_file
from dual_head.data.turns import COMPLETIONS
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive, require_unread
from dual_head.options import option, require_effect
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha
from dual_head.stats import wilson

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dual_head.model.alpha import Alpha
    from dual_head.model.rewards import ReplyScore

ROW = 'a row is {"prompt": text or messages, "reply": text} or {"prompt": ..., "replies": [text, ...]}'
PLAIN_WIDTH = 140  # of a table that is not printed on a screen
SHOWN = 48  # characters of a text in the table
MOST_SHOWN = 20  # prompts in the table


@dataclass(kw_only=True)
class ScoreOptions(DeviceOptions):
    """What is scored, at which strength, and where the scores go."""

    replies: str | None = option(
        None,
        'JSONL, JSON, CSV or parquet with "prompt" and "reply" (or "output", as generate writes it), or a list of '
        '"replies"; "cut": true for one that stopped at the limit of tokens',
        heading="what is scored",
        metavar="FILE",
    )
    pairs: str | None = option(
        None, "a file, folder or hub data set of preference pairs, as training reads them; RewardBench too"
    )
    split: str = option("test", "split of --pairs, where it has several")
    max_pairs: int | None = option(None, "score the first pairs only", least=1)
    alpha: str | None = option(None, "strength: a number, or name=number,...; default: what the config says")
    raw: bool = option(False, "continue prompts as text; default: a user's message, by the chat template")
    batch_size: int = option(16, "replies in a pass", least=1)
    output: str | None = option(None, "JSONL of every reply with its tokens", heading="output", metavar="FILE")
    page: str | None = option(None, "HTML page of the tokens, coloured by their reward", metavar="FILE")


@dataclass(frozen=True)
class Asked:
    """A prompt with its replies; labels: what each is called; group: a subset of pairs."""

    prompt: Prompt
    replies: tuple[str, ...]
    labels: tuple[str, ...] = ()
    group: str = ""


build_parser = partial(OptionParser, ScoreOptions, command="score", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, read, score, and write."""
    (args,) = build_parser().read(arguments)
    if (args.replies is None) == (args.pairs is None):
        raise DualHeadError("Give either --replies or --pairs: what is to be scored.")
    require_effect(
        args,
        (("split", "max_pairs"), args.pairs, "pairs, and replies are scored here. Give --pairs instead"),
        (("raw",), args.replies, "replies, and the texts of pairs are continued anyway. Give --replies instead"),
    )
    asked = list(_replies(Path(args.replies)) if args.replies else _pairs(args))
    alpha = parse_alpha(args.alpha)
    written = [place for place in (args.output, args.page) if place]
    for place in written:
        require_unread(Path(place), [args.replies, args.pairs])
    with ExitStack() as held:
        for place in written:
            held.enter_context(exclusive(place))
        return _score(args, asked, alpha)


def _score(args: ScoreOptions, asked: Sequence[Asked], alpha: "Alpha") -> int:
    """Load, score, write, print."""
    model, tokenizer = load_guided(args)
    flat = [(one.prompt, reply) for one in asked for reply in one.replies]
    scores: list[ReplyScore] = []
    with Gauge("replies", len(flat)) as gauge:
        for start in range(0, len(flat), args.batch_size * 8):
            part = flat[start : start + args.batch_size * 8]
            prompts, replies = zip(*part, strict=True)
            # Pairs are written as training writes them: a text is continued.
            request = {"alpha": alpha, "tokenizer": tokenizer, "chat_template": not (args.raw or args.pairs)}
            scores += model.score(prompts, replies, batch_size=args.batch_size, **request)
            gauge.advance(len(part))
    rows = list(_rows(asked, scores, tokenizer))
    facts = _facts(asked, rows)
    if args.output:
        _write(args.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if args.page:
        from dual_head.evaluate.report.heat_map import heat_map

        title = f"{args.guides} at {args.alpha or 'the strengths of its config'}"
        _write(args.page, heat_map(rows, title=title, facts=facts))
    console = Terminal(plain_width=PLAIN_WIDTH)
    if not args.pairs:
        console.print(_table(rows))
    for fact in facts:
        console.print(fact)
    return 0


def _write(file: str, text: str) -> None:
    with atomic_folder(Path(file).parent) as staging:
        (staging / Path(file).name).write_text(text, encoding="utf-8")


# ---- what is read ------------------------------------------------------------------------------------------


def _replies(file: Path) -> Iterator[Asked]:
    """Prompts with their replies. Errors: no row, or one without a prompt or a reply."""
    if not file.is_file():
        raise DualHeadError(f"There is no file '{file}'; {ROW}.")
    count = 0
    for row, where in rows_of_file(file, RowReport()):
        count += 1
        if not isinstance(row, Mapping):
            raise DualHeadError(f"{where} is not an object; {ROW}.")
        prompt: Any = row.get("prompt")
        if not (isinstance(prompt, str) or _is_conversation(prompt)):
            raise DualHeadError(f"{where} has no prompt; {ROW}.")
        replies = row.get("replies", next(([row[name]] for name in COMPLETIONS if name in row), None))
        if not isinstance(replies, list) or not replies or not all(isinstance(reply, str) for reply in replies):
            raise DualHeadError(f"{where} has no reply; {ROW}.")
        cut = row.get("cut")
        cuts = cut if isinstance(cut, list) else [cut] * len(replies)
        if len(cuts) != len(replies):
            raise DualHeadError(
                f'{where} has {len(replies)} replies and {len(cuts)} values of "cut". Give one to each.'
            )
        try:
            replies = tuple(Cut(text) if was_cut(value) else text for text, value in zip(replies, cuts, strict=True))
        except DualHeadError as error:
            raise DualHeadError(f"{where}: {error}") from error
        yield Asked(prompt, replies)
    if not count:
        raise DualHeadError(f"'{file}' is empty; {ROW}.")


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(x, Mapping) and isinstance(x.get("content"), str) and "role" in x for x in prompt)
    )


def _pairs(args: ScoreOptions) -> Iterator[Asked]:
    """Pairs, grouped by the column `subset` where a file has one, as RewardBench's has."""
    from dual_head.data.load import load_pairs

    assert args.pairs is not None
    pairs, report = load_pairs(args.pairs, split=args.split, max_rows=args.max_pairs)
    if report.rows > report.kept or report.notes:
        print(report.table())
    groups: dict[tuple[Any, Any], str] = {}
    if Path(args.pairs).is_file():
        rows = (row for row, _ in rows_of_file(Path(args.pairs), RowReport()) if isinstance(row, Mapping))
        groups = {_key(row): str(row["subset"]) for row in rows if "subset" in row}
    for pair in pairs:
        group = groups.get((pair.chosen, pair.rejected), "")
        prompt = pair.prompt if isinstance(pair.prompt, str) else list(pair.prompt)
        yield Asked(prompt, (pair.chosen, pair.rejected), ("chosen", "rejected"), group)


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("chosen")), str(row.get("rejected"))


# ---- what is written ---------------------------------------------------------------------------------------


def _rows(
    asked: Sequence[Asked], scores: "Sequence[ReplyScore]", tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[dict[str, Any]]:
    """One row a prompt: its replies with their scores, and the index of the best."""
    following = iter(scores)
    for one in asked:
        replies = []
        for i, reply in enumerate(one.replies):
            score = next(following)
            label = {"label": one.labels[i]} if one.labels else {}
            said = {"reply": reply, "reward": score.reward, "kl": score.kl, "tokens": _tokens(score, tokenizer)}
            replies.append(label | said)
        best = max(range(len(replies)), key=lambda i: replies[i]["reward"])
        yield {"prompt": one.prompt, **({"subset": one.group} if one.group else {}), "replies": replies, "best": best}


def _tokens(score: "ReplyScore", tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Tokens with their texts."""
    texts = _pieces([token.token_id for token in score.tokens], tokenizer)
    pairs = zip(texts, score.tokens, strict=True)
    return [{"token": text, "reward": token.reward, **asdict(token)} for text, token in pairs]


def _pieces(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What each token adds to the text; alone it would lose its leading space. Part of a character adds nothing."""
    if tokenizer.is_fast:
        from tokenizers.decoders import DecodeStream

        stream, backend = DecodeStream(skip_special_tokens=False), cast(Any, tokenizer).backend_tokenizer
        return [stream.step(backend, token) or "" for token in ids]
    texts = ["", *(str(tokenizer.decode(list(ids[: i + 1]))) for i in range(len(ids)))]
    return [text[len(before) :] for before, text in pairwise(texts)]


def _facts(asked: Sequence[Asked], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that sum up: how often the chosen reply is preferred, or the mean reward."""
    if not asked[0].labels:
        rewards = [reply["reward"] for row in rows for reply in row["replies"]]
        return [f"{len(rewards)} replies to {len(rows)} prompts: mean reward {sum(rewards) / len(rewards):+.3f} nats"]
    right = [(one.group, _preferred(row)) for one, row in zip(asked, rows, strict=True)]
    facts = [_accuracy("The chosen reply is preferred", [value for _, value in right])]
    if any(group for group, _ in right):
        ordered = sorted(right)
        facts += [
            _accuracy(f"  {group or 'no subset'}", [value for _, value in values])
            for group, values in groupby(ordered, key=lambda one: one[0])
        ]
    return facts


def _preferred(row: Mapping[str, Any]) -> float:
    chosen, rejected = (reply["reward"] for reply in row["replies"])
    return 0.5 + 0.5 * ((chosen > rejected) - (chosen < rejected))


def _accuracy(name: str, values: Sequence[float]) -> str:
    low, high = wilson(sum(values), len(values))
    return f"{name}: {100 * sum(values) / len(values):.1f}% of {len(values)} ({100 * low:.1f} to {100 * high:.1f})"


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column, side in (("prompt", "left"), ("reply", "left"), ("reward", "right"), ("KL", "right")):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows[:MOST_SHOWN]:
        ranked = sorted(row["replies"], key=lambda reply: -reply["reward"])
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        for i, reply in enumerate(ranked):
            cells = (_short(prompt) if not i else "", _short(reply["reply"]))
            table.add_row(*cells, f"{reply['reward']:+.2f}", f"{reply['kl']:.2f}")
    if len(rows) > MOST_SHOWN:
        table.caption = f"the first {MOST_SHOWN} of {len(rows)} prompts"
    return table


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
