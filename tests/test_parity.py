"""Vectors against the original models: recorded ones in every test run, live ones with `make parity`.

The recorded vectors were computed by transformers in float32 (``tests/make_golden.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge_embed import Embedder
from edge_embed.convert.convert import convert
from tests import oracle
from tests.checkpoints import build_tiny_bert, build_tiny_qwen3
from tests.golden_texts import TEXTS
from tests.make_golden import GOLDEN


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(model, type) -> the GGUF that the converter makes of it."""
    folder = tmp_path_factory.mktemp("parity")
    sources = {
        "minilm": oracle.minilm_folder(),
        "tiny_bert": build_tiny_bert(folder / "bert", pooling="cls"),
        "tiny_qwen3": build_tiny_qwen3(folder / "qwen3"),
    }
    made = {}
    for model, types in {
        "minilm": ("f32", "f16", "bf16", "q8_0"),
        "tiny_bert": ("f32", "f16", "bf16", "q8_0"),
        "tiny_qwen3": ("f16", "bf16", "q8_0"),
    }.items():
        for ftype in types:
            made[model, ftype] = convert(sources[model], folder / f"{model}-{ftype}.gguf", ftype=ftype).path
    return made


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b).sum(axis=1)


@pytest.mark.parametrize(
    ("model", "ftype", "least"),
    [
        ("minilm", "f32", 0.99999),
        ("minilm", "f16", 0.9999),
        ("minilm", "bf16", 0.9998),
        ("minilm", "q8_0", 0.996),  # 8-bit activations of a model of 22 million weights; the bundled file does better
        ("tiny_bert", "f32", 0.99999),
        ("tiny_bert", "f16", 0.9999),
        ("tiny_bert", "bf16", 0.9998),
        ("tiny_bert", "q8_0", 0.999),
        ("tiny_qwen3", "f16", 0.9999),
        ("tiny_qwen3", "bf16", 0.9999),
        ("tiny_qwen3", "q8_0", 0.998),
    ],
)
def test_converted_model_gives_the_originals_vectors(
    model: str, ftype: str, least: float, golden: dict[str, np.ndarray], converted: dict[tuple[str, str], Path]
) -> None:
    with Embedder(converted[model, ftype]) as embedder:
        found = cosines(embedder.encode(TEXTS), golden[model])
    assert found.min() >= least, f"text {found.argmin()}: {TEXTS[found.argmin()][:60]!r}"


def test_bundled_model_gives_the_originals_vectors(golden: dict[str, np.ndarray]) -> None:
    with Embedder() as embedder:
        found = cosines(embedder.encode(TEXTS), golden["minilm"])
    assert found.min() >= 0.998
    assert found.mean() >= 0.9995


@pytest.mark.parametrize("model", ["minilm", "tiny_bert", "tiny_qwen3"])
def test_ids_are_the_original_tokenizers(model: str, converted: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folders = {
        "minilm": oracle.minilm_folder,
        "tiny_bert": lambda: build_tiny_bert(tmp_path),
        "tiny_qwen3": lambda: build_tiny_qwen3(tmp_path),
    }
    original = Tokenizer.from_file(str(folders[model]() / "tokenizer.json"))
    original.no_truncation()
    original.no_padding()
    with Embedder(converted[model, "q8_0"]) as embedder:
        limit = embedder.info.max_tokens
        for text in TEXTS:
            expected = original.encode(text).ids
            found = embedder.tokenize(text)
            assert found.n_original == len(expected)
            if len(expected) <= limit:
                assert found.token_ids.tolist() == expected, text
            else:
                n_suffix = 1
                assert found.token_ids.tolist() == [*expected[: limit - n_suffix], expected[-1]]


def test_every_unicode_character_gets_the_original_wordpiece_ids(converted: dict[tuple[str, str], Path]) -> None:
    original = Tokenizer.from_file(str(oracle.minilm_folder() / "tokenizer.json"))
    original.no_truncation()
    original.no_padding()
    points = [p for p in range(0x30000) if not 0xD800 <= p < 0xE000] + list(range(0xE0000, 0xE0200))
    texts = [f"a{chr(p)}b {chr(p)} É{chr(p)}x" for p in points]
    expected = [encoding.ids for encoding in original.encode_batch(texts)]
    with Embedder(converted["minilm", "q8_0"]) as embedder:
        found = [embedder.tokenize(text).token_ids.tolist() for text in texts]
    assert [hex(p) for p, e, f in zip(points, expected, found, strict=True) if e != f] == []


@pytest.fixture(scope="module")
def smollm2_f16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2 with its Q4_1 weights as float16, which holds them without loss worth naming."""
    path = tmp_path_factory.mktemp("smollm2") / "smollm2-f16.gguf"
    dequantized(oracle.smollm2_file(), path)
    yield path
    path.unlink()


def dequantized(source: Path, target: Path) -> None:
    """Copy a GGUF with its quantized tensors as float16."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        writer.add_tensor(tensor.name, values if len(shape) == 1 else quantize(values, GGMLQuantizationType.F16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_real_causal_model_gives_transformers_last_hidden_state(
    smollm2_f16: Path, golden: dict[str, np.ndarray]
) -> None:
    with Embedder(smollm2_f16, pooling="last") as embedder:
        ids = [embedder.tokenize(text).token_ids for text in TEXTS]
        assert np.concatenate(ids).tolist() == golden["smollm2_ids"].tolist()
        assert cosines(embedder.encode(TEXTS), golden["smollm2"]).min() > 0.9999


def test_qwen3_ends_every_text_with_the_eds_token_once(converted: dict[tuple[str, str], Path]) -> None:
    with Embedder(converted["tiny_qwen3", "f16"], max_tokens=16) as embedder:
        for text in TEXTS:
            for side in ("right", "left"):
                ids = embedder.tokenize(text.replace("<|endoftext|>", ""), truncate=side).token_ids.tolist()
                assert ids[-1] == embedder.info.eds_token_id == 151643
                assert ids.count(151643) == 1


def test_decomposed_text_gets_the_vector_of_composed_text(converted: dict[tuple[str, str], Path]) -> None:
    with Embedder(converted["tiny_qwen3", "f16"]) as embedder:
        composed, decomposed = embedder.encode(["Ärger über Äpfel é", "A\u0308rger u\u0308ber A\u0308pfel e\u0301"])
    assert float(composed @ decomposed) > 0.99999


@pytest.mark.parity
@pytest.mark.parametrize("model", ["minilm", "tiny_bert", "tiny_qwen3"])
def test_recorded_vectors_are_what_transformers_computes_now(model: str, golden: dict[str, np.ndarray]) -> None:
    assert cosines(oracle.MODELS[model](TEXTS), golden[model]).min() > 0.999999


@pytest.mark.parity
@pytest.mark.parametrize("model", ["minilm", "tiny_bert", "tiny_qwen3"])
def test_random_lengths_live_against_transformers(model: str, converted: dict[tuple[str, str], Path]) -> None:
    words = " ".join(TEXTS).split()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, n)) for n in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)]
    with Embedder(converted[model, "f16"]) as embedder:
        assert cosines(embedder.encode(texts), oracle.MODELS[model](texts)).min() > 0.9999


@settings(max_examples=25)
@given(chosen=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=12))
def test_any_batch_in_any_order_gives_a_text_its_own_vector(chosen: list[int], alone: dict[str, Any]) -> None:
    """MiniLM in F16, real weights and texts: cosine of at least 0.9999 to the text computed alone."""
    texts = [TEXTS[i] for i in chosen]
    found = alone["embedder"].encode(texts)
    assert cosines(found, alone["vectors"][chosen]).min() >= 0.9999


@pytest.fixture(scope="module")
def alone(converted: dict[tuple[str, str], Path]) -> Iterator[dict[str, Any]]:
    """An Embedder of MiniLM in F16, and each text's vector computed by itself."""
    with Embedder(converted["minilm", "f16"]) as embedder:
        yield {"embedder": embedder, "vectors": np.array([embedder.encode(text) for text in TEXTS])}
