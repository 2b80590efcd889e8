"""The exception tree: drawn as it is, coded to its leaves, raised at its leaves."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

from edge_embed import errors
from edge_embed.errors import (
    CODES,
    EdgeEmbedError,
    InputError,
    InvalidOptionError,
    NonFiniteError,
    TextTooLongError,
    exit_code,
    http_status,
)

ROOT = Path(__file__).parent.parent
CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, EdgeEmbedError)
}


def leaves() -> set[type[EdgeEmbedError]]:
    return {kind for kind in CLASSES.values() if not kind.__subclasses__()}


def drawn_tree() -> dict[str, str | None]:
    """Class -> parent, read from the docstring's drawing by its indentation."""
    assert errors.__doc__ is not None
    parents: dict[str, str | None] = {}
    stack: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"[\s│├└─]*(\w+Error)\b", line):
            column, name = found.start(1), found.group(1)
            while stack and stack[-1][0] >= column:
                stack.pop()
            parents[name] = stack[-1][1] if stack else None
            stack.append((column, name))
    return parents


def test_the_docstring_draws_every_class_below_its_base() -> None:
    expected = {name: kind.__base__.__name__ for name, kind in CLASSES.items() if kind is not EdgeEmbedError}
    assert {**expected, "EdgeEmbedError": None} == drawn_tree()


def test_exactly_the_leaves_have_codes() -> None:
    assert leaves() == set(CODES)


def test_statuses_are_http_errors_and_exit_codes_follow_the_branch() -> None:
    branches = {
        errors.InputError: 2,
        errors.ModelError: 3,
        errors.ConversionError: 4,
        errors.EngineError: 5,
        errors.HubError: 6,
        errors.ServerError: 7,
    }
    expected = {kind: code for kind in CODES for base, code in branches.items() if issubclass(kind, base)}
    assert expected == {kind: code for kind, (_, code) in CODES.items()}
    assert {True} == {400 <= status < 600 for status, _ in CODES.values()}


def test_a_raised_error_finds_its_codes() -> None:
    error = TextTooLongError(0, 20, 10)
    assert (400, 2) == (http_status(error), exit_code(error))


def raised_names(path: Path) -> set[str]:
    """Names of ours that a source file raises directly."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node.exc.func for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = [call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls]
    return {name for name in names if name in CLASSES}


@pytest.mark.parametrize(
    "path",
    [path for folder in ("edge_embed", "convert") for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_leaves_are_raised(path: Path) -> None:
    """An inner node has no status and no exit code."""
    assert set() == raised_names(path) - {kind.__name__ for kind in leaves()}


def test_str_shows_the_message_and_below_it_the_hint() -> None:
    assert "wrong\ndo this" == str(InvalidOptionError("wrong", hint="do this"))


def test_str_of_an_error_without_a_hint_is_one_line() -> None:
    assert "wrong" == str(InvalidOptionError("wrong"))


def test_too_long_carries_its_numbers_and_names_them() -> None:
    error = TextTooLongError(3, 700, 512)
    assert (3, 700, 512) == (error.index, error.n_tokens, error.limit)
    assert "text 3 has 700 tokens, and the limit is 512" == error.message
    assert "truncat" in error.hint


def test_non_finite_names_the_first_ten_texts_and_carries_all() -> None:
    error = NonFiniteError(range(12), partial="the others")
    assert tuple(range(12)) == error.indices
    assert "the others" == error.partial
    assert "12 text(s): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in error.message


def test_one_except_clause_catches_a_branch() -> None:
    with pytest.raises(InputError):
        raise TextTooLongError(0, 2, 1)


@pytest.mark.parametrize(
    "error",
    [InvalidOptionError("wrong", hint="do this"), TextTooLongError(3, 700, 512), NonFiniteError([1, 2], "others")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_pickling(error: EdgeEmbedError) -> None:
    """A process pool carries errors to its caller that way; one that cannot be pickled breaks the pool."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(error) is type(copy)
    assert str(error) == str(copy)
    assert vars(error) == vars(copy)
