"""``/v1/search`` over a real database: the library's own hits, reranked if asked, and nothing that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_embed import Embedder, Reranker
from edge_embed.errors import DatabaseMissingError, ServerSettingsError
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.record import make_record
from edge_embed.search.scan import root_of
from edge_embed.search.searching import Query, embed_query, search
from edge_embed.server.settings import ModelOptions, ServerSettings
from edge_embed.server.start import build, served_models
from tests.serving import QUIET, running

TEXTS = {"bees.md": "# Bees\n\nThey navigate by the sun.\n", "bank.md": "# Bank\n\nInterest rates rose.\n"}


@dataclass(frozen=True)
class Place:
    """A server over a database, and what it was made of."""

    url: str
    database: Path
    folder: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bert_path: Path, reranker_path: Path) -> Iterator[Place]:
    folder, path = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("search") / "db"
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    with (
        Embedder(bert_path, n_threads=1) as embedder,
        Database(path, make_record(embedder, model=bert_path, dimensions=24, short=8)) as database,
    ):
        Indexer(database, embedder).update([root_of(folder)])
    with running(app(path, f"other={reranker_path}", f"tiny={bert_path}")) as url:
        yield Place(url, path, folder)


def app(database: Path, *models: str, settings: ServerSettings = QUIET) -> Any:
    return build(served_models(models), settings, ModelOptions(n_threads=1), database=database)


def ask(place: Place, **body: Any) -> httpx.Response:
    return httpx.post(f"{place.url}/v1/search", json=body, timeout=60)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "text"])
def test_the_answer_is_the_librarys(place: Place, mode: Any, bert_path: Path) -> None:
    answer = ask(place, query="the sun", mode=mode).json()
    with Embedder(bert_path, n_threads=1) as embedder, Database(place.database) as database:
        query = Query("the sun", mode=mode)
        expected = search(database, query, embed_query(embedder, database, "the sun") if query.needs_vector else None)
    assert ("list", "tiny") == (answer["object"], answer["model"])
    assert [hit.path for hit in expected] == [result["path"] for result in answer["results"]]
    for hit, result in zip(expected, answer["results"], strict=True):
        assert result.pop("snippet")["text"] == hit.text
        assert hit.score == pytest.approx(result.pop("score"), rel=1e-3)
        assert (hit.cosine or 0) == pytest.approx(result.pop("cosine") or 0, abs=1e-3)
        assert {name: value for name, value in asdict(hit).items() if name in result} == result


def test_a_reranker_orders_again(place: Place, reranker_path: Path) -> None:
    answer = ask(place, query="rates", rerank=True).json()["results"]
    pairs = [("rates", f"{result['heading']}\n{result['text']}") for result in answer]
    with Reranker(reranker_path, n_threads=1) as reranker:
        scores = reranker.score(pairs).scores.tolist()
    assert scores == pytest.approx([result["score"] for result in answer], abs=1e-3)
    assert scores == sorted(scores, reverse=True)


def test_a_request_may_narrow_the_answer_down(place: Place) -> None:
    below = str(place.folder.resolve() / "bank.md")
    assert [below] == [result["path"] for result in ask(place, query="x", below=below).json()["results"]]
    assert [] == ask(place, query="x", kinds=["pdf"]).json()["results"]
    assert 1 == len(ask(place, query="x", limit=1).json()["results"])


@pytest.mark.parametrize(
    ("body", "said"),
    [({"model": "other"}, "the model is tiny"), ({"dimensions": 32}, "24 values"), ({"prompt": "x"}, "the prompt"),
     ({"mode": "best"}, "mode"), ({"kinds": ["zip"]}, "kind"), ({"query": " "}, "empty"), ({"limit": 0}, "limit")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(place: Place, body: dict[str, Any], said: str) -> None:
    answer = ask(place, **{"query": "x", **body})
    assert 400 == answer.status_code
    assert said in answer.json()["error"]["message"]


def test_a_name_that_fits_is_taken(place: Place) -> None:
    assert 200 == ask(place, query="x", model="tiny", dimensions=24, prompt="").status_code


def test_the_server_says_what_it_searches(place: Place) -> None:
    assert {"path": str(place.database), "chunks": 2, "model": "tiny"} == httpx.get(f"{place.url}/api/status").json()[
        "search"
    ]
    assert "/v1/search" in httpx.get(f"{place.url}/openapi.json").json()["paths"]


def test_a_database_of_a_model_that_is_not_served_is_refused(place: Place, qwen3_path: Path) -> None:
    with pytest.raises(ServerSettingsError, match="made with a model that is not served"):
        app(place.database, f"another={qwen3_path}")


def test_a_database_that_is_not_there_is_refused(bert_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseMissingError):
        app(tmp_path / "none", f"tiny={bert_path}")


def test_a_key_is_needed_where_there_is_one(place: Place, bert_path: Path) -> None:
    from dataclasses import replace

    keyed = replace(QUIET, api_keys=("key",))
    with running(app(place.database, f"tiny={bert_path}", settings=keyed), keyed) as url:
        assert 401 == httpx.post(f"{url}/v1/search", json={"query": "x"}).status_code
