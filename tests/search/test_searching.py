"""Answers: by meaning, by words, by both; short vectors first; a reranker behind them; never with what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.errors import (
    DatabaseFileError,
    DatabaseMismatchError,
    DatabaseMissingError,
    InvalidDimensionError,
    InvalidOptionError,
    InvalidTextError,
)
from edge_embed.search.database import Database
from edge_embed.search.ranking import bounded, fused
from edge_embed.search.record import check_model, check_same, make_record
from edge_embed.search.searching import Query, embed_query, search
from edge_embed.search.snippets import snippet
from edge_embed.search.types import Chunk, Record, Snippet
from edge_embed.testing import fake_embedder, fake_reranker
from edge_embed.types import Float32Array
from tests.search.making import FAKE_RECORD

N_DIMENSIONS = FAKE_RECORD.dimensions


def unit(*values: float) -> Float32Array:
    vector = np.zeros(N_DIMENSIONS, dtype=np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def fill(database: Database, texts: dict[str, Float32Array], *, folder: str = "/f", kind: str = "text") -> None:
    """A file for each text, whose vector is given."""
    vectors = np.stack(list(texts.values()))
    short = vectors[:, : database.record.short]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    rows = [(f"{folder}/{place}.txt", "d", kind, 0, Chunk(text)) for place, text in enumerate(texts)]
    database.add(rows, vectors, short / np.where(lengths > 0, lengths, 1))


def texts_of(hits: list[Any]) -> list[str]:
    return [hit.text for hit in hits]


def test_dense_finds_by_vectors_and_says_the_cosine(database: Database) -> None:
    fill(database, {"far": unit(0, 1), "near": unit(1), "between": unit(1, 1)})
    hits = search(database, Query("anything", mode="dense"), unit(1))
    assert ["near", "between", "far"] == texts_of(hits)
    assert [1, 0.5**0.5, 0] == pytest.approx([hit.cosine for hit in hits], abs=1e-6)
    assert [hit.cosine for hit in hits] == [hit.score for hit in hits]


def test_text_finds_words_their_forms_accents_and_scripts_without_spaces(database: Database) -> None:
    fill(
        database, {"cats are running": unit(1), "the café": unit(1), "東京都の文章です": unit(1), "none of it": unit(1)}
    )
    for words, expected in [("cat run", "cats are running"), ("CAFE", "the café"), ("文章", "東京都の文章です")]:
        (hit, *_) = search(database, Query(words, mode="text"), None)
        assert (expected, None) == (hit.text, hit.cosine)


@pytest.mark.parametrize("words", ['"', "a AND (", "text:x*", "~", "\\", "' OR 1=1 --", "\x00"])
def test_any_question_is_only_words(database: Database, words: str) -> None:
    fill(database, {"cats": unit(1)})
    assert [] == search(database, Query(words, mode="text"), None)


def test_hybrid_joins_both_orders_and_knows_every_cosine(database: Database) -> None:
    fill(database, {"bees": unit(0, 1), "wasps": unit(1), "bees and wasps": unit(1, 0.2)})
    hits = search(database, Query("bees", mode="hybrid"), unit(1))
    expected = {"bees": 1 / 61 + 1 / 63, "bees and wasps": 1 / 62 + 1 / 62, "wasps": 1 / 61}
    assert list(expected) == texts_of(hits)
    assert list(expected.values()) == pytest.approx([hit.score for hit in hits])
    assert all(hit.cosine is not None for hit in hits)


def test_short_vectors_find_what_full_ones_order(tmp_path: Path) -> None:
    """One that only the values behind the cut bring near is not among the candidates; of those the order is exact."""
    with Database(tmp_path / "db", replace(FAKE_RECORD, short=2)) as database:
        fill(
            database,
            {
                "alike": unit(1, 0, 0, 1),
                "alike at first": unit(1, 0, 0, -1),
                "alike in the end": unit(0, 0.1, 0, 1),
            },
        )
        asked = unit(1, 0, 0, 1)
        query = Query("x", mode="dense", limit=2, candidates=2)
        assert ["alike", "alike at first"] == texts_of(search(database, query, asked))
        assert ["alike", "alike in the end"] == texts_of(search(database, replace(query, short=False), asked))


def test_a_large_database_keeps_short_vectors_as_bytes_and_finds_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_embed.search.database._MANY", 1000)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((1500, N_DIMENSIONS)).astype(np.float32)
    vectors[:, FAKE_RECORD.short :] = 0  # so that only the rounding can lose something
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fill(database, {f"text {place}": vector for place, vector in enumerate(vectors[:1200])})
    database.optimize()
    assert ["short"] in [index.columns for index in database._chunks.list_indices()]
    fill(database, {f"late {place}": vector for place, vector in enumerate(vectors[1200:])}, folder="/late")
    for asked in vectors[::100]:
        query = Query("x", mode="dense", limit=10)
        exact = search(database, replace(query, short=False), asked)
        found = search(database, query, asked)
        assert exact[0] == found[0]
        assert len({hit.path for hit in exact} & {hit.path for hit in found}) >= 9


def test_a_database_without_short_vectors_is_searched_with_full_ones(tmp_path: Path) -> None:
    with Database(tmp_path / "db", replace(FAKE_RECORD, short=0)) as database:
        database.add([("/a.txt", "d", "text", 0, Chunk("one"))], unit(1)[None], None)
        assert ["one"] == texts_of(search(database, Query("x", mode="dense"), unit(1)))


def test_a_reranker_orders_the_candidates_again(database: Database) -> None:
    fill(database, {"short": unit(1), "a much longer text": unit(0, 1)})
    with fake_reranker() as reranker:  # the longer the better
        hits = search(database, Query("short", mode="hybrid"), unit(1), reranker)
    assert ["a much longer text", "short"] == texts_of(hits)
    assert hits[0].score > hits[1].score > 1


def test_one_file_does_not_fill_the_answer(database: Database) -> None:
    rows = [("/a.txt", "d", "text", place, Chunk(f"a {place}")) for place in range(5)]
    vectors = np.stack([unit(1)] * 5)
    database.add(rows, vectors, vectors[:, :8])
    fill(database, {"b": unit(1, 1)}, folder="/b")
    query = Query("x", mode="dense", per_file=2)
    assert ["/a.txt", "/a.txt", "/b/0.txt"] == [hit.path for hit in search(database, query, unit(1))]
    assert 6 == len(search(database, replace(query, per_file=None), unit(1)))


def test_folders_and_kinds_narrow_every_mode(database: Database) -> None:
    fill(database, {"bees one": unit(1)}, folder="/it's")
    fill(database, {"bees two": unit(1)}, folder="/it's more", kind="pdf")
    for mode in ("dense", "text", "hybrid"):
        query = Query("bees", mode=mode)  # type: ignore[arg-type]
        assert ["bees one"] == texts_of(search(database, replace(query, below="/it's"), unit(1)))
        assert ["bees one"] == texts_of(search(database, replace(query, below="/it's/0.txt"), unit(1)))
        assert ["bees two"] == texts_of(search(database, replace(query, kinds=("pdf",)), unit(1)))
        assert [] == search(database, replace(query, below="/it"), unit(1))


def test_an_empty_database_finds_nothing(database: Database) -> None:
    for mode in ("dense", "text", "hybrid"):
        assert [] == search(database, Query("x", mode=mode), unit(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [{"text": " "}, {"limit": 0}, {"limit": 1001}, {"limit": True}, {"mode": "best"}, {"per_file": 0},
     {"kinds": ("zip",)}, {"candidates": 3}],
)  # fmt: skip
def test_a_question_outside_what_is_possible_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        Query(**{"text": "x", **values})


def test_a_question_that_no_encoding_can_carry_is_refused() -> None:
    with pytest.raises(InvalidTextError):
        Query("\ud800")


def test_a_vector_of_another_size_or_none_is_refused(database: Database) -> None:
    with pytest.raises(DatabaseMismatchError, match="16 values"):
        search(database, Query("x"), np.ones(8, dtype=np.float32))
    with pytest.raises(InvalidOptionError, match="needs the question's vector"):
        search(database, Query("x"), None)


def test_a_question_is_embedded_with_the_databases_prompt(database: Database, embedder: Embedder) -> None:
    expected = embedder.embed(["what?"], prompt="query: ").vectors[0]
    assert np.array_equal(expected, embed_query(embedder, database, "what?"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("digest", "other"), ("prompt", "text: "), ("query_prompt", ""), ("dimensions", 8), ("short", 4),
     ("pooling", "cls"), ("chunk_tokens", 32), ("adapter", ("a", "b", 0.5)), ("projection", ("a", "b"))],
)  # fmt: skip
def test_anything_else_than_it_was_made_with_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DatabaseMismatchError, match="was made with something else"):
        check_same(FAKE_RECORD, replace(FAKE_RECORD, **{name: value}), where="db")  # type: ignore[arg-type]


def test_where_a_model_lies_does_not_matter() -> None:
    one, other = (
        replace(FAKE_RECORD, model=place, adapter=(place, "digest", 1.0), projection=(place, "digest"))
        for place in ("/a", "/b")
    )
    check_same(one, other, where="db")


def test_a_record_is_made_of_an_embedder_and_kept_by_the_database(
    bert: Embedder, bert_path: Path, tmp_path: Path
) -> None:
    made = make_record(bert, model=bert_path, dimensions=24, short=8, chunk_tokens=40)
    assert (str(bert_path), 24, 8, 40, 4) == (made.model, made.dimensions, made.short, made.chunk_tokens, made.overlap)
    with Database(tmp_path / "db", made) as database:
        assert made == database.record
    with Database(tmp_path / "db", FAKE_RECORD) as again:  # what is there stays what it is
        assert made == again.record
    check_model(made, bert.info, where="db")
    with pytest.raises(DatabaseMismatchError, match="the model's file is another one"):
        check_model(replace(made, digest="0" * 64), bert.info, where="db")


@pytest.mark.parametrize(
    ("values", "error"),
    [({"dimensions": 33}, InvalidDimensionError), ({"short": 32}, InvalidDimensionError),
     ({"chunk_tokens": 65}, InvalidOptionError), ({"chunk_tokens": 4}, InvalidOptionError),
     ({"overlap": 60}, InvalidOptionError)],
)  # fmt: skip
def test_a_record_outside_the_model_is_refused(bert: Embedder, values: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        make_record(bert, **values)  # type: ignore[arg-type]


def test_what_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DatabaseMissingError):
        Database(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(DatabaseFileError, match="something else than a search database"):
            Database(tmp_path / name, FAKE_RECORD)
    assert ["note.txt"] == [path.name for path in (tmp_path / "mine").iterdir()]


def test_a_damaged_database_is_an_error(tmp_path: Path) -> None:
    with Database(tmp_path / "db", FAKE_RECORD) as database:
        fill(database, {"a": unit(1)})
    for path in (tmp_path / "db" / "chunks.lance").rglob("*.manifest"):
        path.write_bytes(b"junk")
    with pytest.raises(DatabaseFileError):
        Database(tmp_path / "db")


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseFileError, match="another version"):
        Database(tmp_path / "db", replace(FAKE_RECORD, version=99))


def test_reciprocal_ranks_are_added() -> None:
    assert [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)] == fused(["a", "b"], ["b", "c"])
    assert [] == fused([], [])


def test_a_group_is_bounded() -> None:
    assert [1, 2, 11, 12] == bounded([1, 2, 3, 11, 12, 13], lambda item: item // 10, 2)
    assert [1, 2, 3] == bounded([1, 2, 3], lambda _: 0, None)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("The bees navigate.", "how do bees navigate?", Snippet("The bees navigate.", ((4, 8), (9, 17)))),
        ("Navigation of Bienen", "navigating Bienen", Snippet("Navigation of Bienen", ((0, 10), (14, 20)))),
        ("le CAFÉ noir", "cafe", Snippet("le CAFÉ noir", ((3, 7),))),
        ("東京の蜂", "蜂", Snippet("東京の蜂", ((3, 4),))),
        ("nothing\nalike", "zebra", Snippet("nothing alike")),
        ("", "x", Snippet("")),
    ],
)  # fmt: skip
def test_a_snippet_marks_the_questions_words(text: str, query: str, expected: Snippet) -> None:
    assert expected == snippet(text, query)


def test_a_snippet_is_where_the_words_are() -> None:
    text = "filler words stand here " * 50 + "the hidden treasure lies here " + "and more filler " * 50
    made = snippet(text, "hidden treasure", 80)
    assert len(made.text) <= 82
    assert ["hidden", "treasure"] == [made.text[start:stop] for start, stop in made.marks]
    assert made.text.startswith("…")
    assert made.text.endswith("…")


def test_names_of_choices_are_the_modules_own() -> None:
    from edge_embed.cli import search as command
    from edge_embed.search import searching, types

    assert (types.MODES, types.KINDS, searching.PER_FILE) == (command.MODES, command.KINDS, command.PER_FILE)


def test_a_fake_embedder_is_enough_to_index_and_search(database: Database) -> None:
    assert isinstance(database.record, Record)
    assert (N_DIMENSIONS,) == embed_query(fake_embedder(), database, "x").shape
