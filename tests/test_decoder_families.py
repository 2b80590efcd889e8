"""Qwen2, Gemma 3, Llama, Mistral and Dense modules against their originals, run by sentence-transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from edge_embed import Embedder
from edge_embed.convert.architectures.family import PlannedTensor
from edge_embed.convert.checkpoint import Weights
from edge_embed.convert.convert import convert
from edge_embed.convert.values import read_rows, rotary_row
from edge_embed.convert.verify import verify
from edge_embed.engine.llama import LlamaEngine
from edge_embed.errors import CheckpointError, ModelFileError, UnsupportedCheckpointError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.model_info import read_model_info
from tests.checkpoints import write_safetensors
from tests.converting import MISSING, edited, metadata, stock, tensors
from tests.families import gemma3, golden, labse, llama, mistral, qwen2, qwen3_both_ways, unpacked
from tests.families._decoders import dense_module
from tests.golden_texts import TEXTS

# name -> the family's module, its options, and the vectors in its golden file
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    **{f"qwen2-{name}": (qwen2, options, name) for name, options in qwen2.VARIANTS.items()},
    **{f"qwen3-{name}": (qwen3_both_ways, options, name) for name, options in qwen3_both_ways.VARIANTS.items()},
    **{f"llama-{name}": (llama, options, name) for name, options in llama.VARIANTS.items()},
    **{f"gemma3-{name}": (gemma3, options, name) for name, options in gemma3.VARIANTS.items()},
    "mistral": (mistral, {}, "vectors"),
    "mistral-window": (mistral, {"sliding_window": 64}, "within_64"),
    "labse": (labse, {}, "vectors"),
}
LEAST = {"f16": 0.9999, "bf16": 0.9999, "q8_0": 0.999}
SHORT = TEXTS[:12]


def cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    result: npt.NDArray[np.float64] = (a * b).sum(axis=1)
    return result


class Made(dict[Any, Path]):
    """Makes what is asked for, once."""

    def __init__(self, make: Callable[[Any], Path]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: Any) -> Path:
        self[key] = self.make(key)
        return self[key]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case -> its checkpoint."""
    root = tmp_path_factory.mktemp("decoders")
    return Made(lambda case: CASES[case][0].build(root / case, **CASES[case][1]))


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(case, type) -> its GGUF."""
    root = tmp_path_factory.mktemp("gguf")
    return Made(lambda key: convert(folders[key[0]], root / f"{'-'.join(key)}.gguf", ftype=key[1]).path)


@pytest.mark.parametrize("ftype", LEAST)
@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_gives_the_originals_vectors(
    case: str, ftype: str, files: dict[tuple[str, str], Path]
) -> None:
    module, _, key = CASES[case]
    with Embedder(files[case, ftype], n_threads=1) as embedder:
        found = cosines(embedder.encode(TEXTS), golden(module.NAME)[key])
    assert found.min() >= LEAST[ftype], f"text {found.argmin()}: {TEXTS[found.argmin()][:60]!r}"


@pytest.mark.parity
@pytest.mark.parametrize("module", [qwen2, qwen3_both_ways, llama, gemma3, mistral, labse])
def test_recorded_vectors_are_what_the_originals_give_now(module: Any) -> None:
    found, recorded = module.record(), golden(module.NAME)
    assert unpacked(found) == unpacked(recorded)
    for key in found.keys() - {"ids", "ids_lengths"}:
        assert cosines(found[key], recorded[key]).min() > 0.999999, key


@pytest.mark.parametrize("case", ["qwen2-causal_last", "llama-causal_last", "gemma3-as_published", "mistral", "labse"])
def test_ids_are_the_original_tokenizers(case: str, files: dict[tuple[str, str], Path]) -> None:
    with Embedder(files[case, "f16"], n_threads=1) as embedder:
        found = [embedder.tokenize(text).token_ids.tolist() for text in TEXTS]
    assert found == unpacked(golden(CASES[case][0].NAME))


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("labse", "gemma3-bias_and_tanh")])
def test_stock_llama_cpp_gives_the_same_vectors(case: str, files: dict[tuple[str, str], Path]) -> None:
    """The standard keys say it all, the direction of attention, the window and Gemma's Dense modules included."""
    texts = SHORT if case != "mistral-window" else SHORT[:3]  # the others are longer than the window
    vectors, _ = stock(files[case, "f16"], texts, n_ctx=512)
    with Embedder(files[case, "f16"], n_threads=1) as embedder:
        ours = embedder.encode(texts, prompt="")
    assert cosines(ours, vectors).min() > 0.9999


@pytest.mark.parametrize("case", ["labse", "gemma3-bias_and_tanh"])
def test_what_llama_cpp_lacks_is_said_and_is_no_tensor(
    case: str, folders: dict[str, Path], files: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """Stock llama.cpp loads the file and gives the vector before the Dense module."""
    report = convert(folders[case], tmp_path / "m.gguf", ftype="f16")
    assert any("llama.cpp does not compute them" in note for note in report.notes)
    assert not [name for name in tensors(report.path) if "dense" in name]
    before, _ = stock(report.path, SHORT, n_ctx=512)
    with Embedder(report.path, n_threads=1) as embedder:
        engine, layers = embedder.backend.engine, embedder.info.dense
        assert [(layer.n_in, layer.n_out, layer.activation) for layer in layers] == [
            (before.shape[1], embedder.info.n_embd, "tanh")
        ]
        raw = np.stack([engine.decode(_alone(embedder, text))[0] for text in SHORT])
    assert cosines(raw, before).min() > 0.9999


def _alone(embedder: Embedder, text: str) -> Any:
    from edge_embed.batching import pack

    return next(iter(pack([embedder.tokenize(text)], n_batch=512, n_seq_max=1)))


@pytest.mark.parametrize(
    "case", ["qwen2-both_ways_last", "qwen3-last", "llama-both_ways_mean", "gemma3-bias_and_tanh", "mistral"]
)
def test_verify_finds_nothing_wrong(case: str, folders: dict[str, Path], files: dict[tuple[str, str], Path]) -> None:
    """Its own forward pass, written without a look at llama.cpp, agrees as well."""
    found = verify(files[case, "f16"], folders[case])
    assert found.problems == ()
    assert found.vectors is not None
    assert found.vectors.min_cosine > 0.9999


# Attention


@pytest.mark.parametrize("case", ["qwen2-both_ways_last", "qwen2-both_ways_mean", "qwen2-causal_mean"])
def test_long_texts_and_any_batch(case: str, files: dict[tuple[str, str], Path]) -> None:
    """Texts beyond 512 tokens, llama.cpp's usual ubatch, alone and together, pooled here and there."""
    texts = [" ".join(TEXTS[i : i + 16])[:1100] for i in (0, 1, 2, 3)] + SHORT
    with Embedder(files[case, "f16"], n_threads=1, max_tokens=1024, n_batch=2048) as embedder:
        together = embedder.encode(texts)
        single = np.stack([embedder.encode(text) for text in texts])
        assert min(embedder.tokenize(text).n_tokens for text in texts[:4]) > 512
        engine = LlamaEngine(embedder.info, n_threads=1, hidden=False)
        with Embedder.from_parts(embedder.info, engine, embedder.tokenizer) as pooled:
            other = pooled.encode(texts)
    assert cosines(together, single).min() > 0.99999
    assert cosines(together, other).min() > 0.99999


def test_the_direction_of_attention_is_in_the_file(files: dict[tuple[str, str], Path]) -> None:
    for case, causal in (("qwen2-causal_last", True), ("qwen2-both_ways_last", False), ("mistral", True)):
        assert read_model_info(read_header(files[case, "f16"])).causal is causal
    first = {
        case: _first_hidden(files[case, "f16"], ["a b", "a c"])
        for case in ("qwen2-causal_mean", "qwen2-both_ways_mean")
    }
    assert first["qwen2-causal_mean"] > 0.9999999 > 0.999 > first["qwen2-both_ways_mean"]


def _first_hidden(path: Path, texts: list[str]) -> float:
    """How alike the first tokens are of texts that differ behind it."""
    with Embedder(path, n_threads=1, pooling="cls") as embedder:
        a, b = embedder.encode(texts)
    return float(a.astype(np.float64) @ b)


def test_a_window_reaches_half_its_size_to_each_side(folders: dict[str, Path], tmp_path: Path) -> None:
    """A wider window is another model for a text that is longer, and the same one for a text that is not."""
    wide = gemma3.build(tmp_path / "wide", window=1024)
    vectors = []
    for folder in (folders["gemma3-as_published"], wide):
        with Embedder(convert(folder, tmp_path / "m.gguf", ftype="f16").path, n_threads=1) as embedder:
            short, long = "a b c", TEXTS[-1]
            assert embedder.tokenize(short).n_tokens <= gemma3.WINDOW // 2 < embedder.tokenize(long).n_tokens
            vectors.append(embedder.encode([short, long]))
    short_cosine, long_cosine = cosines(*vectors)
    assert short_cosine > 0.999999 > 0.999 > long_cosine


def test_mistral_ends_texts_where_its_window_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    report = convert(folders["mistral-window"], tmp_path / "m.gguf", ftype="f16")
    assert any("texts end at 64 tokens" in note for note in report.notes)
    assert metadata(report.path)["llama.context_length"] == 64
    assert not convert(mistral.build(tmp_path / "m", sliding_window=None), tmp_path / "n.gguf", ftype="f16").notes


def test_llama_3s_scaling_is_a_tensor(folders: dict[str, Path], files: dict[tuple[str, str], Path]) -> None:
    factors = tensors(files["llama-llama3_last", "q8_0"])["rope_freqs.weight"]
    assert factors.data.dtype == np.float32
    assert (factors.data[0], factors.data[-1]) == (1.0, 8.0)
    assert (np.diff(factors.data) >= 0).all()
    assert "rope_freqs.weight" not in tensors(files["llama-causal_last", "q8_0"])


def test_rows_of_a_head_are_interleaved_whatever_the_chunk(tmp_path: Path) -> None:
    """As llama.cpp rotates neighbours: the two halves of each head, taken in turns."""
    values = np.arange(3 * 8 * 2, dtype=np.float32).reshape(24, 2)
    write_safetensors(tmp_path / "model.safetensors", {"q": values})
    expected = values.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3).reshape(24, 2)
    assert sorted(rotary_row(row, 8) for row in range(8)) == list(range(8))
    with Weights(tmp_path, ["model.safetensors"]) as weights:
        planned = PlannedTensor(weights.tensors["q"], "blk.0.attn_q.weight", n_heads=3)
        for size in (1, 5, 8, 11, 24):
            parts = [read_rows(weights, planned, at, min(size, 24 - at)) for at in range(0, 24, size)]
            np.testing.assert_array_equal(np.concatenate(parts), expected)


# What is read from the small files


def test_prompts_and_instructions(files: dict[tuple[str, str], Path]) -> None:
    gemma = read_model_info(read_header(files["gemma3-as_published", "q8_0"]))
    assert gemma.prompts == gemma3.PROMPTS
    assert (gemma.pooling, gemma.n_embd, gemma.dense) == ("mean", 128, ())
    info = read_model_info(read_header(files["mistral", "q8_0"]))
    assert info.instruction_template == "Instruct: {instruction}\nQuery: "
    assert info.prompts["web_search_query"] == mistral.PROMPT
    with Embedder(files["mistral", "f16"], n_threads=1) as embedder:
        ids = embedder.tokenize("x" * 3000).token_ids.tolist()
        assert (ids[0], ids[-1], len(ids)) == (1, 2, 512)
        asked = embedder.encode_query("where?")
        assert float(asked @ embedder.encode(mistral.PROMPT + "where?", prompt="")) > 0.99999


def test_own_code_is_not_run_and_what_it_would_decide_is_asked_for(tmp_path: Path) -> None:
    """gte-Qwen2's config.json names its code, and is_causal says which way that code looks."""
    folder = qwen2.build(tmp_path / "m", own_code=True, causal=False)
    report = convert(folder, tmp_path / "m.gguf", ftype="f16")
    assert any("attention looks both ways" in note for note in report.notes)
    assert metadata(report.path)["qwen2.attention.causal"] is False
    edited(folder / "config.json", is_causal=MISSING)
    with pytest.raises(UnsupportedCheckpointError, match="no is_causal"):
        convert(folder, tmp_path / "n.gguf")
    edited(folder / "config.json", auto_map={"AutoModel": "modeling_other.Qwen2Model"}, is_causal=True)
    with pytest.raises(UnsupportedCheckpointError, match="auto_map"):
        convert(folder, tmp_path / "n.gguf")


def test_names_with_and_without_a_prefix(tmp_path: Path) -> None:
    for module in (qwen2, llama):
        found = []
        for prefix in ("", "model."):
            folder = module.build(tmp_path / f"{module.NAME}{prefix}", prefix=prefix)
            path = convert(folder, tmp_path / "m.gguf", ftype="f16").path
            found.append({name: tensor.data.tobytes() for name, tensor in tensors(path).items()})
        assert found[0].keys() == found[1].keys()


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (qwen2, {"use_sliding_window": True}, "use_sliding_window is True"),
        (qwen2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scales positions"),
        (qwen2, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "scales positions"),
        (qwen2, {"layer_types": ["full_attention", "sliding_attention"]}, "full attention in all layers"),
        (qwen2, {"layer_types": [["full_attention"]]}, "full attention in all layers"),
        (qwen2, {"layer_types": 2}, "full attention in all layers"),
        (qwen2, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (qwen2, {"head_dim": 64}, "the heads are 256 wide together and hidden_size is 128"),
        (qwen2, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (qwen2, {"architectures": ["Qwen2ForSequenceClassification"]}, "head is not converted"),
        (llama, {"attention_bias": True}, "attention_bias is True"),
        (llama, {"mlp_bias": True}, "mlp_bias is True"),
        (llama, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        (llama, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        (llama, {"quantization_config": {"bits": 4}}, "quantized already"),
        (llama, {"architectures": ["LlamaForSequenceClassification"]}, "head is not converted"),
        (mistral, {"architectures": ["MistralForSequenceClassification"]}, "head is not converted"),
        (gemma3, {"use_bidirectional_attention": False}, "use_bidirectional_attention is not true"),
        (gemma3, {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256 and head_dim 48"),
        (gemma3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (gemma3, {"attention_bias": True}, "attention_bias is True"),
        (gemma3, {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        (gemma3, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "scales positions"),
        (gemma3, {"architectures": ["Gemma3ForCausalLM"]}, "only text encoders"),
    ],
)
def test_what_would_not_be_computed_faithfully_is_refused_by_name(
    module: Any, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = module.build(tmp_path / "m")
    edited(folder / "config.json", **fields)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        convert(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (llama, {"head_dim": 47}, "head_dim"),
        (llama, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (llama, {"rope_scaling": {**llama.LLAMA3, "high_freq_factor": 0.5}}, "more than low_freq_factor"),
        (llama, {"num_key_value_heads": 3}, "num_key_value_heads"),
        (gemma3, {"layer_types": ["full_attention"]}, "layer_types"),
        (gemma3, {"layer_types": ["chunked_attention"] * 6}, "layer_types"),
        (gemma3, {"sliding_window": MISSING}, "sliding_window"),
        (qwen2, {"is_causal": "no"}, "is_causal"),
    ],
)
def test_a_malformed_config(module: Any, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = module.build(tmp_path / "m")
    edited(folder / "config.json", **fields)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "m.gguf")


def test_gemmas_rotation_in_both_spellings(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers 5 writes one object for each kind of layer, 4 two fields; a pattern may stand for the list."""
    old = folders["gemma3-as_published"]
    new = gemma3.build(tmp_path / "new")
    edited(
        new / "config.json",
        rope_theta=MISSING,
        rope_local_base_freq=MISSING,
        layer_types=MISSING,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    first, second = (
        metadata(convert(folder, tmp_path / "m.gguf", ftype="f16", name="m").path) for folder in (old, new)
    )
    assert first == second
    assert first["gemma-embedding.rope.freq_base_swa"] == 10000.0
    assert first["gemma-embedding.attention.sliding_window_pattern"] == [True, True, False] * 2


# Dense modules


def rewrite_dense(folder: Path, number: int, module: dict[str, Any]) -> None:
    (folder / f"{number}_Dense" / "config.json").write_text(json.dumps(module["config"]), "utf-8")
    write_safetensors(folder / f"{number}_Dense" / "model.safetensors", module["tensors"], "f32")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.GELU"},
            UnsupportedCheckpointError,
            "GELU.* not computed",
        ),
        ({"activation_function": "os.system"}, UnsupportedCheckpointError, "'os.system' is not computed"),
        ({"module_input_name": "token_embeddings"}, UnsupportedCheckpointError, "token_embeddings"),
        ({"use_residual": True}, UnsupportedCheckpointError, "use_residual"),
        ({"bias": False}, CheckpointError, "has the tensors linear.bias, linear.weight"),
        ({"out_features": 32}, CheckpointError, "linear.weight.* config.json makes it"),
        ({"in_features": MISSING}, CheckpointError, "in_features"),
    ],
)
def test_a_dense_module_that_is_not_computed(
    fields: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = labse.build(tmp_path / "m")
    edited(folder / "2_Dense" / "config.json", **fields)
    with pytest.raises(error, match=message):
        convert(folder, tmp_path / "m.gguf")


def test_a_dense_module_without_weights_or_with_pickled_ones(tmp_path: Path) -> None:
    folder = labse.build(tmp_path / "m")
    weights = folder / "2_Dense" / "model.safetensors"
    weights.rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UnsupportedCheckpointError, match="2_Dense has its weights only as pickle"):
        convert(folder, tmp_path / "m.gguf")
    (folder / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors is missing"):
        convert(folder, tmp_path / "m.gguf")


def test_dense_modules_that_do_not_fit_each_other(tmp_path: Path) -> None:
    folder = labse.build(tmp_path / "m")
    rewrite_dense(folder, 2, dense_module(2, 32, 64, bias=True, activation="Tanh"))
    with pytest.raises(CheckpointError, match="Dense module 0 takes vectors of 32, and gets those of 64"):
        convert(folder, tmp_path / "m.gguf")


def test_vectors_have_the_size_of_the_last_module(tmp_path: Path) -> None:
    path = convert(labse.build(tmp_path / "m", n_out=24), tmp_path / "m.gguf", ftype="f16", mrl_dimensions=[8]).path
    with Embedder(path, n_threads=1) as embedder:
        assert (embedder.info.n_embd, embedder.info.n_hidden, embedder.info.mrl_dimensions) == (24, 64, (8,))
        assert embedder.encode(SHORT).shape == (12, 24)
        assert embedder.encode(SHORT, truncate_dim=8).shape == (12, 8)


# Files that would end the process, or be computed wrongly


def with_metadata(path: Path, **changes: Any) -> GgufHeader:
    header = read_header(path)
    values = {key: value for key, value in header.metadata.items() if changes.get(key) is not MISSING}
    return replace(header, metadata=values | {k: v for k, v in changes.items() if v is not MISSING})


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("qwen2-causal_last", "qwen2.attention.value_length", 16, "value_length is 16, and heads have 32"),
        ("qwen2-causal_last", "qwen2.rope.dimension_count", 16, "dimension_count is 16, and heads have 32"),
        ("llama-causal_last", "llama.rope.dimension_count", 16, "dimension_count is 16, and heads have 48"),
        ("llama-causal_last", "llama.attention.value_length_swa", 16, "value_length_swa is 16"),
        ("llama-causal_last", "llama.attention.causal", "no", "expected bool"),
        ("gemma3-as_published", "gemma-embedding.attention.sliding_window", MISSING, "sliding_window"),
        ("gemma3-as_published", "gemma-embedding.attention.causal", True, "looks both ways"),
        ("gemma3-as_published", "gemma-embedding.attention.sliding_window_pattern", [True], "have 6 entries"),
        ("gemma3-as_published", "gemma-embedding.dense_2_feat_in", 64, "dense_2 and dense_3"),
        ("gemma3-as_published", "gemma-embedding.dense_2_feat_out", MISSING, "dense_2 and dense_3"),
        ("gemma3-as_published", "gemma-embedding.dense_3_feat_out", 64, "dense_2 and dense_3"),
        ("labse", "edge_embed.dense.0.in_features", 63, "for 63 values"),
        ("labse", "edge_embed.dense.0.weight", [1.0] * 63, "63 weights"),
        ("labse", "edge_embed.dense.0.weight", [float("nan")] * 4096, "not finite"),
        ("labse", "edge_embed.dense.0.weight", "weights", "not a list of numbers"),
        ("labse", "edge_embed.dense.0.bias", [1.0] * 3, "3 biases"),
    ],
)
def test_a_file_that_contradicts_itself(
    case: str, key: str, value: Any, message: str, files: dict[tuple[str, str], Path]
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model_info(with_metadata(files[case, "f16"], **{key: value}))


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("labse", "edge_embed.dense.0.activation", "relu", "'relu', not identity or tanh"),
        ("qwen3-last", "qwen3.pooling_type", 4, "that looks both ways"),
        ("llama-causal_last", "llama.expert_count", 8, "mixtures of experts"),
        ("llama-causal_last", "llama.expert_used_count", 2, "mixtures of experts"),
        ("qwen2-causal_last", "qwen2.rope.scaling.type", "spiral", "'spiral', which is not known"),
    ],
)
def test_a_file_that_is_not_run_faithfully(
    case: str, key: str, value: Any, message: str, files: dict[tuple[str, str], Path]
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_model_info(with_metadata(files[case, "f16"], **{key: value}))


def test_types_follow_llama_cpp_byte_for_byte(folders: dict[str, Path], tmp_path: Path) -> None:
    """Gemma's Dense modules and Llama's divisors as llama.cpp's own quantizer has them."""
    for case in ("gemma3-as_published", "llama-llama3_last"):
        exact = convert(folders[case], tmp_path / "exact.gguf", ftype="f32").path
        ours = tensors(convert(folders[case], tmp_path / "ours.gguf", ftype="q4_k_m").path)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
        assert llama_cpp.llama_model_quantize(bytes(exact), bytes(tmp_path / "theirs.gguf"), params) == 0
        theirs = tensors(tmp_path / "theirs.gguf")
        assert {name: (t.tensor_type, t.data.tobytes()) for name, t in ours.items()} == {
            name: (t.tensor_type, t.data.tobytes()) for name, t in theirs.items()
        }


@pytest.mark.parametrize("module", [qwen2, mistral])
def test_add_eos_token_counts_where_the_post_processor_says_nothing(module: Any, tmp_path: Path) -> None:
    """As e5-mistral and gte-Qwen2 are published: the flag in one file, its effect not in the other."""
    folder = module.build(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if module is qwen2:
        tokenizer["post_processor"] = None
    else:
        template = tokenizer["post_processor"]
        template["single"], template["pair"] = template["single"][:2], [template["pair"][i] for i in (0, 1, 3, 4)]
        del template["special_tokens"]["</s>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    edited(folder / "tokenizer_config.json", add_eos_token=True)
    report = convert(folder, tmp_path / "m.gguf", ftype="f16")
    assert any("by add_eos_token of" in note for note in report.notes)
    with Embedder(report.path, n_threads=1) as embedder:
        found = [embedder.tokenize(text).token_ids.tolist() for text in TEXTS]
    assert found == unpacked(golden(module.NAME))
    edited(folder / "tokenizer_config.json", eos_token="<nothing>")
    with pytest.raises(CheckpointError, match="'<nothing>' is no token"):
        convert(folder, tmp_path / "n.gguf")
