"""Which texts come next: pure, so every promise is checked on the batches themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.batching import sequences
from edge_embed.types import Encoding, EngineLimits
from edge_embed.waiting import INTERACTIVE_SHARE, Lines, Request, suitable

LIMITS = EngineLimits(n_batch=16, n_seq_max=4, n_ctx_max=512, n_vocab=1000)
SHARING = replace(LIMITS, shares_prefixes=True)


def request(*texts: tuple[int, ...], limits: EngineLimits = LIMITS, tokens: bool = False) -> Request:
    encodings = [Encoding(np.array(ids, dtype=np.int32), len(ids)) for ids in texts]
    interactive = sum(map(len, texts)) <= limits.n_batch
    return Request(encodings, suitable(encodings, range(len(texts)), limits), interactive, tokens)


def texts_of(work: object) -> list[tuple[int, ...]]:
    return [tuple(ids.tolist()) for ids in sequences(work.batch)]  # type: ignore[attr-defined]


def taken(lines: Lines[Request], limits: EngineLimits = LIMITS, *, bulk_tokens: int = 1000) -> list[tuple[int, ...]]:
    return texts_of(lines.take(limits, bulk_tokens=bulk_tokens))


def test_requests_of_few_tokens_come_first_and_in_their_order() -> None:
    lines: Lines[Request] = Lines()
    bulk = request(*[(1, i, i) for i in range(10)])
    assert not bulk.interactive
    lines.add(bulk)
    for i in (50, 51, 52):
        lines.add(request((i,) * 8))
    assert taken(lines) == [(50,) * 8, (51,) * 8]
    assert taken(lines) == [(52,) * 8]
    assert all(text[0] == 1 for text in taken(lines))


def test_bulk_has_its_share_while_interactive_requests_never_end() -> None:
    """And the interactive ones have theirs: one quarter and three quarters of the tokens, whatever a batch holds."""
    for bulk_tokens in (4, 16):
        lines: Lines[Request] = Lines()
        lines.add(request(*[(900, i) for i in range(900)]))
        spent = {True: 0, False: 0}
        for turn in range(400):
            lines.add(request((turn, *range(7))))  # there is always one
            work = lines.take(LIMITS, bulk_tokens=bulk_tokens)
            spent[work.interactive] += work.batch.n_tokens
        share = spent[True] / sum(spent.values())
        assert abs(share - INTERACTIVE_SHARE) < 0.02, (bulk_tokens, spent)


def test_bulk_is_owed_nothing_for_the_time_when_nobody_else_waited() -> None:
    lines: Lines[Request] = Lines()
    lines.add(request(*[(900, i) for i in range(200)]))
    for _ in range(20):
        lines.take(LIMITS, bulk_tokens=16)
    lines.add(request((1,) * 4))
    lines.add(request((2,) * 4))
    assert taken(lines) == [(1,) * 4, (2,) * 4]


def test_bulk_is_not_behind_for_the_time_when_it_had_the_model_alone() -> None:
    lines: Lines[Request] = Lines()
    lines.add(request(*[(900, i) for i in range(900)]))
    for _ in range(50):
        lines.take(LIMITS, bulk_tokens=16)
    for i in range(8):
        lines.add(request((i,) * 16))
    assert [lines.take(LIMITS, bulk_tokens=16).interactive for _ in range(4)] == [True, True, True, False]


def test_bulk_requests_share_batches_in_turns() -> None:
    lines: Lines[Request] = Lines()
    for name in (1, 2, 3):
        lines.add(request(*[(name, i, i, i) for i in range(10)]))
    found = [text[0] for _ in range(3) for text in taken(lines)]
    assert sorted(found) == [1] * 4 + [2] * 4 + [3] * 4
    assert set(found[:4]) != set(found[4:8]), "the next turn begins with the next one"


def test_a_text_longer_than_a_batch_goes_alone() -> None:
    lines: Lines[Request] = Lines()
    lines.add(request((7,) * 40, (1,), (2,)))
    assert taken(lines) == [(7,) * 40]
    assert taken(lines) == [(1,), (2,)]


def test_a_large_bulk_batch_is_cut_to_what_is_allowed() -> None:
    lines: Lines[Request] = Lines()
    lines.add(request(*[(i, i) for i in range(20)]))
    assert len(taken(lines, bulk_tokens=5)) == 2
    assert len(taken(lines)) == LIMITS.n_seq_max


def test_equal_texts_of_several_requests_are_one() -> None:
    lines: Lines[Request] = Lines()
    requests = [request((1, 2, 3), (4, own)) for own in (5, 6, 7)]
    for one in requests:
        lines.add(one)
    work = lines.take(LIMITS, bulk_tokens=16)
    texts = texts_of(work)
    assert sorted(texts) == [(1, 2, 3), (4, 5), (4, 6), (4, 7)]
    assert {id(one) for one, _ in work.owners[texts.index((1, 2, 3))]} == {id(one) for one in requests}
    assert (lines.depth.requests, lines.depth.texts, lines.depth.tokens) == (0, 0, 0)


def test_pairs_that_are_divided_elsewhere_are_not_equal() -> None:
    lines: Lines[Request] = Lines()
    ids = np.array([1, 2, 3], dtype=np.int32)
    for n_first in (0, 1, 2):
        lines.add(Request([Encoding(ids, 3, n_first)], {0: None}, True, False))
    assert lines.take(LIMITS, bulk_tokens=16).batch.n_seqs == 3


def test_vectors_of_tokens_have_batches_of_their_own() -> None:
    lines: Lines[Request] = Lines()
    for name, tokens in ((1, False), (2, True), (3, False), (4, True)):
        lines.add(request((name,), tokens=tokens))
    assert [taken(lines), taken(lines)] == [[(1,), (3,)], [(2,), (4,)]]


def test_beginnings_are_shared_across_requests() -> None:
    lines: Lines[Request] = Lines()
    instruction = tuple(range(100, 110))
    for i in range(4):
        lines.add(request((*instruction, i), limits=SHARING))
    work = lines.take(SHARING, bulk_tokens=16)
    assert [tuple(stretch.token_ids.tolist()) for stretch in work.batch.shared] == [instruction]
    assert (work.batch.n_seqs, work.batch.n_tokens) == (4, 14)


def test_a_text_is_not_passed_over_for_ever_by_those_that_sort_before_it() -> None:
    """Shared beginnings put texts in the order of their ids: one with high ids must have its turn all the same."""
    lines: Lines[Request] = Lines()
    lines.add(request((999,) * 16, limits=SHARING))
    for i in range(3):
        lines.add(request((i,) * 16, limits=SHARING))
    assert taken(lines, SHARING) == [(999,) * 16]


def test_a_request_that_is_removed_waits_no_more() -> None:
    lines: Lines[Request] = Lines()
    stays, goes = request((1, 1)), request(*[(i, 2) for i in range(20)])
    lines.add(stays)
    lines.add(goes)
    lines.remove(goes)
    lines.remove(goes)
    assert (lines.depth.requests, lines.depth.texts, lines.depth.tokens) == (1, 1, 2)
    assert lines.everything() == [stays]
    assert taken(lines) == [(1, 1)]


@given(
    st.lists(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=8), max_size=12),
    st.booleans(),
    st.integers(1, 20),
    st.data(),
)
def test_every_text_is_taken_once(
    requests: list[list[list[int]]], sharing: bool, bulk_tokens: int, data: st.DataObject
) -> None:
    """In whatever order requests come and batches are taken; limits are kept, and the depth is what waits."""
    limits = SHARING if sharing else LIMITS
    lines: Lines[Request] = Lines()
    left = [request(*map(tuple, texts), limits=limits) for texts in requests]
    expected = [list(enumerate(map(tuple, texts))) for texts in requests]
    found: dict[int, list[tuple[int, tuple[int, ...]]]] = {id(one): [] for one in left}
    everyone = list(left)
    while left or lines.depth.requests:
        if left and (not lines.depth.requests or data.draw(st.booleans())):
            lines.add(left.pop())
            continue
        work = lines.take(limits, bulk_tokens=bulk_tokens)
        texts = texts_of(work)
        assert len(set(texts)) == len(texts) == len(work.owners) <= limits.n_seq_max
        longest = max(map(len, texts))
        # What the batch before would have computed of a beginning is not counted by pack: the engine allows for it.
        assert work.batch.n_tokens <= (limits.n_batch + longest if sharing else max(limits.n_batch, longest))
        for text, own in zip(texts, work.owners, strict=True):
            for one, position in own:
                found[id(one)].append((position, text))
        waiting = lines.everything()
        assert lines.depth.requests == len(waiting)
        assert lines.depth.texts == sum(len(one.order) for one in waiting)
        assert lines.depth.tokens == sum(one.n_tokens for one in waiting)
        assert lines.depth.tokens == sum(one.encodings[i].n_tokens for one in waiting for i in one.order)
    for one, texts in zip(everyone, expected, strict=True):
        assert sorted(found[id(one)]) == texts
