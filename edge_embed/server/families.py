"""How each family of clients wants to be told that something went wrong. One table of statuses, one body shape each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_embed import errors
from edge_embed.errors import EdgeEmbedError, RequestShapeError, http_status


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of clients.

    Attributes:
        name: what it is called in logs and in the description of the interface.
        body: error and status to the JSON that its clients expect.
        statuses: where its statuses differ from ``errors.CODES``.
    """

    name: str
    body: Callable[[EdgeEmbedError, int], dict[str, Any]]
    statuses: Mapping[type[EdgeEmbedError], int] = field(default_factory=dict)

    def status(self, error: EdgeEmbedError) -> int:
        """The HTTP status of an error."""
        return self.statuses.get(type(error)) or http_status(error)


def sentence(error: EdgeEmbedError) -> str:
    """What was wrong and what to do, in one line."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _openai(error: EdgeEmbedError, status: int) -> dict[str, Any]:
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "service_unavailable_error",
    }
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    if isinstance(error, errors.RouteNotFoundError):
        code = None
    param = error.param if isinstance(error, RequestShapeError) else None
    return {"error": {"message": sentence(error), "type": kind, "param": param, "code": code}}


def _ollama(error: EdgeEmbedError, _: int) -> dict[str, Any]:
    if isinstance(error, errors.TextTooLongError):  # the words that its clients look for
        return {"error": f"the input length exceeds the context length: {sentence(error)}"}
    if isinstance(error, RequestShapeError) and error.param == "input":
        return {"error": f"invalid input type: {sentence(error)}"}
    if isinstance(error, errors.ModelNotFoundError):
        return {"error": f"model not found: {sentence(error)}"}
    return {"error": sentence(error)}


def _tei(error: EdgeEmbedError, status: int) -> dict[str, Any]:
    kinds = {424: "Backend", 429: "Overloaded", 503: "Unhealthy"}
    return {"error": sentence(error), "error_type": kinds.get(status, "Validation" if status < 500 else "Backend")}


def _rerank(error: EdgeEmbedError, status: int) -> dict[str, Any]:
    """What TEI's and Ollama's clients read, Cohere's, and Jina's and Voyage's, in one."""
    said = _tei(error, status)
    return {**said, "message": said["error"], "detail": said["error"]}


def _cohere(error: EdgeEmbedError, _: int) -> dict[str, Any]:
    return {"message": sentence(error)}


# What is wrong with a request is 400 for most clients, whatever it is.
_BAD_REQUEST: Final[dict[type[EdgeEmbedError], int]] = {
    errors.InvalidTextError: 400,
    errors.InvalidOptionError: 400,
    errors.DatabaseMismatchError: 400,
}
_UNPROCESSABLE: Final[dict[type[EdgeEmbedError], int]] = {
    errors.RequestShapeError: 422,
    errors.TextTooLongError: 422,
    errors.InvalidDimensionError: 422,
    errors.UnknownPromptError: 422,
    errors.WrongModelKindError: 424,
    errors.UnsupportedModelError: 424,
    errors.NonFiniteError: 424,
}

OPENAI: Final = Family("OpenAI", _openai, _BAD_REQUEST)
OLLAMA: Final = Family("Ollama", _ollama, {**_BAD_REQUEST, errors.QueueFullError: 503})
TEI: Final = Family("text-embeddings-inference", _tei, _UNPROCESSABLE)
RERANK: Final = Family("rerank", _rerank, _UNPROCESSABLE)
COHERE: Final = Family("Cohere", _cohere, _BAD_REQUEST)
