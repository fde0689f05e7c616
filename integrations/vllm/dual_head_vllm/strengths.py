"""The strength of each guide, from what a request of vLLM says: a number, a text, or a mapping of guides.

SamplingParams(extra_args={"alpha": {"helpful": 0.8, "harmless": 0.2}})
{"vllm_xargs": {"alpha": "helpful=0.8,harmless=0.2"}}        vLLM's fields of requests hold no mappings
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.model.alpha import resolve_alpha
from dual_head.options.texts import parse_alpha
from dual_head.serve.vllm import GUIDES, ServedGuides, read_guides

MEANING = "alpha is a number, or {guide: number}, or 'guide=number,guide=number'"


@cache
def _read(place: str) -> ServedGuides:
    return read_guides(place)


def guides_here() -> ServedGuides | None:
    """The guides that this process serves, by the environment; None where vLLM serves a plain model."""
    place = os.environ.get(GUIDES)
    return _read(place) if place else None


def guides_of(vllm_config: Any) -> ServedGuides | None:
    """The guides of an engine, by its config, which reaches workers on other machines too; else see `guides_here`."""
    model = vllm_config.model_config
    place = getattr(model.hf_config, "dual_head_guides", None) if model is not None else None
    return _read(place) if place else guides_here()


def read_strengths(value: Any, guides: ServedGuides) -> list[float]:
    """The strength of every guide, in their order: None is the defaults, and a guide that is not named gets 0.

    Errors: a value of another kind, a guide that is not there, NaN, infinity, what the fusion does not take.
    """
    if value is None:
        return list(guides.alpha.values())
    if isinstance(value, str):
        value = parse_alpha(value)
    each = value.values() if isinstance(value, Mapping) else [value]
    if wrong := [x for x in each if isinstance(x, bool) or not isinstance(x, (int, float))]:
        decays = " A strength that decays is not there on vLLM." if isinstance(wrong[0], Mapping) else ""
        raise DualHeadError(f"{MEANING}, not {wrong[0]!r}.{decays}")
    strengths, columns = resolve_alpha(value, defaults=guides.alpha, rows=1, fusion=guides.fusion)
    by_name = dict(zip(strengths.names, columns[0].tolist(), strict=True))
    return [by_name.get(name, 0.0) for name in guides.entries]


def of_request(params: Any, guides: ServedGuides) -> list[float]:
    """The strengths that SamplingParams say; the defaults for a request without any, as of a warm-up."""
    extra = getattr(params, "extra_args", None) or {}
    return read_strengths(extra.get("alpha"), guides)
