"""OpenVINO's engine, on whatever OpenVINO finds here: the processor's vectors, or the processor and a word why.

``make test-openvino`` builds it and has it used; the tests are of nothing where another one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.engine import placement
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.placement import CPU, DeviceWarning
from edge_embed.errors import EngineUnavailableError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import Batch, ModelInfo
from tests.tiny_gguf import gguf_bytes, tiny_bert

pytestmark = pytest.mark.openvino
OPENVINO = "openvino:0"
NEAR = 0.999  # OpenVINO computes in bfloat16 where the processor does
# Shapes that grow, shrink and come back; the cells of llama.cpp's KV cache count by 256.
LENGTHS = ([64], [3, 1, 5], [300], [7], [467], [200, 150, 80], [1000], [485, 2], [300], [64], [1, 1, 1, 1, 500], [458])


@pytest.fixture(autouse=True, scope="module")
def found() -> None:
    assert [gpu.device for gpu in placement.here()] == [OPENVINO], "EDGE_EMBED_ENGINE names no engine with OpenVINO"


@pytest.fixture
def info(qwen3_path: Path) -> ModelInfo:
    return read_model_info(read_header(qwen3_path))


@pytest.fixture
def engines(info: ModelInfo) -> Iterator[tuple[LlamaEngine, LlamaEngine]]:
    """On OpenVINO, and on the processor by llama.cpp's own kernels."""
    made = [LlamaEngine(info, n_threads=2, device=device) for device in (OPENVINO, CPU)]
    yield made[0], made[1]
    for engine in made:
        engine.close()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms  # type: ignore[no-any-return]


def test_texts_of_all_lengths_in_any_order(engines: tuple[LlamaEngine, LlamaEngine]) -> None:
    """llama.cpp lays a graph out anew whenever shapes change, and the compiled one has to follow."""
    openvino, processor = engines
    for turn in range(3):
        for lengths in LENGTHS:
            n = sum(lengths)
            ids = (np.arange(n, dtype=np.int64) * 7919 + turn) % openvino.limits.n_vocab
            batch = Batch(ids.astype(np.int32), np.array(lengths, dtype=np.int32), tuple(range(len(lengths))))
            assert cosines(openvino.decode(batch), processor.decode(batch)).min() > NEAR, lengths
    assert openvino.device == OPENVINO, "the processor took over"


def test_a_row_is_the_same_in_any_batch(qwen3_path: Path) -> None:
    texts = ["cat " * n for n in (1, 30, 200, 3, 400, 90)]
    with Embedder(qwen3_path, device=OPENVINO, n_threads=2) as model:
        together = model.encode(texts)
        alone = np.array([model.encode(text) for text in texts])
        assert model.device == OPENVINO
    assert cosines(together, alone).min() > NEAR


def test_encoders_lead_to_the_processor_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    path.write_bytes(gguf_bytes(*tiny_bert()))
    with Embedder(path, device=CPU) as model:
        expected = model.encode(["cat", "a cat"])
    with pytest.warns(DeviceWarning, match="openvino:0 does not compute .*: the CPU does"):
        model = Embedder(path)
    with model:
        np.testing.assert_array_equal(model.encode(["cat", "a cat"]), expected)
        assert model.device == CPU
    with pytest.raises(EngineUnavailableError, match="openvino:0 does not compute"):
        Embedder(path, device=OPENVINO)
