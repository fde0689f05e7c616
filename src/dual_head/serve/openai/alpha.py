"""The strength of each guide, from what a request says."""

from collections.abc import Mapping
from typing import Any

from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.model.alpha import LinearDecay, resolve_alpha
from dual_head.options.texts import parse_alpha
from dual_head.serve.openai.errors import Refused

Strength = float | LinearDecay
MEANING = "alpha is a number, or {guide: number}, or {guide: {start, end, tokens}} for a strength that decays"


def read_alpha(value: Any, config: AlignedConfig, param: str = "alpha") -> dict[str, Strength]:
    """The strength of every guide: a number is for all; a guide that a mapping does not name gets 0.

    Errors: a value of another kind, a guide that is not there, NaN, infinity, what the fusion does not take.
    """
    defaults = config.alpha or {}
    if isinstance(value, Mapping):
        strengths = {name: _strength(strength, param) for name, strength in value.items()}
    else:
        strengths = dict.fromkeys(defaults, _number(value, param))
        if value and not defaults:
            raise Refused("This model has no guide, so that alpha does nothing. Leave it out.", param)
    try:
        resolve_alpha(strengths, defaults=defaults, rows=1, fusion=config.fusion)
    except DualHeadError as error:
        raise Refused(str(error), param) from error
    return {name: strengths.get(name, 0.0) for name in defaults}


def text_alpha(text: str, param: str) -> Any:
    """Read "0.8" or "helpful=0.8,harmless=0.2". Errors: any other text, a guide that is named twice."""
    try:
        return parse_alpha(text)
    except DualHeadError as error:
        raise Refused(str(error), param) from error


def alpha_json(alpha: Mapping[str, Strength]) -> dict[str, Any]:
    """Strengths as JSON has them, which `read_alpha` reads."""
    return {name: vars(value) if isinstance(value, LinearDecay) else value for name, value in alpha.items()}


def _strength(value: Any, param: str) -> Strength:
    if not isinstance(value, Mapping):
        return _number(value, param)
    if set(value) != {"start", "end", "tokens"}:
        raise Refused(f"A strength that decays has start, end and tokens, not {', '.join(value) or 'nothing'}.", param)
    tokens = value["tokens"]
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens < 2**31:
        raise Refused("tokens of a strength that decays is a whole number from 1.", param)
    return LinearDecay(_number(value["start"], param), _number(value["end"], param), tokens)


def _number(value: Any, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused(f"{MEANING}, not {_kind(value)}.", param)
    try:
        return float(value)
    except OverflowError:
        raise Refused("alpha is too large. Give finite numbers.", param) from None


def _kind(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "a mapping", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)
