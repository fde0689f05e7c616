"""Scored replies as one HTML page: every token on a ground that says how much likelier the guides made it.

The page needs no other file and runs no script. Texts are shown as text, never as markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from dual_head.data import Prompt

DEEPEST = 3.0  # nats of a token's reward at which its colour is full
STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.3rem } .prompt { font-weight: 600; white-space: pre-wrap; margin: 1.6rem 0 .3rem }
.reply { white-space: pre-wrap; margin: .2rem 0 .7rem; padding: .4rem .6rem; border-left: 3px solid #d0d7de }
.best { border-left-color: #1a7f37 } .facts { color: #57606a; font-size: .85rem }
span { border-radius: 2px } .legend span { padding: 0 .5rem }
"""


def heat_map(rows: Iterable[Mapping[str, Any]], *, title: str, facts: Sequence[str]) -> str:
    """A page of scored replies.

    rows: {"prompt", "replies": [{"reply", "reward", "kl", "tokens": [{"token", "reward", "kl", "gates"}]}], "best"}.
    facts: lines under the title.
    """
    legend = "".join(
        f'<span style="{_ground(reward)}">{reward:+g}</span> '
        for reward in (-DEEPEST, -DEEPEST / 2, 0.0, DEEPEST / 2, DEEPEST)
    )
    head = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="facts">{escape(fact)}</p>' for fact in facts),
        f'<p class="facts legend">log pi - log pi_base of a token, nats: {legend}</p>',
    ]
    return "\n".join([*head, *(_row(row) for row in rows), "</html>"]) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    replies = row["replies"]
    parts = [f'<div class="prompt">{escape(_shown(row["prompt"]))}</div>']
    for i, reply in enumerate(replies):
        best = " best" if len(replies) > 1 and i == row["best"] else ""
        tokens = "".join(_token(token) for token in reply["tokens"])
        label = f"{reply['label']}: " if "label" in reply else ""
        facts = f"{label}reward {reply['reward']:+.2f}, KL {reply['kl']:.2f}, {len(reply['tokens'])} tokens"
        parts.append(f'<div class="reply{best}"><div class="facts">{escape(facts)}</div>{tokens}</div>')
    return "\n".join(parts)


def _token(token: Mapping[str, Any]) -> str:
    gates = "".join(f", gate {name} {gate:.2f}" for name, gate in token["gates"].items())
    facts = f"reward {token['reward']:+.3f}, KL {token['kl']:.3f}{gates}"
    return f'<span style="{_ground(token["reward"])}" title="{escape(facts)}">{escape(token["token"])}</span>'


def _ground(reward: float) -> str:
    depth = min(1.0, abs(reward) / DEEPEST)
    colour = "9,105,218" if reward > 0 else "207,34,46"
    return f"background:rgba({colour},{0.75 * depth:.2f})"


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
