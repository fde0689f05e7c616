"""Texts in, classes out, in order and at constant memory: what a server or a file of millions of rows needs.

Texts are read a window at a time, sorted by length inside it, and run in batches with hardly any padding. Only inputs
go through, each pooled at its last token; no lm_head ever runs. Padding stands on the right, where nothing that is
pooled can look at it, so that there is no attention mask to slow the kernels down either. It knows texts and a
classifier's folder, and neither files of texts nor labels to hold against.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dual_head.backbone.decoder import BRANCH_TOLERANCE
from dual_head.backbone.dtypes import FLOATS, require_dtype
from dual_head.backbone.fingerprint import tokenizer_fingerprint
from dual_head.backbone.load import context_length
from dual_head.classify.calibration import load_calibration, probabilities
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions, cut_ids, input_ids_of
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.tune import fold_adapters
from dual_head.classify.types import Example
from dual_head.data.conversation import first_ids
from dual_head.errors import DualHeadError
from dual_head.model.pretrained import load_tokenizer

__all__ = ["WINDOW", "Prediction", "Predictor", "Scored"]

WINDOW = 4096  # texts read at a time
TOKENS, CPU_TOKENS = 8192, 1024  # of a batch: what fills an accelerator drives a CPU out of its caches
DEFAULT = ClassifyTokenizeOptions()


class Scored(NamedTuple):
    """Class logits [K] of one text, in fp32, and whether the text had to be cut."""

    logits: NDArray[np.float32]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a text is.

    label and index: of the most probable class, or (several labels a text) of each that is probable enough;
    probabilities: of every class by name; truncated: whether only a part of the text was read.
    """

    label: str | tuple[str, ...]
    index: int | tuple[int, ...]
    probabilities: dict[str, float]
    truncated: bool = False


class Predictor:
    """A classifier at work: `load` it, then `predict` as often as there are texts.

    temperature: probabilities are softmax(l / T); threshold: least probability of a label, where a text may have
    several; batch_tokens: of a batch, padding included (by default 8192, 1024 on a CPU); window: texts that are read,
    and sorted by length, at a time; autocast: multiply in bf16, whatever the weights are. Texts are written and cut as
    in training (config.text). Errors: options out of range.
    """

    def __init__(
        self,
        model: DualHeadReasoningModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float = 1.0,
        threshold: float = 0.5,
        batch_tokens: int | None = None,
        max_rows_per_batch: int = 512,
        window: int = WINDOW,
        autocast: bool = False,
    ):
        if batch_tokens is None:
            batch_tokens = CPU_TOKENS if model.decoder.output_device.type == "cpu" else TOKENS
        if min(batch_tokens, max_rows_per_batch, window) < 1 or not temperature > 0:
            raise DualHeadError("batch_tokens, max_rows_per_batch and window are at least 1, and temperature above 0.")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.temperature, self.threshold = temperature, threshold
        self.batch_tokens, self.max_rows_per_batch, self.window = batch_tokens, max_rows_per_batch, window
        self.autocast = autocast
        names: Any = model.config.id2label
        self.labels: tuple[str, ...] = tuple(str(names[i]) for i in range(model.config.num_labels or 0))
        text: dict[str, Any] = model.config.text or {}
        longest = text.get("max_input_length") or context_length(model.decoder.config) or DEFAULT.max_input_length
        # Training drops inputs that are too long where it is not told to cut them; here none may be lost.
        side: Any = "start" if text.get("truncate_inputs") == "start" else "end"
        self._lengths = ClassifyTokenizeOptions(max_input_length=longest, truncate_inputs=side)
        self._first = len(first_ids(tokenizer))
        # Any id does, since nothing looks at it; GPT-2 warns about the one that its config names.
        self._fill = int(model.decoder.config.pad_token_id == 0)
        self._masked = self._looks_ahead()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: str | Path | PreTrainedModel | None = None,
        device: str | torch.device | None = None,
        dtype: str = "auto",
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        temperature: float | None = None,
        **options: Any,
    ) -> "Predictor":
        """Load a classifier's folder (or a name on the hub) with its tokenizer and calibration.json.

        backbone: another place of the one it was trained on; device: the accelerator where there is one; dtype: of
        the weights, as they are stored by default; temperature: instead of the calibration's; options: as the class
        has them. Adapters are folded into the weights, so that they cost no time, unless `backbone` is a model of the
        caller's. Errors: as `DualHeadReasoningModel.from_pretrained`, another tokenizer, a device that is not there.
        """
        require_dtype(dtype)
        model = DualHeadReasoningModel.from_pretrained(
            folder,
            backbone=backbone,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = load_tokenizer(str(folder), trust_remote_code)
        if model.config.tokenizer_fingerprint not in (None, tokenizer_fingerprint(tokenizer)):
            raise DualHeadError(
                f"The tokenizer in '{folder}' is not the one that the classifier was trained with. Copy it again."
            )
        if not isinstance(backbone, nn.Module):
            fold_adapters(model.decoder.lm)
            if dtype in FLOATS:
                _cast(model.decoder, getattr(torch, dtype))
        if device_map is None:
            _place(model, device)
        temperature = load_calibration(folder).temperature if temperature is None else temperature
        return cls(model, tokenizer, temperature=temperature, **options)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.model.config.multi_label

    def predict(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Classify texts in their order, never reading further ahead than one window.

        Every text gets a prediction: one too long is cut and flagged, an empty one is classified like any other.
        Spaces around a text are left out, as in training. Errors: a text that is not a string.
        """
        for texts_read in _windows(texts, self.window):
            logits, cut = self._score(texts_read)
            shares = probabilities(logits, temperature=self.temperature, multi_label=self.multi_label)
            for row, truncated in zip(shares, cut, strict=True):
                yield self._prediction(row, truncated)

    def score(self, texts: Iterable[str]) -> Iterator[Scored]:
        """Give the class logits of texts in their order, as no temperature has touched them; see `predict`."""
        for texts_read in _windows(texts, self.window):
            yield from map(Scored, *self._score(texts_read))

    # ---- one window ------------------------------------------------------------------------------------------

    def _score(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bool]]:
        """Logits [n, K] of a window of texts, and which of them were cut."""
        ids, cut = self._encode(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)  # what needs most memory goes first
        device, parts = self.model.decoder.output_device.type, []
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            try:
                parts = [self._run([ids[i] for i in batch]) for batch in self._batches(order, ids)]
                logits = torch.cat(parts).float().cpu().numpy()  # once a window: a copy waits for all that runs
            except torch.OutOfMemoryError as error:
                raise DualHeadError(
                    f"A batch of {self.batch_tokens} tokens does not fit into memory. Lower batch_tokens "
                    "(--batch_tokens), or load with dtype='bfloat16'."
                ) from error
        back = np.empty_like(logits)
        back[order] = logits
        return back, cut

    def _encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids as training makes them, cut where they are too long, and which were."""
        limit = self._lengths.max_input_length
        whole = list(input_ids_of([Example(_unicode(text.strip())) for text in texts], self.tokenizer))
        cut = [len(row) > limit for row in whole]
        pairs = zip(whole, cut, strict=True)
        return [cut_ids(row, self._lengths, first=self._first) if long else row for row, long in pairs], cut

    def _batches(self, order: list[int], ids: list[list[int]]) -> Iterator[list[int]]:
        """Neighbours in length, as many as their tokens and padding allow."""
        start = 0
        while start < len(order):
            longest = len(ids[order[start]])
            rows = min(self.max_rows_per_batch, max(1, self.batch_tokens // longest))
            yield order[start : start + rows]
            start += rows

    def _run(self, ids: list[list[int]]) -> Tensor:
        """Logits [B, K] of one batch, the longest row first, each row pooled at its last token.

        i i i i i        no mask: a causal decoder never looks at the padding behind
        i i i . .
        i i . . .
        """
        device, longest = self.model.get_input_embeddings().weight.device, len(ids[0])
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.tensor([row + [self._fill] * (longest - len(row)) for row in ids])
        mask = None
        if self._masked and len(ids[-1]) < longest:
            mask = (torch.arange(longest) < lengths[:, None]).long().to(device)
        return self.model(padded.to(device), attention_mask=mask, pool_at=(lengths - 1).to(device)).logits

    @torch.inference_mode()
    def _looks_ahead(self) -> bool:
        """Whether hidden states depend on what follows them, tried on a few tokens: then padding needs a mask."""
        device = self.model.get_input_embeddings().weight.device
        ids = torch.arange(6, device=device)[None] % self.model.decoder.shape.vocab_size
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            long, short = (
                self.model.decoder(tokens)[0].last_hidden_state[0, :3].float() for tokens in (ids, ids[:, :3])
            )
        narrow = 2 if self.autocast else self.model.dtype.itemsize
        return bool((long - short).norm() > BRANCH_TOLERANCE[narrow] * short.norm())

    def _prediction(self, shares: NDArray[np.float64], truncated: bool) -> Prediction:
        listed = shares.tolist()
        by_name = dict(zip(self.labels, listed, strict=True))
        if self.multi_label:
            indices = tuple(i for i, share in enumerate(listed) if share >= self.threshold)
            return Prediction(tuple(self.labels[i] for i in indices), indices, by_name, truncated)
        best = int(shares.argmax())
        return Prediction(self.labels[best], best, by_name, truncated)


def _windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise DualHeadError("Texts come as a list or another iterable, even if there is only one: [text].")
    rest, before = iter(texts), 0
    while window := list(islice(rest, size)):
        for place, text in enumerate(window, before + 1):
            if not isinstance(text, str):
                raise DualHeadError(
                    f"Text {place} is not a string but {str(text)[:60]}. Leave it out, or give '' for it."
                )
        before += len(window)
        yield window


def _unicode(text: str) -> str:
    """The text, with what no tokenizer takes (a lone surrogate, which JSON may hold) as a question mark."""
    return text if text.isascii() else text.encode(errors="replace").decode()


# ---- making a loaded model fast ----------------------------------------------------------------------------


def _cast(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights a dtype, and no buffer: rotary frequencies rounded to bf16 misplace distant tokens."""
    for parameter in decoder.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _place(model: DualHeadReasoningModel, device: str | torch.device | None) -> None:
    if device is None:
        # That torch was built for an accelerator does not mean that there is one.
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        nn.Module.to(model, torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DualHeadError(f"Cannot use the device {device}: {reason} Choose another, as cpu.") from error
