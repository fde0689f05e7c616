"""A model that answers: guides at a strength, a PEFT adapter, or a plain causal LM.

What it is can be told from its files; the model is loaded when it is first asked. All kinds are given the same token
ids and decode in the same way, whatever their own settings say. It knows models and prompts; nothing of what is kept.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone import context_length, load_backbone, load_config
from dual_head.data import Dropped
from dual_head.data.conversation import write
from dual_head.dtypes import automatic_dtype, stored_dtype
from dual_head.errors import DualHeadError
from dual_head.evaluate.exchange import content_of
from dual_head.evaluate.systems.identity import Kind, digest, made_of, tokenizer_identity
from dual_head.evaluate.systems.specs import SystemSpec
from dual_head.evaluate.types import Answer, Decoding, Question
from dual_head.guides.second_model import adapted, adapter_config
from dual_head.model.aligned import AlignedModel
from dual_head.model.alpha import resolve_alpha
from dual_head.model.generate import Prompt, encode_prompts
from dual_head.model.pretrained import find_tokenizer, read_config

__all__ = ["ModelSystem"]


class _Reply(NamedTuple):
    text: str
    tokens: int
    finished: bool


class ModelSystem:
    """Guides, an adapter or a plain causal LM: what it is made of is read at once, the model when it is asked."""

    def __init__(
        self,
        spec: SystemSpec,
        kind: Kind,
        *,
        dtype: str = "auto",
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        self.name, self.path, self.kind = spec.name, spec.path, kind
        self._place = str(Path(spec.path).expanduser()) if Path(spec.path).expanduser().exists() else spec.path
        self._dtype, self._device, self._trust = dtype, device, trust_remote_code
        self._model: PreTrainedModel | None = None
        self.alpha: Mapping[str, float] = self._strengths(spec)
        self.recorded: Mapping[str, Any] | None = None

    def _strengths(self, spec: SystemSpec) -> dict[str, float]:
        if self.kind != "guides":
            if spec.alpha is not None:
                raise DualHeadError(f"'{self.name}' has no guides, so it has no alpha. Leave out the '@'.")
            return {}
        config = read_config(self._place)
        defaults = config.alpha or {}
        try:
            acting, strengths = resolve_alpha(spec.alpha, defaults=defaults, rows=1, fusion=config.fusion)
        except DualHeadError as error:
            raise DualHeadError(f"The system '{self.name}': {error}") from error
        own = dict(zip(acting.names, strengths[0].tolist(), strict=True))
        return {name: own.get(name, 0.0) for name in defaults}

    # ---- what it is, from its files ----------------------------------------------------------------------

    @cached_property
    def _base(self) -> str:
        """Where the model is that the guides or the adapter go on; a plain model is its own."""
        if self.kind == "guides":
            return read_config(self._place).backbone_name_or_path or ""
        adapter = adapter_config(self._place)
        return adapter["base_model_name_or_path"] if adapter else self._place

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of its language model; of guides, as they recorded it where the backbone is away."""
        try:
            return load_config(self._base, trust_remote_code=self._trust)
        except DualHeadError as error:
            recorded = read_config(self._place).backbone_config if self.kind == "guides" else None
            if isinstance(recorded, PreTrainedConfig):
                return recorded
            raise DualHeadError(f"'{self.name}' needs '{self._base}'. {error}") from error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside it, or beside what it goes on. Errors: none there."""
        recorded = read_config(self._place).tokenizer_fingerprint if self.kind == "guides" else None
        found = find_tokenizer((self._place, self._base), recorded)
        if found is None:
            raise DualHeadError(f"'{self.name}' has no tokenizer of its own. Save it to '{self.path}'.")
        return found

    @property
    def identity(self) -> str:
        """Digest of its weights, the strengths that act, the dtype and the tokenizer."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        chosen = {"auto": automatic_dtype, "stored": stored_dtype}.get(self._dtype)
        dtype = chosen(self.config) if chosen else self._dtype
        return digest(
            {
                "made of": made_of(self._place),
                "alpha": dict(self.alpha),
                "dtype": str(dtype).removeprefix("torch."),
                "tokenizer": tokenizer_identity(self.tokenizer),
            }
        )

    # ---- the model ---------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The model, loaded when it is first wanted; what ends a reply is its own, all other decoding is ours."""
        if self._model is None:
            model: Any = self._load()
            try:
                model.to(self._device or model.device)
            except (RuntimeError, AssertionError) as error:
                raise DualHeadError(f"Cannot use the device {self._device}: {str(error).splitlines()[0]}") from error
            own = model.generation_config
            ends = own.eos_token_id if own is not None else None
            ends = self.tokenizer.eos_token_id if ends is None else ends
            # A model's own penalties and the like would make its decoding another than the others'.
            model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self._pad(own, ends))
            self._model = model.eval()
        return self._model

    def _load(self) -> PreTrainedModel:
        options: Any = {"dtype": self._dtype, "trust_remote_code": self._trust}
        if self.kind == "guides":
            model = AlignedModel.from_pretrained(self._place, **options)
            model.require_same_tokenizer(self.tokenizer)
            return model
        lm = load_backbone(self._base, **options)
        if self.kind == "adapter":
            lm = adapted(lm, self._place)
        return lm.requires_grad_(False)

    def _pad(self, own: GenerationConfig | None, ends: Any) -> int:
        first = ends[0] if isinstance(ends, list) else ends
        pads = (getattr(own, "pad_token_id", None), self.tokenizer.pad_token_id, first, 0)
        return next(pad for pad in pads if isinstance(pad, int))

    def release(self) -> None:
        """Let go of the model."""
        self._model = None

    # ---- asking ------------------------------------------------------------------------------------------

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Say that a question leaves no room for replies of full length, or that the chat template refuses it."""
        _require_conversation(question)
        whole = question.prompt
        for said in question.follow_ups:
            whole = _next_turn(whole, "", said)
        (written,) = write([(whole, ())], self.tokenizer)
        if isinstance(written, Dropped):
            return f"'{self.name}' cannot be asked it: {written}"
        context, needed = context_length(self.config), len(question.asked) * decoding.max_new_tokens
        if context is None or len(written.prompt) + needed <= context:
            return None
        return f"with {needed} new tokens it exceeds the {context} of '{self.name}'"

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Answer one batch: greedy replies, or replies drawn from the decoding's seed and these very questions.

        Errors: a decoding that is none, a text with a second turn, a prompt that leaves no room for a reply.
        """
        options = _options(decoding)
        for question in questions:
            _require_conversation(question)
        prompts = {question.id: question.prompt for question in questions}
        replies: dict[str, list[_Reply]] = {question.id: [] for question in questions}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(_seed(questions, decoding))
            for turn in range(max((len(question.asked) for question in questions), default=0)):
                asked = [question for question in questions if turn < len(question.asked)]
                for question in asked if turn else ():
                    last = replies[question.id][-1].text
                    prompts[question.id] = _next_turn(prompts[question.id], last, question.asked[turn])
                said = self._reply({question.id: prompts[question.id] for question in asked}, options)
                for name, reply in said.items():
                    replies[name].append(reply)
        return [_answer(question.id, replies[question.id]) for question in questions]

    def _reply(self, prompts: Mapping[str, Prompt], options: Mapping[str, Any]) -> dict[str, _Reply]:
        """Reply once to each prompt; shorter prompts are padded on the left."""
        batch = encode_prompts(list(prompts.values()), self.tokenizer).to(self.model.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert isinstance(ids, Tensor)
        assert isinstance(mask, Tensor)
        context = context_length(self.config)
        for name, length in zip(prompts, mask.sum(1).tolist(), strict=True):
            if context is not None and length + options["max_new_tokens"] > context:
                raise DualHeadError(
                    f"The question '{name}' has {length} tokens for '{self.name}', whose context of {context} leaves "
                    f"no room for {options['max_new_tokens']} new ones. Leave it out, or lower max_new_tokens."
                )
        strengths = {"alpha": dict(self.alpha)} if self.kind == "guides" else {}
        sequences = self.model.generate(ids, attention_mask=mask, **options, **strengths)
        new = sequences[:, ids.shape[1] :].tolist()
        asked = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        replies = {name: self._said(*both) for name, both in zip(prompts, zip(asked, new, strict=True), strict=True)}
        # The reply to a conversation is a message, as exports and judges have it; a text is continued to the letter.
        messages = {name for name, prompt in prompts.items() if not isinstance(prompt, str)}
        return {
            name: reply._replace(text=reply.text.strip()) if name in messages else reply
            for name, reply in replies.items()
        }

    def _said(self, asked: list[int], new: list[int]) -> _Reply:
        """The reply as it continues what was asked; decoded alone it would lose the space it may begin with."""
        own = self.model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own]
        tokens = next((i for i, token in enumerate(new, 1) if token in ends), len(new))
        finished = tokens > 0 and new[tokens - 1] in ends
        words = new[: tokens - finished]
        before, whole, alone = (
            str(self.tokenizer.decode(part, skip_special_tokens=True)) for part in (asked, asked + words, words)
        )
        return _Reply(whole[len(before) :] if whole.startswith(before) else alone, tokens, finished)


def _answer(name: str, said: Sequence[_Reply]) -> Answer:
    texts, tokens, finished = zip(*said, strict=True)
    return Answer(question=name, replies=texts, tokens=tokens, finished=finished)


def _next_turn(prompt: Prompt, reply: str, said: str) -> Prompt:
    assert not isinstance(prompt, str)
    return (*prompt, {"role": "assistant", "content": reply}, {"role": "user", "content": said})


def _require_conversation(question: Question) -> None:
    if question.follow_ups and isinstance(question.prompt, str):
        raise DualHeadError(
            f"The question '{question.id}' is a text with a second turn, which only conversations have. Ask it as chat."
        )


def _options(decoding: Decoding) -> dict[str, Any]:
    """What transformers' generate is told; a model has no settings of its own left. Errors: a decoding that is none."""
    if decoding.max_new_tokens < 1 or decoding.temperature < 0 or decoding.top_k < 0 or not 0 < decoding.top_p <= 1:
        raise DualHeadError(
            "max_new_tokens is at least 1, temperature and top_k at least 0, and top_p above 0 and at most 1; "
            f"not {decoding}."
        )
    options = {"max_new_tokens": decoding.max_new_tokens, "do_sample": decoding.temperature > 0}
    if not decoding.temperature:
        return options
    return {**options, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}


def _seed(questions: Sequence[Question], decoding: Decoding) -> int:
    asked = json.dumps([decoding.seed, *map(content_of, questions)])
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:7])
