"""Refusals in OpenAI's form: {"error": {"message", "type", "param", "code"}}, which its clients raise as exceptions."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# What pydantic puts between the names of fields: the member of a union.
_MEMBER = re.compile(r"[A-Z].*|.*[\[(-].*|str|int|float|bool|none")
_TAGGED, _MAPPINGS = ("response_format",), ("logit_bias", "metadata")  # behind these: a member's tag, a client's key
_UNSUPPORTED = ("extra_forbidden", "none_required")


class Refused(Exception):
    """A request that is not answered.

    code: OpenAI's word for the reason, where it has one; retry_after: seconds until another try may help; headers: of
    the answer.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.param, self.status, self.code, self.headers = param, status, code, dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.body(), self.status, self.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: a name in it may hold half a character, which UTF-8 cannot."""
    return Response(json.dumps(content), status, headers, "application/json")


def refusal_of(error: Exception) -> Refused:
    """The refusal that an exception of FastAPI stands for; of any other, that the fault is the server's."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        words = _WORDS.get(error.status_code, str(error.detail))
        return Refused(words, status=error.status_code, headers=error.headers)
    return Refused("The server failed on this request. Its log says how.", status=500)


async def refuse(request: Request, error: Exception) -> Response:
    """FastAPI's handler of exceptions."""
    del request
    return refusal_of(error).response()


_WORDS = {
    400: "The body cannot be read as JSON.",
    404: "There is no such route. See /openapi.json for those there are.",
    405: "The route does not take this method. See /openapi.json.",
}


def _invalid(errors: Sequence[Any]) -> Refused:
    """What is wrong with a body; a field that is not supported first.

    Of a field with several forms there is an error for each. The one that the value is nearest to says most: it is not
    of another type, or else the place in it is the deepest.
    """
    error = min(errors, key=lambda e: (e["type"] not in _UNSUPPORTED, e["type"].endswith("_type"), -len(e["loc"])))
    place = error["loc"][1:]
    if error["type"] == "json_invalid":
        return Refused(f"The body is not JSON: {error['ctx']['error']} at character {place[0]}.")
    if not place:
        return Refused("The body must be a JSON object, sent as application/json.")
    param = _param(place)
    if error["type"] in _UNSUPPORTED:
        return Refused(f"'{param}' is not supported. Leave it out.", param)
    if error["type"] == "missing":
        return Refused(f"'{param}' is missing. Add it.", param)
    words = error["msg"].removeprefix("Value error, ").removesuffix(".").replace("Input should be", "it should be")
    return Refused(f"'{param}' has no valid value: {words[:1].lower()}{words[1:]}.", param)


def _param(place: Sequence[str | int]) -> str:
    """("messages", 0, "content", "list[TextPart]", 1, "type") is messages[0].content[1].type."""
    name, *rest = place
    if name in _MAPPINGS:
        rest = []
    words = str(name)
    for part in rest[name in _TAGGED :]:
        if isinstance(part, int):
            words += f"[{part}]"
        elif not _MEMBER.fullmatch(part):
            words += f".{part}"
    return words
