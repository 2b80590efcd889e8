"""Chunks fit, keep order and lose nothing, whatever the text; they end where it pauses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.search.chunks import MIN_ROOM, chunks
from edge_embed.search.types import Chunk, Section


def words(texts: Sequence[str]) -> list[int]:
    """A token a word, and two around each text."""
    return [len(text.split()) + 2 for text in texts]


def letters(texts: Sequence[str]) -> list[int]:
    """A token a byte, and two around each text."""
    return [len(text.encode()) + 2 for text in texts]


def bodies(made: list[Chunk]) -> list[str]:
    return [chunk.text[chunk.body :] for chunk in made]


def test_a_section_that_fits_is_one_chunk_under_its_heading() -> None:
    section = Section("one two\nthree", ("A", "B c"), line=7, page=2)
    assert [Chunk("A > B c\none two\nthree", "A > B c", 8, 7, 2)] == list(chunks([section], words, 34, 4))


def test_sections_never_share_a_chunk() -> None:
    assert ["one", "two"] == bodies(list(chunks([Section("one"), Section("two")], words, 34, 4)))


@pytest.mark.parametrize("text", ["", " \n\n ", "\t"])
def test_nothing_makes_no_chunk(text: str) -> None:
    assert [] == list(chunks([Section(text)], words, 34, 4))


def test_a_chunk_ends_at_the_strongest_pause_of_its_second_half() -> None:
    first, second = "a b c d e f g h i j. k l.\n\n", "m n o p q r s t."
    assert ["a b c d e f g h i j. k l.", second] == bodies(list(chunks([Section(first + second)], words, 18, 0)))


def test_a_chunk_begins_with_the_last_parts_of_the_one_before() -> None:
    sentences = [f"This is sentence {number}. " for number in range(12)]
    made = bodies(list(chunks([Section("".join(sentences))], words, 18, 4)))
    assert ["This is sentence 0. This is sentence 1. This is sentence 2. This is sentence 3."] == made[:1]
    assert made[1].startswith("This is sentence 3. This is sentence 4.")
    assert made[-1].endswith("sentence 11.")


def test_lines_are_those_of_the_file() -> None:
    text = "\n".join(f"line {number} of the file" for number in range(40))
    made = list(chunks([Section(text, line=11)], words, 18, 0))
    assert len(made) > 5
    assert [int(chunk.text.split()[1]) + 11 for chunk in made] == [chunk.line for chunk in made]


def test_headings_that_are_too_long_lose_the_outermost() -> None:
    (made,) = chunks([Section("text", ("one two three four five", "six seven"))], words, 18, 0)
    assert made.heading == "six seven"
    (made,) = chunks([Section("text", (" ".join("abcdefghij"),))], words, 18, 0)
    assert (made.heading, made.text) == ("", "text")


def test_a_line_that_the_tokenizer_takes_for_one_token_is_not_one_chunk() -> None:
    made = list(chunks([Section("x" * 10_000)], words, 18, 0))
    assert max(len(chunk.text) for chunk in made) <= 16 * 16
    assert "".join(bodies(made)) == "x" * 10_000


@given(
    st.lists(st.text("ab .\n。é\U0001f41d", max_size=400), max_size=3),
    st.integers(MIN_ROOM + 2, 80),
    st.integers(0, 8),
    st.sampled_from([words, letters]),
)
def test_chunks_fit_and_lose_nothing(texts: list[str], size: int, overlap: int, count: object) -> None:
    assert callable(count)
    made = list(chunks([Section(text, ("head",)) for text in texts], count, size, overlap))
    assert all(n <= size for n in count([chunk.text for chunk in made]))
    plain = list(chunks([Section(text) for text in texts], count, size, 0))
    assert "".join("".join(bodies(plain)).split()) == "".join("".join(texts).split())
