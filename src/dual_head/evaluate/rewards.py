"""Rewards of finished replies: a Python function, a reward model from a folder, or guides as one.

A reward is any (prompt, reply) -> number.
"""

import importlib
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from dual_head.backbone.load import context_length, load_config
from dual_head.config import AlignedConfig
from dual_head.data import Dropped
from dual_head.data.conversation import write
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.systems.identity import files_digest, sources_digest
from dual_head.files.places import require_unaltered
from dual_head.files.reading import reading
from dual_head.guides.reward_model import RewardModel as TunedRewardModel
from dual_head.model.aligned import AlignedModel
from dual_head.model.generate import Prompt
from dual_head.model.rewards import score_rows
from dual_head.replies import RULES

Reward = Callable[[Prompt, str], float]  # (prompt, reply), a `Cut` where it has no end, to a finite number

FORMS = (
    "A reward is module:function, called with prompt and reply, rule:NAME such as rule:concise, or a folder: of "
    "guides, of what 'dual-head train reward' wrote, or of a sequence classifier with one label."
)


def load_reward(spec: str, *, device: torch.device | str = "cpu") -> tuple[str, Reward]:
    """Find a reward by "module:function", "rule:NAME" or a folder: its name, and what computes it.

    Named after the function or the folder. Errors: neither of them, what cannot be imported or called, a
    classifier that has not one label or no trained score.
    """
    if Path(spec).is_dir():
        return Path(spec).resolve().name, load_reward_model(spec, device=device)
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise DualHeadError(f"'{spec}' is not a reward. {FORMS}")
    if module == "rule":
        if name not in RULES:
            raise DualHeadError(f"Unknown rule '{name}'.{did_you_mean(name, RULES)} {FORMS}")
        RULES[name].require()
        return name, RULES[name].score
    if "" not in sys.path:
        sys.path.append("")  # the current directory, after what is installed; a console script has it not
    try:
        reward = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a user's module raises
        raise DualHeadError(
            f"Cannot import the reward '{spec}': {type(error).__name__}: {error}. {FORMS} Modules are looked for "
            "among installed packages and in the current directory."
        ) from error
    if not callable(reward):
        raise DualHeadError(f"'{spec}' is {type(reward).__name__}, not a function. {FORMS}")
    return name, cast(Reward, reward)


def reward_identity(spec: str) -> str:
    """A folder's files; a function's name and the text of its module, so that one that was changed is asked anew."""
    return files_digest(spec) or f"{spec}:{sources_digest([inspect.getmodule(load_reward(spec)[1])])}"


def require_reward(spec: str) -> None:
    """Refuse what cannot be a reward, as far as a function or a folder's config tell. Errors: as of `load_reward`."""
    if not Path(spec).is_dir():
        load_reward(spec)
        return
    with _loading(spec):
        config: Any = load_config(spec)
    if isinstance(config, AlignedConfig):
        _reward_guides(spec, config)
    elif config.num_labels != 1:
        raise _no_reward_model(spec, config.num_labels)


def load_reward_model(folder: str, *, device: torch.device | str = "cpu") -> "RewardModel":
    """Load what scores replies from a folder. Errors: as of `load_reward`."""
    with _loading(folder):
        require_unaltered(Path(folder))
        config = load_config(folder)
        if isinstance(config, AlignedConfig) and not _reward_guides(folder, config):
            model: Any = AlignedModel.from_pretrained(folder).eval()
            model.to(device)
            return GuideReward(folder, model, model.own_tokenizer())
    return Classifier(folder, device=device)


def _reward_guides(folder: str, config: AlignedConfig) -> list[str]:
    """The name of the reward model among guides, where there is one. Errors: several."""
    guides = config.guides or {}
    names = [name for name, entry in guides.items() if entry["kind"] == "reward_model"]
    if len(names) > 1:
        raise DualHeadError(f"Several of the guides are reward models in '{folder}' ({', '.join(guides)}). {FORMS}")
    return names


def score_all(name: str, reward: Reward, pairs: Sequence[tuple[Prompt, str]], *, batch_size: int = 16) -> list[float]:
    """Compute one reward of many replies, a reward model's in batches. Errors: one that fails, no finite number."""
    values: Iterable[tuple[float, Any]]
    if isinstance(reward, RewardModel):
        values = ((number, number) for number in reward.score_all(pairs, batch_size=batch_size))
    else:
        values = (called(name, reward, prompt, reply) for prompt, reply in pairs)
    numbers = []
    for (number, value), (_, reply) in zip(values, pairs, strict=True):
        if not math.isfinite(number):
            raise DualHeadError(
                f"The reward '{name}' gave {value!r} for the reply {reply!r}. It must return a finite number for "
                "every reply, the empty one too."
            )
        numbers.append(number)
    return numbers


def called(name: str, reward: Reward, prompt: Prompt, reply: str) -> tuple[float, Any]:
    """Compute one reward: as a number, NaN where it is none, and as it was given. Errors: a reward that fails."""
    try:
        value: Any = reward(prompt, reply)
    except DualHeadError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise DualHeadError(
            f"The reward '{name}' failed for the reply {reply!r}: {type(error).__name__}: {error}. It is called with "
            "prompt and reply, which may be empty, and returns a number."
        ) from error
    try:
        return (math.nan if isinstance(value, str) else float(value)), value
    except (TypeError, ValueError, RuntimeError):
        return math.nan, value


def _loading(folder: str) -> AbstractContextManager[None]:
    return reading(f"Could not load a reward model from '{folder}'", FORMS, folder)


def _no_reward_model(folder: str, labels: int) -> DualHeadError:
    return DualHeadError(
        f"'{folder}' is not a reward model: it needs one label (it has {labels}) and a trained score. Give a sequence "
        "classifier, not a language model."
    )


def _load(folder: str) -> PreTrainedModel:
    """The sequence classifier in a folder, which may be that of a reward model that is a guide."""
    with _loading(folder):
        require_unaltered(Path(folder))
        config = load_config(folder)
        if isinstance(config, AlignedConfig):
            guide = AlignedModel.from_pretrained(folder).guide(_reward_guides(folder, config)[0])
            assert isinstance(guide, TunedRewardModel)
            return guide.tuned
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    if model.config.num_labels != 1 or info["missing_keys"]:
        raise _no_reward_model(folder, model.config.num_labels)
    return model


@dataclass(frozen=True)
class ReplyIds:
    """Token ids of a prompt and of its reply, as training writes them."""

    prompt: list[int]
    reply: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


class RewardModel(ABC):
    """Scores a prompt and its reply by the ids that it was trained on.

    context: how many tokens it reads, infinite where nothing says so.
    """

    def __init__(self, folder: str, model: Any, tokenizer: Any, context: float):
        self.folder, self.model, self.tokenizer, self.context = folder, model, tokenizer, context

    def __call__(self, prompt: Prompt, reply: str) -> float:
        """Score one reply. Errors: more tokens than the model reads."""
        return self.score_all([(prompt, reply)])[0]

    def score_all(self, pairs: Sequence[tuple[Prompt, str]], *, batch_size: int = 16) -> list[float]:
        """Score replies, a batch in one forward. Errors: as of one."""
        rows = [self.encode(prompt, reply) for prompt, reply in pairs]
        if (longest := max(map(len, rows), default=0)) > self.context:
            raise DualHeadError(
                f"A prompt and its reply have {longest} tokens, and the reward model in '{self.folder}' reads "
                f"{self.context}. Shorten the prompt, or generate less (--max_new_tokens)."
            )
        return self.score_rows(rows, batch_size=batch_size)

    def score_rows(self, rows: Sequence[ReplyIds], *, batch_size: int) -> list[float]:
        """Score rows, those of like lengths together, in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        scores: dict[int, float] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores |= zip(batch, self.score([rows[i] for i in batch]), strict=True)
        return [scores[i] for i in range(len(rows))]

    def encode(self, prompt: Prompt, reply: str) -> ReplyIds:
        """Token ids of a prompt and its reply. Errors: the chat template refuses them."""
        (conversation,) = write([(prompt, (reply,))], self.tokenizer)
        if isinstance(conversation, Dropped):
            raise DualHeadError(
                f"The reward model in '{self.folder}' cannot read a prompt: {conversation}. Leave it out, or change "
                "the messages."
            )
        return ReplyIds(conversation.prompt, conversation.replies[0])

    @abstractmethod
    def score(self, rows: Sequence[ReplyIds]) -> list[float]:
        """Score rows in one forward; each gets the score it would get alone."""


class GuideReward(RewardModel):
    """The reward that guides stand for: log pi - log pi_base of a reply in nats, at the strengths of their config.

    folder: of guides. Source: `dual_head.model.rewards`.
    """

    def __init__(self, folder: str, model: AlignedModel, tokenizer: Any):
        if not any((model.config.alpha or {}).values()):
            raise DualHeadError(
                f"The guides in '{folder}' have strength 0, so every reply has the reward 0. Compose them with an "
                "alpha (dual-head compose ... --alpha NAME=1)."
            )
        super().__init__(folder, model, tokenizer, context_length(model.backbone.config) or math.inf)

    def score(self, rows: Sequence[ReplyIds]) -> list[float]:
        """See `RewardModel.score`."""
        pairs = [(row.prompt, row.reply) for row in rows]
        return [score.reward for score in score_rows(self.model, pairs, batch_size=len(pairs))]


class Classifier(RewardModel):
    """Score of a prompt and its reply under a sequence classifier with one label.

    folder: what `dual-head train reward` wrote, or such a classifier, and its tokenizer.
    """

    def __init__(self, folder: str, *, device: torch.device | str = "cpu"):
        model: Any = _load(folder)
        with _loading(folder):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # Either limit may be missing; a tokenizer says a huge number then.
        context = min(getattr(model.config, "max_position_embeddings", math.inf), tokenizer.model_max_length)
        super().__init__(folder, model.requires_grad_(False).eval().to(device), tokenizer, context)

    @torch.no_grad()
    def score(self, rows: Sequence[ReplyIds]) -> list[float]:
        """See `RewardModel.score`.

        Padded on the right whatever the tokenizer says: causal attention never sees it there, and no position moves.
        """
        config = self.model.config.get_text_config()
        pad_token_id = config.pad_token_id
        ids_of = [row.prompt + row.reply for row in rows]
        # The score is read at the last token that is no pad. A model without a pad gets one that no row holds.
        fill = next(i for i in count() if not any(i in row for row in ids_of)) if pad_token_id is None else pad_token_id
        longest = max(map(len, ids_of))
        ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in ids_of])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids_of])
        device = self.model.device
        config.pad_token_id = fill
        try:
            return self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().tolist()
        finally:
            config.pad_token_id = pad_token_id
