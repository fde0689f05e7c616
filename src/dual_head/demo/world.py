"""A small world of requests and replies in which the exact reward of any reply is computable by rule.

It has a grammar of requests and replies, a mixed behaviour policy that answers well, badly, rudely or at length, and a
reward of any text.

All texts are lower-case words separated by single spaces. `prompt + reply` is a whole text, with

    prompt = "user : how do i bake bread ? assistant :"        reply = " hello ! first knead the dough ."

No text contains "</s>": as for any other data, tokenising ends a complete reply with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from dual_head.demo import topics
from dual_head.errors import DualHeadError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OBJECTIVES = ("overall", "helpful", "harmless")
SPLITS = ("train", "test")
MAX_REPLY_TOKENS = 48
"""Longest reply of the behaviour policy, its </s> included."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)

# The behaviour policy: mixed on purpose, so that its mean reward is near zero and guidance can gain much.
_HARMFUL_SHARE = 0.4
_REFUSE = {False: 0.15, True: 0.55}  # keyed by Request.harmful
_RIGHT_STEP = 0.7
_MAX_STEPS = 4
_OPEN, _CLOSE, _RUDE, _CONNECT = 0.5, 0.4, 0.25, 0.5
_FILLER_COUNTS = (0, 0, 0, 1, 1, 2)


@dataclass(frozen=True)
class Request:
    """What a user asks: `text`, its `topic` (a key of `topics.STEPS`), whether that topic is `harmful`."""

    text: str
    harmful: bool
    topic: str

    @property
    def prompt(self) -> str:
        """The text a model continues: "user : {text} assistant :"."""
        return f"user : {self.text} assistant :"


@dataclass(frozen=True)
class Reward:
    """The exact reward of one reply, in points (see `reward`); `harmful` repeats the request's kind."""

    helpful: float
    harmless: float
    polite: float
    length: float
    harmful: bool

    @property
    def total(self) -> float:
        """helpful (counted for harmless requests only) + harmless + polite + length."""
        return (0.0 if self.harmful else self.helpful) + self.harmless + self.polite + self.length

    def of(self, objective: str) -> float:
        """The points of one of `OBJECTIVES`; "overall" is `total`. DualHeadError for any other name."""
        _require_known(objective, OBJECTIVES, "objective")
        return {"overall": self.total, "helpful": self.helpful, "harmless": self.harmless}[objective]


def reward(request: Request, reply: str) -> Reward:
    """Score any text as a reply to `request`, garbage included; all in points.

    The reply is read up to its first "</s>" and cut into sentences, each ended by one of . ! ? A step is
    a sentence that is a step phrase, with or without a leading "first", "then" or "next". Then

        helpful  = 1 * distinct steps of the request's topic - 0.5 * distinct steps of other topics
                   - 2 if it refuses                            (for every request, harmful ones too)
        harmless = 2 if the request is harmful and the reply refuses without any harmful step
                   - 1.5 * distinct steps of harmful topics     (for every request)
        polite   = 0.5 if it has an opening + 0.5 if it has a closing - 1 * rude sentences
        length   = -0.05 * tokens that carry nothing: filler, a second opening, closing or refusal, a repeated
                   step, an unknown sentence, an unfinished one (its punctuation counts as a token)
        total    = (helpful if the request is harmless) + harmless + polite + length

    So helpful and harmless contradict each other on harmful requests, and total sides with harmless there.
    """
    kinds: set[str] = set()
    rude = idle = 0
    for kind, tokens in _sentences(reply):
        if kind == "rude":
            rude += 1
        elif kind == "idle" or kind in kinds:
            idle += tokens
        else:
            kinds.add(kind)
    steps = steps_of(reply)
    right = sum(topics.TOPIC_OF[step] == request.topic for step in steps)
    harmful_steps = sum(topics.TOPIC_OF[step] in topics.HARMFUL for step in steps)
    refused = "refusal" in kinds
    return Reward(
        helpful=right - 0.5 * (len(steps) - right) - 2.0 * refused,
        harmless=2.0 * (request.harmful and refused and not harmful_steps) - 1.5 * harmful_steps,
        polite=0.5 * ("opening" in kinds) + 0.5 * ("closing" in kinds) - 1.0 * rude,
        length=0.0 - 0.05 * idle,
        harmful=request.harmful,
    )


def is_refusal(reply: str) -> bool:
    """Whether `reply` holds a finished sentence of refusal, whatever else it says."""
    return any(kind == "refusal" for kind, _ in _sentences(reply))


def steps_of(reply: str) -> frozenset[str]:
    """The distinct steps that `reply` gives, right or wrong."""
    return frozenset(kind for kind, _ in _sentences(reply)) & topics.TOPIC_OF.keys()


def best_reply(request: Request) -> str:
    """A reply of the highest total: every right step in order (6 points), or a plain refusal (3 points)."""
    steps = [f"{step} ." for step in topics.STEPS[request.topic]]
    body = topics.REFUSALS[:1] if request.harmful else steps
    return " " + " ".join((topics.OPENINGS[0], *body, topics.CLOSINGS[0]))


@cache
def all_requests(split: str) -> tuple[Request, ...]:
    """Every request of a split: "test" has a quarter of the phrasing-topic combinations, "train" the rest.

    Every topic and every phrasing is in both. DualHeadError for any other split.
    """
    _require_known(split, SPLITS, "split")
    return tuple(
        Request(
            text=" ".join(phrasing.format(f"{topic} {circumstance}".strip()).split()),
            harmful=topic in topics.HARMFUL,
            topic=topic,
        )
        for t, topic in enumerate(topics.STEPS)
        for p, phrasing in enumerate(topics.PHRASINGS)
        if ((t + p) % 4 == 0) == (split == "test")
        for circumstance in topics.CIRCUMSTANCES
    )


def parse_request(text: str) -> Request:
    """The request asked by a prompt, or by a text beginning with one. DualHeadError if it is unknown."""
    request = " ".join(text.partition("user :")[2].partition("assistant :")[0].split())
    try:
        return _request_by_text()[request]
    except KeyError:
        raise DualHeadError(
            f"The text {text!r} has no request of the demonstration world. "
            "Give a prompt such as 'user : how do i bake bread ? assistant :'."
        ) from None


def sample_requests(n: int, *, seed: int, split: str = "train") -> list[Request]:
    """Draw `n` requests with replacement, two in five harmful, the same for the same seed and split."""
    rng = Random(f"requests:{split}:{seed}")
    return [_draw_request(rng, split) for _ in range(n)]


def sample_reply(request: Request, rng: Random) -> str:
    """Draw one reply of the mixed behaviour policy, with its leading space, of at most `MAX_REPLY_TOKENS`."""
    while True:
        reply = " ".join(_draw_sentences(request, rng))
        if len(reply.split()) < MAX_REPLY_TOKENS:  # leaves one for </s>
            return f" {reply}"


def corpus(n: int, *, seed: int, split: str = "train") -> list[str]:
    """Draw `n` whole texts, prompt + reply, from which a backbone is pretrained."""
    rng = Random(f"corpus:{split}:{seed}")
    requests = (_draw_request(rng, split) for _ in range(n))
    return [request.prompt + sample_reply(request, rng) for request in requests]


def preference_rows(n: int, *, seed: int, objective: str = "overall", split: str = "train") -> list[dict[str, str]]:
    """Draw `n` rows {"prompt", "chosen", "rejected"}: two replies of the behaviour policy to one request.

    chosen has more points of `objective`; a tie is dropped and drawn again, request and all, so that
    "harmless" rows are mostly about harmful requests. DualHeadError for an unknown objective or split.
    """
    _require_known(objective, OBJECTIVES, "objective")
    rng = Random(f"preference:{objective}:{split}:{seed}")
    rows: list[dict[str, str]] = []
    while len(rows) < n:
        request = _draw_request(rng, split)
        one, other = sample_reply(request, rng), sample_reply(request, rng)
        lead = reward(request, one).of(objective) - reward(request, other).of(objective)
        if abs(lead) > 1e-9:  # sums of 0.05s differ in their last bits
            chosen, rejected = (one, other) if lead > 0 else (other, one)
            rows.append({"prompt": request.prompt, "chosen": chosen, "rejected": rejected})
    return rows


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Make the word-level tokenizer of the world: "<s>" first, no "</s>" added, padded on the left.

    decode(encode(text), skip_special_tokens=True) is `text` for every text of the world.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, unk = SPECIAL_TOKENS
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *topics.WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _require_known(name: str, names: tuple[str, ...], noun: str) -> None:
    if name not in names:
        raise DualHeadError(f"Unknown {noun} '{name}'.{did_you_mean(name, names)}")


def _sentences(reply: str) -> Iterator[tuple[str, int]]:
    """Yield the kind of each sentence and its number of tokens; an unfinished last one is "idle"."""
    words: list[str] = []
    for word in reply.partition("</s>")[0].split():
        if word not in SPECIAL_TOKENS:
            words.append(word)
        if word in (".", "!", "?"):
            yield topics.KIND_OF.get(" ".join(words), "idle"), len(words)
            words = []
    if words:
        yield "idle", len(words)


@cache
def _request_by_text() -> dict[str, Request]:
    return {request.text: request for split in SPLITS for request in all_requests(split)}


@cache
def _requests_of_kind(split: str, harmful: bool) -> tuple[Request, ...]:
    return tuple(request for request in all_requests(split) if request.harmful == harmful)


def _draw_request(rng: Random, split: str) -> Request:
    return rng.choice(_requests_of_kind(split, rng.random() < _HARMFUL_SHARE))


def _draw_sentences(request: Request, rng: Random) -> list[str]:
    refuses = rng.random() < _REFUSE[request.harmful]
    body = [rng.choice(topics.REFUSALS)] if refuses else _draw_steps(request, rng)
    # A filler stands for an empty body, so that no reply is empty.
    for _ in range(max(rng.choice(_FILLER_COUNTS), not body)):
        body.insert(rng.randint(0, len(body)), rng.choice(topics.FILLERS))
    if rng.random() < _OPEN:
        body.insert(0, rng.choice(topics.OPENINGS))
    if rng.random() < _CLOSE:
        body.append(rng.choice(topics.CLOSINGS))
    if rng.random() < _RUDE:
        body.insert(rng.choice((0, len(body))), rng.choice(topics.RUDE))
    return body


def _draw_steps(request: Request, rng: Random) -> list[str]:
    """None to four step sentences: the right ones in their order, wrong ones among them."""
    lines = topics.STEPS[request.topic]
    count = rng.randint(0, _MAX_STEPS)
    right = sum(rng.random() < _RIGHT_STEP for _ in range(count))
    steps = [lines[i] for i in sorted(rng.sample(range(len(lines)), right))]
    other_steps = [step for step in topics.TOPIC_OF if topics.TOPIC_OF[step] != request.topic]
    for _ in range(count - right):
        steps.insert(rng.randint(0, len(steps)), rng.choice(other_steps))
    # "first" only opens a reply; elsewhere it would tell the model nothing.
    connectors = [(topics.CONNECTORS[0],)] + [topics.CONNECTORS[1:]] * count
    return [
        f"{rng.choice(connectors[i])} {step} ." if rng.random() < _CONNECT else f"{step} ."
        for i, step in enumerate(steps)
    ]
