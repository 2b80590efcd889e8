"""The exact requests of applications that speak Ollama, and what each of them reads of the answers.

Read from the sources of Open WebUI, AnythingLLM, Dify, Continue, Smart Connections and Copilot for Obsidian.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import httpx
import pytest

from edge_embed.testing import fake_embedder
from tests.serving import FAKES, Running

MODEL = FAKES[0]
TEXTS = ["first chunk", "second chunk"]


def vectors(texts: list[str], **options: Any) -> list[list[float]]:
    """What the library gives."""
    with fake_embedder() as embedder:
        return [pytest.approx(row.tolist(), abs=1e-6) for row in embedder.encode(texts, **options)]


def test_open_webui_embeds_with_an_empty_key_and_a_prefix_in_a_field(fake: Running) -> None:
    """``RAG_EMBEDDING_PREFIX_FIELD_NAME=prompt`` sends the prefix beside the texts."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer "}
    for extra, options in (({}, {}), ({"prompt": "query: "}, {"prompt": "query: "})):
        body = json.dumps({"input": TEXTS, "model": MODEL, **extra}).encode()
        request = urllib.request.Request(f"{fake.url}/api/embed", body, headers)  # httpx has no values that end so
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["embeddings"] == vectors(TEXTS, **options)


def test_open_webui_finds_models_by_name_with_tag(fake: Running) -> None:
    """It adds ``:latest`` to a name without a tag, and looks for that in the list."""
    by_name = {model["model"]: model for model in httpx.get(f"{fake.url}/api/tags").json()["models"]}
    assert by_name[f"{MODEL}:latest"]["details"]["format"] == "gguf"
    running = httpx.get(f"{fake.url}/api/ps").json()["models"]
    assert all(set(model) >= {"model", "name", "expires_at", "size"} for model in running)
    unload = {"model": f"{MODEL}:latest", "keep_alive": 0, "prompt": ""}
    assert httpx.post(f"{fake.url}/api/generate", json=unload).json()["done"] is True


def test_anythingllm_looks_whether_somebody_is_there_and_embeds(fake: Running) -> None:
    """``num_ctx`` is its longest chunk in characters."""
    assert httpx.get(fake.url).is_success
    models = httpx.get(f"{fake.url}/api/tags").json()["models"]
    assert f"{MODEL}:latest" in [model["name"] for model in models]
    body = {"model": f"{MODEL}:latest", "input": TEXTS, "options": {"num_ctx": 8192}}
    answer = httpx.post(f"{fake.url}/api/embed", json=body, headers={"Accept": "application/json"})
    assert answer.json()["embeddings"] == vectors(TEXTS)


@pytest.mark.parametrize("extra", [{"options": {"use_mmap": True}}, {"truncate": True, "options": {"num_ctx": 512}}])
def test_dify_embeds(fake: Running, extra: dict[str, Any]) -> None:
    """Newer and older plugins."""
    data = json.dumps({"input": TEXTS, "model": MODEL, **extra})
    answer = httpx.post(f"{fake.url}/api/embed", headers={"Content-Type": "application/json"}, content=data)
    answer.raise_for_status()
    assert answer.json()["embeddings"] == vectors(TEXTS)


def test_continue_reads_the_context_of_a_model_and_embeds(fake: Running) -> None:
    """It splits ``parameters`` into lines of a key and a value, and sends its key under two names."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none", "api-key": "none"}
    shown = httpx.post(f"{fake.url}/api/show", headers=headers, json={"name": MODEL})
    assert shown.status_code == 200
    assert [line.split() for line in shown.json()["parameters"].split("\n")] == [["num_ctx", "512"]]
    assert ".Suffix" not in shown.json()["template"]
    answer = httpx.post(f"{fake.url}/api/embed", headers=headers, json={"model": MODEL, "input": TEXTS})
    assert answer.json()["embeddings"] == vectors(TEXTS)
    assert httpx.get(f"{fake.url}/api/tags").json()["models"][0]["name"] == f"{MODEL}:latest"


def test_smart_connections_chooses_a_model_and_embeds(fake: Running) -> None:
    """It keeps names that contain certain words, and of ``model_info`` the first keys that contain others."""
    origin = {"Origin": "app://obsidian.md"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = httpx.options(f"{fake.url}/api/embed", headers={**origin, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in ("*", "app://obsidian.md")
    tags = httpx.get(f"{fake.url}/api/tags", headers=origin).json()["models"]
    kept = [tag["name"] for tag in tags if any(word in tag["name"].lower() for word in ("embed", "embedding", "bge"))]
    assert kept == [f"{MODEL}:latest"]
    shown = httpx.post(f"{fake.url}/api/show", content=json.dumps({"model": kept[0]}), headers=origin).json()
    first = {
        word: next(value for key, value in shown["model_info"].items() if word in key)
        for word in ("context_length", "embedding_length")
    }
    assert first == {"context_length": 512, "embedding_length": 16}
    answer = httpx.post(f"{fake.url}/api/embed", json={"model": kept[0], "input": TEXTS}, headers=origin)
    assert answer.headers["access-control-allow-origin"] in ("*", "app://obsidian.md")
    assert answer.json()["embeddings"] == vectors(TEXTS)
    assert answer.json()["prompt_eval_count"] == sum(len(text) + 2 for text in TEXTS)


def test_obsidian_copilot_embeds(fake: Running) -> None:
    """Through LangChain for JavaScript; snake and camel case both come."""
    body = {"model": MODEL, "input": TEXTS, "truncate": True, "keep_alive": "5m", "options": {"numCtx": 8192}}
    answer = httpx.post(f"{fake.url}/api/embed", json=body, headers={"Origin": "app://obsidian.md"})
    assert answer.json()["embeddings"] == vectors(TEXTS)
