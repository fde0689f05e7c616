"""Keys, tokens and passwords, masked wherever a command line, an address or a server's reply is written or shown."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
LEAST = 6  # characters: a shorter value occurs in too many words to be replaced
# How secrets are named, except the special tokens of a tokenizer.
_NAME = (
    r"(?!(?:[\w.-]*[_.-])?(?:pad|eos|bos|unk|sep|cls|mask|image)_token)(?:[\w.-]*[_.-])?"
    r"(?:(?:api|access|secret|private|auth)[ _-]?key|passw(?:or)?d|passphrase|secret|authorization|credentials?|token)"
)
_NAMED = re.compile(rf"\s*{_NAME}\s*", re.IGNORECASE)
# "api_key=VALUE", "--judge_option=api_key=VALUE"
_ARGUMENT = re.compile(rf"((?:--[\w-]+=)?\s*(?:--)?{_NAME}\s*=)(.+)", re.IGNORECASE | re.DOTALL)
_USER = re.compile(r"(?<=://)[^\s/?#\"']*@")  # user:password@ in an address
# After the name of a secret: its value, in JSON, in a header, in a query, in words.
_IN_TEXT = re.compile(
    rf"((?<![\w.-]){_NAME}[\"']?\s*(?:=|:(?=\s*[\"'])|(?<!\btoken):)\s*[\"']?(?:bearer\s+|basic\s+)?)([^\s\"',;&<>()]+)",
    re.IGNORECASE,
)
_IN_QUERY = re.compile(r"((?<=[?&])(?:key|sig|signature)=)[^\s&#\"']+", re.IGNORECASE)
_SHAPED = re.compile(
    r"\b(?:sk-[\w*-]{8,}|hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|(?<=[Bb]earer )(?=\S*\d)\S{8,}|(?<=[Bb]asic )(?=\S*[\d=])[\w+/=]{12,})"
)


def is_secret(name: str) -> bool:
    """Whether what is named so is a secret: api_key, hub_token, OPENAI_API_KEY, but not max_tokens or pad_token."""
    return bool(_NAMED.fullmatch(name.removeprefix("--")))


def masked(text: str, *values: str) -> str:
    """Mask what looks or is named like a secret, users in addresses, `values`, and secrets of the environment."""
    text = without(text, *values, *(value for name, value in os.environ.items() if is_secret(name)))
    text = _SHAPED.sub(MASK, _USER.sub(f"{MASK}@", text))
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_TEXT.sub(rf"\1{MASK}", text))


def without(text: str, *values: str) -> str:
    """Mask these values and nothing else: for data, where "password: x" may be an answer."""
    for value in sorted({value for value in values if len(value) >= LEAST}, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def masked_values(values: Any, name: str = "") -> Any:
    """Copy lists and mappings with the secrets among their values masked."""
    if isinstance(values, Mapping):
        return {key: masked_values(value, str(key)) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [masked_values(value, name) for value in values]
    if values is not None and is_secret(name):
        return MASK
    return masked(values) if isinstance(values, str) else values


def command_line(*words: str) -> str:
    """Write a command as a shell reads it, without its secrets."""
    values = secret_values(words)
    return shlex.join(text + MASK if secret else masked(text, *values) for text, secret in _parted(words))


def secret_values(arguments: Sequence[str]) -> list[str]:
    """The secrets among arguments: values of flags and options named so, users and passwords of addresses."""
    values = [secret for _, secret in _parted(arguments)]
    for user in (user for argument in arguments for user in _USER.findall(argument)):
        values += [user[:-1], *user[:-1].split(":", 1)[1:]]
    return [value for value in values if value]


def _parted(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument as (what may be shown, the secret that follows it)."""
    before = ""
    for argument in arguments:
        if before.startswith("--") and is_secret(before) and not argument.startswith("--"):
            yield "", argument
        elif named := _ARGUMENT.fullmatch(argument):
            yield named[1], named[2]
        else:
            yield argument, ""
        before = argument
