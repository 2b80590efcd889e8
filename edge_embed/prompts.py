"""Which text is put before an input: a named prompt, a literal one, or an instruction in the model's template.

Pure string work. A template is filled in one pass: nothing inside an instruction or a text is ever substituted.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_embed.errors import InvalidOptionError, UnknownPromptError

INSTRUCTION_SLOT = "{instruction}"


def resolve(
    prompts: Mapping[str, str],
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    instruction: str | None = None,
    default_prompt_name: str | None = None,
    instruction_template: str | None = None,
) -> str:
    """The prefix for a call's texts.

    Args:
        prompts: the model's prompts, name -> prefix.
        prompt: a literal prefix.
        prompt_name: a name from ``prompts``.
        instruction: a task description, put into ``instruction_template``.
        default_prompt_name: the name used where none of the three is given; may be None.
        instruction_template: text with ``{instruction}`` in it, from the model; may be None.

    Returns:
        The prefix, possibly empty.

    Raises:
        InvalidOptionError: more than one of the three, or an instruction for a model without a template.
        UnknownPromptError: a name that the model does not have.
    """
    given = {"prompt": prompt, "prompt_name": prompt_name, "instruction": instruction}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise InvalidOptionError(f"{' and '.join(chosen)} were given together", hint="give one of them")
    for option in chosen:
        if not isinstance(given[option], str):
            raise InvalidOptionError(f"{option} must be a string, got {type(given[option]).__name__}")
    if prompt is not None:
        return prompt
    if instruction is not None:
        if instruction_template is None:
            raise InvalidOptionError(
                "this model has no template for instructions",
                hint='it was not trained with them; put any text before the input with prompt="..."',
            )
        return instruction_template.replace(INSTRUCTION_SLOT, instruction, 1)
    name = prompt_name if prompt_name is not None else default_prompt_name
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise UnknownPromptError(f"no prompt named {name!r}", hint=f"this model's prompts: {known}")
    return prompts[name]
