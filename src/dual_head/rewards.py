"""Rewards of finished replies: a Python function, or a sequence classifier from a folder.

A reward is any (prompt, reply) -> number. It knows how to find one and what counts as a number; nothing of
guides, or of who asks.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dual_head.data.tokenize import render
from dual_head.errors import DualHeadError
from dual_head.text import Prompt

Reward = Callable[[Prompt, str], float]  # (prompt, reply) to a finite number

FORMS = "A reward is module:function, called with prompt and reply, or the folder of a sequence classifier."


def load_reward(spec: str, *, device: torch.device | str = "cpu") -> tuple[str, Reward]:
    """Find a reward by "module:function" or by the folder of a classifier: its name, and what computes it.

    Named after the function or the folder. Errors: neither of them, what cannot be imported or called, a
    classifier that has not one label or no trained score.
    """
    if Path(spec).is_dir():
        return Path(spec).resolve().name, _classifier(spec, device)
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise DualHeadError(f"'{spec}' is no reward. {FORMS}")
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


def score(rewards: Mapping[str, Reward], prompt: Prompt, reply: str) -> dict[str, float]:
    """Compute every reward of one reply: {name: number}. Errors: one that fails, or gives no finite number."""
    return {name: _number(name, reward, prompt, reply) for name, reward in rewards.items()}


def _number(name: str, reward: Reward, prompt: Prompt, reply: str) -> float:
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
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise DualHeadError(
            f"The reward '{name}' gave {value!r} for the reply {reply!r}. It must return a finite number for every "
            "reply, the empty one too."
        )
    return number


def _classifier(folder: str, device: torch.device | str) -> Reward:
    """Score of prompt + reply as one text under a sequence classifier with one label."""
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DualHeadError(
            f"Could not load a reward model from '{folder}': {str(error).splitlines()[0]} Give the folder of a "
            "sequence classifier with one label and of its tokenizer."
        ) from error
    model, info = loaded
    if model.config.num_labels != 1 or info["missing_keys"]:
        raise DualHeadError(
            f"'{folder}' is no reward model: it needs one label (it has {model.config.num_labels}) and a trained "
            "score. Give a sequence classifier, not a language model."
        )
    model.requires_grad_(False).eval().to(device)
    # Either may be missing; a tokenizer says a huge number then.
    context = min(getattr(model.config, "max_position_embeddings", math.inf), tokenizer.model_max_length)

    @torch.no_grad()
    def reward(prompt: Prompt, reply: str) -> float:
        plain = isinstance(prompt, str)
        text = (prompt if plain else render(tuple(prompt), tokenizer)) + reply
        # A chat template writes its own special tokens into the text.
        batch = tokenizer(text, add_special_tokens=plain or not tokenizer.chat_template, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        if length > context:
            raise DualHeadError(
                f"A prompt and its reply have {length} tokens, and the reward model in '{folder}' reads {context}. "
                "Shorten the prompt, or generate less (--max_new_tokens)."
            )
        return model(**batch.to(device)).logits.item()

    return reward
