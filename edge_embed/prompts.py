"""Which text is put around an input: a named prompt, a literal one, an instruction, or a reranker's template.

Pure string work. A template is filled in one pass: nothing inside an instruction or a text is ever substituted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from edge_embed.errors import InvalidOptionError, UnknownPromptError

INSTRUCTION_SLOT = "{instruction}"
Role = Literal["query", "document"]
# What published models call the prompts of queries and of documents; the first that a model has counts.
ROLES: Final[Mapping[Role, tuple[str, ...]]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_SLOT: Final = re.compile(r"\{(instruction|query|document)\}")
# How Qwen3-Reranker names the task. llama.cpp's converter writes the default one in its place.
_TASK: Final = re.compile(r"<Instruct>: (?P<task>[^\n{}]+)\n")


def resolve(
    prompts: Mapping[str, str],
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    instruction: str | None = None,
    role: Role | None = None,
    default_prompt_name: str | None = None,
    instruction_template: str | None = None,
) -> str:
    """The prefix for a call's texts.

    Args:
        prompts: the model's prompts, name -> prefix.
        prompt: a literal prefix.
        prompt_name: a name from ``prompts``.
        instruction: a task description, put into ``instruction_template``.
        role: what the texts are, where none of the three is given: the model's prompt for these is used, if it has one.
        default_prompt_name: the name used where nothing else is; may be None.
        instruction_template: text with ``{instruction}`` in it, from the model; may be None.

    Returns:
        The prefix, possibly empty.

    Raises:
        InvalidOptionError: more than one of the three, an instruction for a model without a template, a role that is
            none, or text that no encoding can carry.
        UnknownPromptError: a name that the model does not have.
    """
    given = {"prompt": prompt, "prompt_name": prompt_name, "instruction": instruction}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise InvalidOptionError(f"{' and '.join(chosen)} were given together", hint="give one of them")
    for option in chosen:
        if not isinstance(given[option], str):
            raise InvalidOptionError(f"{option} must be a string, got {type(given[option]).__name__}")
    if role is not None and role not in ROLES:
        raise InvalidOptionError(f"role is {role!r}", hint=f"one of {', '.join(ROLES)}")
    return checked(
        "the prompt",
        _chosen(prompts, prompt, prompt_name, instruction, role, default_prompt_name, instruction_template),
    )


def _chosen(
    prompts: Mapping[str, str],
    prompt: str | None,
    prompt_name: str | None,
    instruction: str | None,
    role: Role | None,
    default_prompt_name: str | None,
    instruction_template: str | None,
) -> str:
    if prompt is not None:
        return prompt
    if instruction is not None:
        if instruction_template is None:
            raise InvalidOptionError(
                "this model has no template for instructions",
                hint='it was not trained with them; put any text before the input with prompt="..."',
            )
        return instruction_template.replace(INSTRUCTION_SLOT, instruction, 1)
    name = prompt_name
    if name is None and role is not None:
        name = role_name(prompts, role)
    if name is None:
        name = default_prompt_name
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise UnknownPromptError(f"no prompt named {name!r}", hint=f"this model's prompts: {known}")
    return prompts[name]


def role_name(prompts: Mapping[str, str], role: Role) -> str | None:
    """The name of the prompt that a model has for texts of a role, or None."""
    return next((name for name in ROLES[role] if name in prompts), None)


def checked(what: str, text: str) -> str:
    """The text itself.

    Raises:
        InvalidOptionError: half of a surrogate pair is in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidOptionError(f"{what} holds a lone surrogate, which no encoding can carry") from None
    return text


def rerank_problem(template: str) -> str:
    """What is wrong with a reranker's template, or an empty string.

    The document must come last: what a long pair loses is the document's end, and nothing behind it.
    """
    slots = _SLOT.findall(template)
    for name in ("query", "document"):
        if slots.count(name) != 1:
            return f"has {{{name}}} {slots.count(name)} times, expected once"
    if slots.count("instruction") > 1:
        return "has {instruction} more than once"
    return "" if slots[-1] == "document" else "does not have {document} last"


def split_rerank_template(template: str) -> tuple[str, str]:
    """What stands before and behind the document, in a template without a ``rerank_problem``."""
    before, _, behind = template.partition("{document}")
    return before, behind


def fill_slots(text: str, query: str, instruction: str | None) -> str:
    """A template's text before the document with its slots filled, in one pass: slots inside a query are ordinary text.

    Args:
        text: as ``split_rerank_template`` gives it.
        query: fills ``{query}``.
        instruction: fills ``{instruction}``; None only for a template without that slot.
    """
    values = {"query": query, "instruction": instruction or ""}
    return _SLOT.sub(lambda slot: values[slot[1]], text)


def split_instruction(template: str) -> tuple[str, str | None]:
    """A template with its literal task replaced by ``{instruction}``, and the task; None where there is none."""
    match = _TASK.search(template)
    if match is None or INSTRUCTION_SLOT in template:
        return template, None
    return template[: match.start("task")] + INSTRUCTION_SLOT + template[match.end("task") :], match["task"]
