"""Qwen3-Embedding as its repositories are laid out: what the files of the three sizes say, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_embed import Embedder
from edge_embed.convert.convert import convert
from edge_embed.gguf_header import read_header
from tests.checkpoints import QWEN3_EDS, QWEN3_QUERY_PROMPT, build_tiny_qwen3
from tests.golden_texts import TEXTS
from tests.make_golden import GOLDEN
from tests.test_parity import cosines

# Fields of config.json in which the published checkpoints differ from the fixture, by size. The larger ones have fewer
# rows than the tokenizer has tokens: four that no text for embedding needs have none.
PUBLISHED = {
    "0.6b": {"max_position_embeddings": 32768, "tie_word_embeddings": True, "vocab_size": 151669},
    "4b": {"max_position_embeddings": 40960, "tie_word_embeddings": True, "vocab_size": 151665},
    "8b": {"max_position_embeddings": 40960, "tie_word_embeddings": False, "vocab_size": 151665},
}
COMMON = {
    "architectures": ["Qwen3ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "initializer_range": 0.02,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "transformers_version": "4.51.3",
    "use_cache": True, "use_sliding_window": False,
}  # fmt: skip


def published(folder: Path, size: str) -> Path:
    """Names without ``model.``, as the repositories have them, and in two shards where the model is large."""
    fields = PUBLISHED[size]
    build_tiny_qwen3(folder, n_rows=int(fields["vocab_size"]), sharded=size != "0.6b", tied=True)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | COMMON | fields
    path.write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").write_text('{"bos_token_id": 151643, "eos_token_id": 151643}', "utf-8")
    (folder / "README.md").write_text("# Qwen3-Embedding", "utf-8")
    return folder


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_repository_gives_the_originals_ids_and_vectors(size: str, tmp_path: Path) -> None:
    folder = published(tmp_path / "model", size)
    report = convert(folder, tmp_path / "m.gguf", ftype="bf16", mrl_dimensions=(32, 64))
    found = read_header(report.path).metadata
    assert found["qwen3.pooling_type"] == 3
    assert found["edge_embed.max_tokens"] == PUBLISHED[size]["max_position_embeddings"]
    assert found["edge_embed.eds_token_id"] == found["tokenizer.ggml.eos_token_id"] == QWEN3_EDS
    assert found["edge_embed.prompt.query"] == QWEN3_QUERY_PROMPT
    assert found["edge_embed.prompt.document"] == ""
    assert found["edge_embed.instruction_template"] == "Instruct: {instruction}\nQuery:"
    assert found["edge_embed.normalize"] is True
    assert found["edge_embed.mrl_dimensions"] == [32, 64]
    assert found["edge_embed.unicode_normalization"] == "NFC"
    assert "edge_embed.default_prompt_name" not in found
    assert any("without a row" in note for note in report.notes) == (size != "0.6b")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with Embedder(report.path, n_threads=1) as embedder, np.load(GOLDEN) as golden:
        for text in TEXTS:
            assert embedder.tokenize(text).token_ids.tolist() == original.encode(text).ids
        assert cosines(np.asarray(embedder.encode(TEXTS[:30])), golden["tiny_qwen3"][:30]).min() > 0.9999
        cut = embedder.encode(TEXTS[:3], truncate_dim=32)
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
