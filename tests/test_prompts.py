"""Prompts: one choice, filled in once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.errors import InvalidOptionError, UnknownPromptError
from edge_embed.prompts import resolve
from edge_embed.testing import FakeEngine, fake_embedder

PROMPTS = {"query": "query: ", "document": "passage: "}
TEMPLATE = "Instruct: {instruction}\nQuery:"


def test_without_a_choice_there_is_no_prefix() -> None:
    assert "" == resolve(PROMPTS)


def test_a_name_chooses_its_prompt() -> None:
    assert "passage: " == resolve(PROMPTS, prompt_name="document")


def test_the_default_name_fills_the_gap() -> None:
    assert "query: " == resolve(PROMPTS, default_prompt_name="query")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [({"prompt": ""}, ""), ({"prompt_name": "document"}, "passage: "), ({"instruction": "x"}, "Instruct: x\nQuery:")],
)
def test_any_choice_beats_the_default(choice: dict[str, str], expected: str) -> None:
    assert expected == resolve(PROMPTS, **choice, default_prompt_name="query", instruction_template=TEMPLATE)


@given(st.text())
def test_a_literal_prompt_is_taken_as_it_is(prompt: str) -> None:
    assert prompt == resolve(PROMPTS, prompt=prompt, instruction_template=TEMPLATE)


@given(st.text(alphabet=st.sampled_from("{}instructo %s\\0$")) | st.text())
def test_an_instruction_is_put_into_its_slot_unchanged(instruction: str) -> None:
    expected = "Instruct: " + instruction + "\nQuery:"
    assert expected == resolve({}, instruction=instruction, instruction_template=TEMPLATE)


@pytest.mark.parametrize("instruction", ["{instruction}", "{instruction}{instruction}", "{0} {} {x!r}", "\\1 \\g<0>"])
def test_nothing_inside_an_instruction_is_substituted(instruction: str) -> None:
    expected = f"Instruct: {instruction}\nQuery:"
    assert expected == resolve({}, instruction=instruction, instruction_template=TEMPLATE)


def test_only_the_first_slot_of_a_template_is_filled() -> None:
    assert "a x {instruction}" == resolve({}, instruction="x", instruction_template="a {instruction} {instruction}")


@pytest.mark.parametrize(
    "choices",
    [
        {"prompt": "a", "prompt_name": "query"},
        {"prompt": "", "instruction": ""},
        {"prompt_name": "query", "instruction": "x"},
        {"prompt": "a", "prompt_name": "query", "instruction": "x"},
    ],
)
def test_two_choices_at_once_are_refused_by_name(choices: dict[str, str]) -> None:
    with pytest.raises(InvalidOptionError, match=" and ".join(choices)):
        resolve(PROMPTS, **choices, instruction_template=TEMPLATE)


@pytest.mark.parametrize("name", ["queries", "", "QUERY"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(UnknownPromptError) as caught:
        resolve(PROMPTS, prompt_name=name)
    assert "this model's prompts: document, query" == caught.value.hint


def test_a_model_without_prompts_says_so() -> None:
    with pytest.raises(UnknownPromptError) as caught:
        resolve({}, prompt_name="query")
    assert "this model's prompts: none" == caught.value.hint


def test_an_instruction_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="no template for instructions"):
        resolve(PROMPTS, instruction="x")


@pytest.mark.parametrize("option", ["prompt", "prompt_name", "instruction"])
def test_what_is_not_a_string_is_refused_by_name(option: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"{option} must be a string, got int"):
        resolve(PROMPTS, **{option: 3}, instruction_template=TEMPLATE)  # type: ignore[arg-type]


def encoded_text(**options: str) -> str:
    """The text that reaches the engine, read back from the fake tokens."""
    engine = FakeEngine(n_batch=512)
    fake_embedder(engine).embed(["hello {instruction}"], **options)
    return bytes((engine.batches[0].token_ids[1:-1] - 3).tolist()).decode()


def test_a_text_that_spells_the_slot_out_is_ordinary_text() -> None:
    assert "Instruct: {x}\nQuery:hello {instruction}" == encoded_text(instruction="{x}")


def test_the_prompt_stands_before_the_text() -> None:
    assert "passage: hello {instruction}" == encoded_text(prompt_name="document")


def test_queries_and_documents_find_their_prompts() -> None:
    engine = FakeEngine(n_batch=512)
    embedder = fake_embedder(engine)
    embedder.encode_query("x")
    embedder.encode_document("x")
    texts = [bytes((batch.token_ids[1:-1] - 3).tolist()).decode() for batch in engine.batches]
    assert ["query: x", "passage: x"] == texts
