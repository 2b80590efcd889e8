"""The words that dialects share, and what they mean here. Pure."""

from __future__ import annotations

from typing import Final, Literal, TypeVar

from edge_embed.errors import RequestShapeError
from edge_embed.prompts import Role
from edge_embed.types import Precision, Truncate

T = TypeVar("T")

OutputType = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
_PRECISIONS: Final[dict[str, Precision]] = {
    "float": "float32",
    "base64": "float32",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}
# Cohere's and Voyage's input types, Jina's tasks. Those that are neither a query nor a document go without a role:
# the text is embedded with the default prompt, if there is one.
_ROLES: Final[dict[str, Role | None]] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "code.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
    "code.passage": "document",
    "classification": None,
    "clustering": None,
    "separation": None,
    "text-matching": None,
}


def one_of(**given: T | None) -> T | None:
    """The value of fields that mean the same; None where all are.

    Raises:
        RequestShapeError: two have different values.
    """
    said = {name: value for name, value in given.items() if value is not None}
    if len(set(said.values())) > 1:
        raise RequestShapeError(
            f"{' and '.join(said)} mean the same and have different values", param=next(iter(said)), hint="give one"
        )
    return next(iter(said.values()), None)


def role_of(word: str | None) -> Role | None:
    """Whether texts are queries or documents, from ``input_type`` or ``task``.

    Raises:
        RequestShapeError: an unknown word.
    """
    if word is None:
        return None
    if word.lower() not in _ROLES:
        raise RequestShapeError(
            f"the input type or task {word[:60]!r} is not known", param="input_type", hint=f"one of {', '.join(_ROLES)}"
        )
    return _ROLES[word.lower()]


def precision_of(output: str | None) -> Precision:
    """What each value of a vector becomes."""
    return "float32" if output is None else _PRECISIONS[output]


def truncate_of(truncate: bool | str | None, direction: str | None = None) -> Truncate | None:
    """What happens to a text above the limit: ``true``, ``false``, or Cohere's NONE, START, END; and at which end.

    Raises:
        RequestShapeError: an unknown word.
    """
    ends: dict[str, Truncate] = {"right": "right", "left": "left", "end": "right", "start": "left"}
    end = ends.get("right" if direction is None else direction.lower())
    if end is None:
        raise RequestShapeError(
            f"the truncation direction {str(direction)[:20]!r} is not known", param="truncation_direction",
            hint="left or right",
        )  # fmt: skip
    if truncate is None:
        return None if direction is None else end
    if isinstance(truncate, bool):
        return end if truncate else "error"
    if truncate.lower() == "none":
        return "error"
    if truncate.lower() not in ends:
        raise RequestShapeError(
            f"truncate {truncate[:20]!r} is not known",
            param="truncate",
            hint="true, false, NONE, START, END, left or right",
        )
    return ends[truncate.lower()]
