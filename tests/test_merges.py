"""Merges from scores: every pair of tokens that makes a third, in SentencePiece's order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_embed.merges import merges_by_score

WORDS = st.lists(st.text("ab", min_size=1, max_size=6), unique=True, max_size=20)


def plainly(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The definition, all places of all tokens tried."""
    found = [
        (-scores[ids[token]], ids[token], ids[token[:n]], token[:n], token[n:])
        for token in ids
        for n in range(1, len(token))
        if token[:n] in ids and token[n:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(found)]


@given(WORDS, st.lists(st.sampled_from([0.0, -1.0, -2.5]), min_size=20, max_size=20))
def test_all_pairs_in_order_of_score_and_ids(words: list[str], scores: list[float]) -> None:
    ids = {word: i for i, word in enumerate(words)}
    assert merges_by_score(ids, scores) == plainly(ids, scores)


class Watched(str):
    """A token that counts how often it is cut."""

    __slots__ = ("cuts",)

    def __getitem__(self, key: object) -> str:
        self.cuts = getattr(self, "cuts", 0) + 1
        return str.__getitem__(self, key)  # type: ignore[index]


def test_a_long_token_is_cut_only_where_two_others_could_make_it() -> None:
    """A hostile vocabulary may have one of a million characters."""
    long = Watched("a" * 10**6)
    ids = {"a": 0, "aa": 1, "a" * (10**6 - 1): 2, long: 3}
    assert merges_by_score(ids, [0.0, 0.0, 0.0, -1.0])[-2:] == [("a", "a" * (10**6 - 1)), ("a" * (10**6 - 1), "a")]
    assert long.cuts == 4
