"""A model of this machine that answers: guides at a strength, a PEFT adapter, or a plain causal LM.

Its files tell what it is; the model is loaded when it is first asked. All models are given the same token ids and
decode in the same way, whatever their own settings say.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.dtypes import automatic_dtype, stored_dtype
from dual_head.backbone.fingerprint import digest
from dual_head.backbone.load import context_length, load_config
from dual_head.data import Dropped
from dual_head.data.conversation import write
from dual_head.errors import DualHeadError
from dual_head.evaluate.decode import pad_token, reply_text
from dual_head.evaluate.exchange import content_of
from dual_head.evaluate.systems.base import LoadOptions, System
from dual_head.evaluate.systems.identity import made_of, parts_of, tokenizer_identity
from dual_head.evaluate.systems.specs import SystemSpec
from dual_head.evaluate.types import Answer, Decoding, Question
from dual_head.model.generate import Prompt, encode_prompts, end_tokens
from dual_head.model.pretrained import find_tokenizer
from dual_head.serve.offline import generate_batch, is_faster
from dual_head.serve.settings import EngineSettings

__all__ = ["ModelSystem"]


class _Reply(NamedTuple):
    text: str
    tokens: int
    finished: bool


class ModelSystem(System):
    """A model of this machine: what it is made of is read at once, the model when it is asked."""

    guided: ClassVar[bool] = False

    def __init__(self, spec: SystemSpec, load: LoadOptions):
        place = Path(spec.path).expanduser()
        self.place = str(place) if place.exists() else spec.path
        self._model: PreTrainedModel | None = None
        super().__init__(spec, load)

    # ---- what a kind says of itself ----------------------------------------------------------------------

    @property
    @abstractmethod
    def base_path(self) -> str:
        """Where the causal LM is that the system is made of."""

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """Load the model."""

    @property
    def recorded_config(self) -> PreTrainedConfig | None:
        """The configuration of its language model, where the system holds it too."""
        return None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """That of the tokenizer it was made with, where this is known."""
        return None

    @property
    def generate_options(self) -> dict[str, Any]:
        """What its `generate` takes beside what every model's takes."""
        return {}

    # ---- what it is, from its files ----------------------------------------------------------------------

    @property
    def parts(self) -> list[str]:
        """What its files name, and the base that it is loaded on."""
        return [*parts_of(self.place), *parts_of(self.base_path)]

    @property
    def load_options(self) -> dict[str, Any]:
        """What every loader takes."""
        return {"dtype": self.load.dtype, "trust_remote_code": self.load.trust_remote_code}

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of its language model, or what was recorded of it where that is away."""
        try:
            return load_config(self.base_path, trust_remote_code=self.load.trust_remote_code)
        except DualHeadError as error:
            if (recorded := self.recorded_config) is not None:
                return recorded
            raise DualHeadError(f"'{self.name}' needs '{self.base_path}'. {error}") from error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside it, or beside what it goes on. Errors: none there."""
        tokenizer = find_tokenizer((self.place, self.base_path), self.tokenizer_fingerprint)
        if tokenizer is None:
            raise DualHeadError(f"'{self.name}' has no tokenizer of its own. Save it to '{self.path}'.")
        return tokenizer

    @property
    def chats(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def context(self) -> int | None:
        """As its configuration says."""
        return context_length(self.config)

    @property
    def identity(self) -> str:
        """Digest of its weights, the strengths that act, the dtype and the tokenizer."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        dtype_of = {"auto": automatic_dtype, "stored": stored_dtype}.get(self.load.dtype)
        dtype = dtype_of(self.config) if dtype_of else self.load.dtype
        return digest(
            {
                "made of": made_of(self.place),
                "alpha": dict(self.alpha),
                "dtype": str(dtype).removeprefix("torch."),
                "tokenizer": tokenizer_identity(self.tokenizer),
                **({"runs on": made_of(self.base_path)} if self.guided and self.load.other_precision else {}),
            }
        )

    # ---- the model ---------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The model, loaded when it is first needed; it says what ends a reply, all other decoding is ours."""
        if self._model is None:
            model: Any = self.load_model()
            device = self.load.device
            try:
                model.to(device or model.device)
            except (RuntimeError, AssertionError) as error:
                raise DualHeadError(f"Cannot use the device {device}: {str(error).splitlines()[0]}") from error
            settings = model.generation_config
            ends = settings.eos_token_id if settings is not None else None
            ends = self.tokenizer.eos_token_id if ends is None else ends
            # The model's own penalties and the like would make its decoding differ from the other systems'.
            model.generation_config = GenerationConfig(eos_token_id=ends)
            model.generation_config.pad_token_id = pad_token(settings, self.tokenizer, end_tokens(model))
            self._model = model.eval()
        return self._model

    def release(self) -> None:
        """Let go of the model."""
        self._model = None

    # ---- asking ------------------------------------------------------------------------------------------

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """Say that a question leaves no room for replies of full length, or that the chat template refuses it."""
        _require_conversation(question)
        prompt = question.prompt
        for follow_up in question.follow_ups:
            prompt = next_turn(prompt, "", follow_up)
        (conversation,) = write([(prompt, ())], self.tokenizer)
        if isinstance(conversation, Dropped):
            return f"'{self.name}' cannot be asked it: {conversation}"
        context, new_tokens = self.context, len(question.asked) * decoding.max_new_tokens
        if context is None or len(conversation.prompt) + new_tokens <= context:
            return None
        return f"with {new_tokens} new tokens it exceeds the {context} of '{self.name}'"

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Answer one batch: greedy replies, or replies drawn from the decoding's seed and these very questions.

        Errors: a text with a second turn, a prompt that leaves no room for a reply.
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
                batch = [question for question in questions if turn < len(question.asked)]
                for question in batch if turn else ():
                    last = replies[question.id][-1].text
                    prompts[question.id] = next_turn(prompts[question.id], last, question.asked[turn])
                turn_replies = self._reply({question.id: prompts[question.id] for question in batch}, options)
                for name, reply in turn_replies.items():
                    replies[name].append(reply)
        return [_answer(question.id, replies[question.id]) for question in questions]

    def _reply(self, prompts: Mapping[str, Prompt], options: Mapping[str, Any]) -> dict[str, _Reply]:
        """Reply once to each prompt; shorter prompts are padded on the left."""
        batch = encode_prompts(list(prompts.values()), self.tokenizer).to(self.model.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert isinstance(ids, Tensor)
        assert isinstance(mask, Tensor)
        context = self.context
        for name, length in zip(prompts, mask.sum(1).tolist(), strict=True):
            if context is not None and length + options["max_new_tokens"] > context:
                raise DualHeadError(
                    f"The question '{name}' has {length} tokens for '{self.name}', whose context of {context} leaves "
                    f"no room for {options['max_new_tokens']} new ones. Leave it out, or lower max_new_tokens."
                )
        # [pad pad p p p | r r end pad]: the prompt without its padding, and what is generated
        rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        if is_faster(self.model, len(rows), **options):
            settings = {"max_new_tokens": options["max_new_tokens"], "settings": EngineSettings(max_rows=len(rows))}
            pieces = generate_batch(self.model, rows, tokenizer=self.tokenizer, **settings, **self.generate_options)
            new = [[token.id for token in piece.tokens] for piece in pieces]
        else:
            sequences = self.model.generate(ids, attention_mask=mask, **options, **self.generate_options)
            new = sequences[:, ids.shape[1] :].tolist()
        replies = {name: self._read(*row) for name, *row in zip(prompts, rows, new, strict=True)}
        # The reply to a conversation is a message, whose outer spaces mean nothing; a text is continued to the letter.
        return {
            name: reply if isinstance(prompts[name], str) else reply._replace(text=reply.text.strip())
            for name, reply in replies.items()
        }

    def _read(self, prompt: list[int], new: list[int]) -> _Reply:
        """Cut what was generated at its first end."""
        ends = end_tokens(self.model)
        tokens = next((i for i, token in enumerate(new, 1) if token in ends), len(new))
        finished = tokens > 0 and new[tokens - 1] in ends
        return _Reply(reply_text(self.tokenizer, prompt, new[: tokens - finished]), tokens, finished)


def _answer(name: str, replies: Sequence[_Reply]) -> Answer:
    texts, tokens, finished = zip(*replies, strict=True)
    return Answer(question=name, replies=texts, tokens=tokens, finished=finished)


def next_turn(prompt: Prompt, reply: str, follow_up: str) -> Prompt:
    """A conversation after a reply and what the user says next."""
    assert not isinstance(prompt, str)
    return (*prompt, {"role": "assistant", "content": reply}, {"role": "user", "content": follow_up})


def _require_conversation(question: Question) -> None:
    if question.follow_ups and isinstance(question.prompt, str):
        raise DualHeadError(
            f"The question '{question.id}' is a text with a second turn, which only conversations have. Ask it as chat."
        )


def _options(decoding: Decoding) -> dict[str, Any]:
    """Arguments of transformers' generate; the model has no settings of its own left."""
    options = {"max_new_tokens": decoding.max_new_tokens, "do_sample": decoding.temperature > 0}
    if not decoding.temperature:
        return options
    return {**options, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}


def _seed(questions: Sequence[Question], decoding: Decoding) -> int:
    content = json.dumps([decoding.seed, *map(content_of, questions)])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])
