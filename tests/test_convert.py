"""What a converted file says and holds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, TokenType

from edge_embed import errors, keys
from edge_embed.convert import FTYPES, convert
from tests.checkpoints import QWEN3_QUERY_PROMPT, build_tiny_bert
from tests.converting import edited, metadata, small_qwen3, tensors


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint that no test changes."""
    return build_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert", max_seq_length=96)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 checkpoint that no test changes."""
    return small_qwen3(tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3")


# ---------------------------------------------------------------- metadata


def test_metadata_of_bert(bert_folder: Path, tmp_path: Path) -> None:
    """Standard keys first, as llama.cpp reads them; then what the standard has no name for."""
    found = metadata(convert(bert_folder, tmp_path / "m.gguf").path)
    vocabulary = {key: found.pop(key) for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")}
    weights = (bert_folder / "model.safetensors").read_bytes()
    assert found == {
        "general.architecture": "bert",
        "general.type": "model",
        "general.name": "tiny-bert",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "bert.block_count": 2,
        "bert.context_length": 128,
        "bert.embedding_length": 64,
        "bert.feed_forward_length": 256,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": pytest.approx(1e-12),
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "bert-bge",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
        "edge_embed.version": 1,
        "edge_embed.max_tokens": 96,
        "edge_embed.normalize": True,
        "edge_embed.unicode_normalization": "none",
        "edge_embed.wordpiece.lowercase": True,
        "edge_embed.wordpiece.strip_accents": True,
        "edge_embed.wordpiece.handle_chinese_chars": True,
        "edge_embed.wordpiece.clean_text": True,
        "edge_embed.wordpiece.max_input_chars_per_word": 100,
        "edge_embed.quantization.recipe": "q8_0",
        "edge_embed.source.sha256": hashlib.sha256(weights).hexdigest(),
    }
    assert vocabulary["tokenizer.ggml.tokens"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert vocabulary["tokenizer.ggml.token_type"][:6] == [TokenType.CONTROL] * 5 + [TokenType.NORMAL]


def test_metadata_of_qwen3(qwen3_folder: Path, tmp_path: Path) -> None:
    """The EDS token is the end-of-sequence token that llama.cpp appends; the end of a chat turn has its own key."""
    found = metadata(convert(qwen3_folder, tmp_path / "m.gguf", ftype="F16").path)
    vocabulary = {f"tokenizer.ggml.{key}": found.pop(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type")}
    merges = found.pop("tokenizer.ggml.merges")
    weights = (qwen3_folder / "model.safetensors").read_bytes()
    assert found == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "tiny-qwen3",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "qwen3.block_count": 2,
        "qwen3.context_length": 2048,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 192,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 1e6,
        "qwen3.pooling_type": 3,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 276,
        "tokenizer.ggml.eot_token_id": 278,
        "tokenizer.ggml.padding_token_id": 276,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": True,
        "edge_embed.version": 1,
        "edge_embed.max_tokens": 2048,
        "edge_embed.normalize": True,
        "edge_embed.prompt.query": QWEN3_QUERY_PROMPT,
        "edge_embed.prompt.document": "",
        "edge_embed.instruction_template": "Instruct: {instruction}\nQuery:",
        "edge_embed.eds_token_id": 276,
        "edge_embed.tokenizer.pair_separator": [276],
        "edge_embed.unicode_normalization": "NFC",
        "edge_embed.quantization.recipe": "f16",
        "edge_embed.source.sha256": hashlib.sha256(weights).hexdigest(),
    }
    assert vocabulary["tokenizer.ggml.tokens"][276:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert merges[:2] == ["Ġ t", "Ġ a"]


def test_what_the_caller_says_is_recorded(bert_folder: Path, tmp_path: Path) -> None:
    report = convert(
        bert_folder,
        tmp_path / "m.gguf",
        name="A name",
        license="apache-2.0",
        repository="someone/model",
        revision="0123abc",
        mrl_dimensions=(64, 16, 32, 16),
    )
    found = metadata(report.path)
    assert report.name == found["general.name"] == "A name"
    assert found["general.license"] == "apache-2.0"
    assert found[keys.SOURCE_REPOSITORY] == "someone/model"
    assert found[keys.SOURCE_REVISION] == "0123abc"
    assert found[keys.MRL_DIMENSIONS] == [16, 32, 64]


def test_trained_dimensions_of_the_checkpoint_are_recorded_unless_the_caller_knows_better(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "model")
    edited(folder / "config.json", matryoshka_dimensions=[64, 32])
    assert metadata(convert(folder, tmp_path / "m.gguf").path)[keys.MRL_DIMENSIONS] == [32, 64]
    found = metadata(convert(folder, tmp_path / "m.gguf", mrl_dimensions=[8]).path)
    assert found[keys.MRL_DIMENSIONS] == [8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mrl_dimensions": (0,)}, "integers from 1 to 64"),
        ({"mrl_dimensions": (65,)}, "integers from 1 to 64"),
        ({"mrl_dimensions": (True,)}, "integers from 1 to 64"),
        ({"threads": 0}, "threads"),
        ({"pooling": "cls"}, "the checkpoint has 'mean'"),
        ({"pooling": "rank"}, "the checkpoint has 'mean'"),
        ({"ftype": "q9"}, "unknown type 'q9'"),
        ({"overrides": [("attn_v", "q9")]}, "unknown tensor type 'q9'"),
        ({"overrides": [("attn_(", "f16")]}, "not a regular expression"),
        ({"name": "half of a pair \ud800"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"license": "\udfff"}, "license"),
        ({"repository": "\ud800"}, "repository"),
        ({"revision": "\ud800"}, "revision"),
    ],
)
def test_an_option_outside_its_range_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, bert_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.InvalidOptionError, match=message):
        convert(bert_folder, tmp_path / "m.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_report_agrees_with_the_file(qwen3_folder: Path, tmp_path: Path) -> None:
    report = convert(qwen3_folder, tmp_path / "m.gguf", ftype="q4_k_m")
    data = report.path.read_bytes()
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert report.size_bytes == len(data)
    written = tensors(report.path)
    assert [t.name for t in report.tensors] == list(written)
    for tensor in report.tensors:
        assert tensor.shape == tuple(int(n) for n in reversed(written[tensor.name].shape))
        assert tensor.got == written[tensor.name].tensor_type.name
        assert tensor.nbytes == written[tensor.name].n_bytes
    assert report.n_parameters == sum(int(t.n_elements) for t in written.values())
    assert report.bits_per_weight == pytest.approx(8 * sum(t.nbytes for t in report.tensors) / report.n_parameters)
    assert (report.architecture, report.ftype, report.skipped) == ("qwen3", "q4_k_m", ())


def test_progress_counts_every_byte_of_the_checkpoint_once(bert_folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    report = convert(bert_folder, tmp_path / "m.gguf", progress=lambda *call: calls.append(call))
    n_bytes = 4 * report.n_parameters  # of float32
    size = (bert_folder / "model.safetensors").stat().st_size
    hashed = [call for call in calls if call[2] == "model.safetensors"]
    assert hashed == calls[: len(hashed)]
    assert hashed[-1][:2] == (size, size)
    converted = calls[len(hashed) :]
    done = [call[0] for call in converted]
    assert done == sorted(done)
    assert done[-1] == n_bytes
    assert {call[1] for call in converted} == {n_bytes}
    assert {call[2] for call in converted} == {t.name for t in report.tensors}


@pytest.mark.parametrize("ftype", FTYPES)
def test_default_name_of_the_file(
    ftype: str, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's name and the type, in the working directory or in the folder that is given."""
    monkeypatch.chdir(tmp_path)
    expected = tmp_path / f"tiny-bert-{ftype.upper()}.gguf"
    assert convert(bert_folder, ftype=ftype).path.resolve() == expected
    first = expected.read_bytes()
    expected.unlink()
    assert convert(bert_folder, tmp_path, ftype=ftype).path == expected
    assert expected.read_bytes() == first


def test_a_name_with_a_slash_does_not_leave_the_folder(bert_folder: Path, tmp_path: Path) -> None:
    assert convert(bert_folder, tmp_path, name="../up").path == tmp_path / "..-up-Q8_0.gguf"


# ---------------------------------------------------------------- the weights


def widened(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as float32, without this project's reader."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    result = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[begin:end], {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]])
        wide = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw.astype(np.float32)
        result[name] = wide.reshape(entry["shape"])
    return result


BERT_NAMES = {
    "token_embd.weight": "embeddings.word_embeddings.weight",
    "position_embd.weight": "embeddings.position_embeddings.weight",
    "token_types.weight": "embeddings.token_type_embeddings.weight",
    "token_embd_norm.bias": "embeddings.LayerNorm.bias",
    "blk.1.attn_q.weight": "encoder.layer.1.attention.self.query.weight",
    "blk.1.attn_k.bias": "encoder.layer.1.attention.self.key.bias",
    "blk.0.attn_v.weight": "encoder.layer.0.attention.self.value.weight",
    "blk.0.attn_output.weight": "encoder.layer.0.attention.output.dense.weight",
    "blk.0.attn_output_norm.weight": "encoder.layer.0.attention.output.LayerNorm.weight",
    "blk.0.ffn_up.weight": "encoder.layer.0.intermediate.dense.weight",
    "blk.0.ffn_down.weight": "encoder.layer.0.output.dense.weight",
    "blk.1.layer_output_norm.bias": "encoder.layer.1.output.LayerNorm.bias",
}
QWEN3_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "blk.0.attn_norm.weight": "layers.0.input_layernorm.weight",
    "blk.0.attn_q.weight": "layers.0.self_attn.q_proj.weight",
    "blk.0.attn_q_norm.weight": "layers.0.self_attn.q_norm.weight",
    "blk.0.attn_k.weight": "layers.0.self_attn.k_proj.weight",
    "blk.0.attn_k_norm.weight": "layers.0.self_attn.k_norm.weight",
    "blk.1.attn_v.weight": "layers.1.self_attn.v_proj.weight",
    "blk.1.attn_output.weight": "layers.1.self_attn.o_proj.weight",
    "blk.1.ffn_norm.weight": "layers.1.post_attention_layernorm.weight",
    "blk.1.ffn_gate.weight": "layers.1.mlp.gate_proj.weight",
    "blk.1.ffn_up.weight": "layers.1.mlp.up_proj.weight",
    "blk.1.ffn_down.weight": "layers.1.mlp.down_proj.weight",
}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("build", "names"), [(build_tiny_bert, BERT_NAMES), (small_qwen3, QWEN3_NAMES)])
def test_f32_holds_the_checkpoints_values_exactly(
    build: Callable[..., Path], names: dict[str, str], dtype: str, tmp_path: Path
) -> None:
    """float32, float16 and bfloat16 sources are widened without loss, under llama.cpp's names."""
    folder = build(tmp_path / "model", dtype=dtype)
    source = widened(folder / "model.safetensors")
    found = tensors(convert(folder, tmp_path / "m.gguf", ftype="f32").path)
    for ours, theirs in names.items():
        assert np.array_equal(found[ours].data.reshape(source[theirs].shape), source[theirs]), ours


def data_of(path: Path) -> bytes:
    """A GGUF's data section, its metadata aside."""
    return path.read_bytes()[int(GGUFReader(path).data_offset) :]


def test_prefixes_of_tensor_names_make_no_difference(tmp_path: Path) -> None:
    for prefix, build in (("bert.", build_tiny_bert), ("model.", small_qwen3)):
        paths = [
            convert(build(tmp_path / f"{prefix}{given}", prefix=given), tmp_path / f"{prefix}{given}.gguf").path
            for given in ("", prefix)
        ]
        assert data_of(paths[0]) == data_of(paths[1])


def test_layer_norms_spelled_gamma_and_beta(bert_folder: Path, tmp_path: Path) -> None:
    """Checkpoints that came from TensorFlow."""
    shutil.copytree(bert_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b"LayerNorm.weight", b"LayerNorm.gamma").replace(b"Norm.bias", b"Norm.beta")
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    renamed = convert(tmp_path / "model", tmp_path / "m.gguf").path
    assert data_of(renamed) == data_of(convert(bert_folder, tmp_path / "n.gguf").path)


def test_heads_that_embeddings_do_not_use_are_left_out_and_named(tmp_path: Path) -> None:
    bert = convert(build_tiny_bert(tmp_path / "bert"), tmp_path / "b.gguf")
    assert {s.name: s.reason for s in bert.skipped} == {
        f"pooler.dense.{part}": "the next-sentence pooler; embeddings are pooled from the last layer"
        for part in ("weight", "bias")
    }
    tied = convert(small_qwen3(tmp_path / "tied", prefix="model."), tmp_path / "t.gguf")
    untied = convert(small_qwen3(tmp_path / "untied", prefix="model.", tied=False), tmp_path / "u.gguf")
    assert tied.skipped == ()
    assert [s.name for s in untied.skipped] == ["lm_head.weight"]
    assert data_of(tied.path) == data_of(untied.path)


@pytest.mark.parametrize("build", [build_tiny_bert, small_qwen3])
def test_shards_give_the_same_tensors_as_one_file(build: Callable[..., Path], tmp_path: Path) -> None:
    """Only the digest of the source differs, since that counts its files."""
    single, sharded = (
        convert(build(tmp_path / f"{kind}", sharded=kind), tmp_path / f"{kind}.gguf", name="m").path
        for kind in (False, True)
    )
    assert data_of(single) == data_of(sharded)
    first, second = metadata(single), metadata(sharded)
    assert {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)} == {keys.SOURCE_SHA256}


def test_digest_of_shards_is_that_of_their_sha256sum_listing(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "model", sharded=True)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("*.safetensors"))
    ]
    found = metadata(convert(folder, tmp_path / "m.gguf").path)
    assert len(lines) == 2
    assert found[keys.SOURCE_SHA256] == hashlib.sha256("".join(lines).encode()).hexdigest()
