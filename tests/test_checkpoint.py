"""Checkpoint folders that are damaged, hostile, or of models that are not converted: each refused by name.

And what the small JSON files around the weights mean: pooling, limits, prompts.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed import errors, keys
from edge_embed.convert import ConversionReport, checkpoint, convert
from edge_embed.convert.checkpoint import Checkpoint, is_inner_path, is_plain_name, short
from edge_embed.convert.modules import instruction_template
from tests.checkpoints import QWEN3_QUERY_PROMPT, build_tiny_bert, write_safetensors
from tests.converting import MISSING, edited, metadata, small_qwen3

Broken = errors.CheckpointError
Unsupported = errors.UnsupportedCheckpointError
NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints to copy."""
    folder = tmp_path_factory.mktemp("pristine")
    return {
        "bert": build_tiny_bert(folder / "bert"),
        "sharded": build_tiny_bert(folder / "sharded", sharded=True),
        "qwen3": small_qwen3(folder / "qwen3"),
    }


@pytest.fixture
def bert(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT checkpoint to damage."""
    return Path(shutil.copytree(pristine["bert"], tmp_path / "bert"))


@pytest.fixture
def sharded(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """The same in two shards."""
    return Path(shutil.copytree(pristine["sharded"], tmp_path / "sharded"))


@pytest.fixture
def qwen3(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A Qwen3 checkpoint to damage."""
    return Path(shutil.copytree(pristine["qwen3"], tmp_path / "qwen3"))


def attempt(folder: Path, **options: Any) -> ConversionReport:
    """Convert next to the folder."""
    return convert(folder, folder.with_suffix(".gguf"), ftype="f16", **options)


def refused(folder: Path, kind: type[errors.ConversionError], message: str, **options: Any) -> None:
    """The conversion is refused so, and leaves no file."""
    with pytest.raises(kind, match=message):
        attempt(folder, **options)
    assert [p.name for p in folder.parent.glob("*.gguf*")] == []


Header = dict[str, Any]


def reheader(path: Path, change: Callable[[Header], None]) -> None:
    """Change the header of a safetensors file, and leave its data as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def poke(path: Path, name: str, index: int, value: bytes) -> None:
    """Overwrite bytes of one tensor's data."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0] + index * len(value)
    data[begin : begin + len(value)] = value
    path.write_bytes(data)


# ---------------------------------------------------------------- safetensors


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.02, 0.5, 0.9, -1])
def test_truncated_weights(keep: float, bert: Path) -> None:
    """In the length, in the header, in any tensor, and by one byte."""
    path = bert / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep) if keep in (0, 1, 7, 8, 9, 100, -1) else int(len(data) * keep)])
    refused(bert, Broken, r"model\.safetensors.*(truncated|not valid JSON)")


@pytest.mark.parametrize("n", [1, 2, 8, 4096])
def test_bytes_that_belong_to_no_tensor(n: int, bert: Path) -> None:
    with (bert / "model.safetensors").open("ab") as file:
        file.write(b"\0" * n)
    refused(bert, Broken, rf"model\.safetensors: {n} bytes belong to no tensor")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_a_header_of_an_impossible_length(length: int, bert: Path) -> None:
    """Refused by its number; nothing of that size is allocated."""
    path = bert / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(bert, Broken, r"model\.safetensors")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b'{"a": {}}', b"[" * 100_000, b'{"a": NaN}', b"GGUF"],
)
def test_a_header_that_is_none(header: bytes, bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(bert, Broken, r"model\.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F12"}, "unknown dtype 'F12'"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"dtype": None}, "unknown dtype None"),
        ({"dtype": "F16"}, "do not fit shape"),
        ({"shape": [-64, 256]}, "non-negative"),
        ({"shape": [64.0, 256]}, "non-negative"),
        ({"shape": [True, 16384]}, "non-negative"),
        ({"shape": "64"}, "non-negative"),
        ({"shape": [2**62, 2**62]}, "non-negative"),
        ({"shape": [1] * 100_000 + [16384]}, "shape"),
        ({"shape": [2**40, 2**40]}, "do not fit shape"),
        ({"shape": []}, "do not fit shape"),
        ({"data_offsets": [0]}, "offsets"),
        ({"data_offsets": [8, 4]}, "do not fit"),
        ({"data_offsets": [0, 65536, 0]}, "offsets"),
        ({"data_offsets": None}, "offsets"),
        ({"data_offsets": [0, 65536]}, "overlaps"),
        ({"data_offsets": [2**40, 2**40 + 65536]}, "truncated"),
    ],
)
def test_a_tensor_entry_that_cannot_be(entry: dict[str, Any], message: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(entry))
    refused(bert, Broken, rf"model\.safetensors: .*{message}")


def test_a_hole_between_tensors(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.pop("pooler.dense.weight"))
    refused(bert, Broken, r"model\.safetensors: tensor 'pooler.dense.bias' overlaps another or leaves a hole")


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_weights_of_another_dtype(dtype: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(dtype=dtype))
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has dtype {dtype}, expected one of F32, F16, BF16")


def test_an_integer_tensor_that_is_left_out_may_have_any_dtype(bert: Path) -> None:
    """``position_ids`` of older checkpoints is int64."""
    path = bert / "model.safetensors"
    size = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
    entry = {"dtype": "I64", "shape": [1, 128], "data_offsets": [size, size + 1024]}
    reheader(path, lambda header: header.update({"embeddings.position_ids": entry}))
    path.write_bytes(path.read_bytes() + np.arange(128, dtype="<i8").tobytes())
    assert "embeddings.position_ids" in {s.name for s in attempt(bert).skipped}


def test_a_wrong_shape_names_both(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(shape=[256, 64]))
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has shape \[256, 64\].*makes it \[64, 256\]")


def test_a_missing_tensor(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.update({"pooler.dense.bias2": header.pop(NAME)}))
    refused(bert, Broken, f"tensor '{NAME}' is missing")


@pytest.mark.parametrize("name", ["encoder.layer.2.output.dense.weight", "adapter.weight", "model.embed_tokens.weight"])
def test_an_unknown_tensor_is_not_left_out_silently(name: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.update({name: header.pop("pooler.dense.weight")}))
    refused(bert, Broken, rf"model\.safetensors: unknown tensor '{name}' for bert with 2 layers")


def test_a_tensor_with_and_without_its_prefix(bert: Path) -> None:
    other = "encoder.layer.0.output.dense.bias"
    reheader(bert / "model.safetensors", lambda header: header.update({"bert.pooler.dense.bias": header.pop(other)}))
    refused(bert, Broken, "'(bert.)?pooler.dense.bias' and '(bert.)?pooler.dense.bias' are the same one")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_weights_that_are_not_finite_name_the_row(dtype: str, value: float, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "bert", dtype=dtype)
    wide = np.float32(value)
    raw = {"f32": wide, "f16": wide.astype("<f2"), "bf16": (wide.view(np.uint32) >> 16).astype("<u2")}[dtype].tobytes()
    poke(folder / "model.safetensors", NAME, 3 * 256 + 17, raw)
    refused(folder, Broken, rf"model\.safetensors: tensor '{NAME}' has NaN or infinity in row 3")


def test_a_weight_beyond_float16(bert: Path) -> None:
    poke(bert / "model.safetensors", NAME, 0, np.float32(70000).tobytes())
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has a value of magnitude 70000, which F16 cannot hold")
    convert(bert, bert.with_suffix(".bf16"), ftype="bf16")


def test_a_file_that_shrinks_while_it_is_read(bert: Path) -> None:
    path = bert / "model.safetensors"

    def shrink(*_: Any) -> None:
        with path.open("r+b") as file:
            file.truncate(1000)

    refused(bert, Broken, r"model\.safetensors: ended inside tensor", progress=shrink, threads=1)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_converted_or_refused(
    data: st.DataObject, pristine: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte of any file changed: an error of ours, or a file; never another exception."""
    folder = tmp_path_factory.mktemp("damaged", numbered=True) / "model"
    shutil.copytree(pristine[data.draw(st.sampled_from(["bert", "sharded", "qwen3"]))], folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # The headers matter more than the weights behind them.
        at = data.draw(st.integers(0, min(len(content), 6000) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"[", b"-"])
        )
    path.write_bytes(content)
    try:
        attempt(folder)
    except errors.ConversionError:
        assert not folder.with_suffix(".gguf").exists()
    finally:
        shutil.rmtree(folder.parent)


# ---------------------------------------------------------------- shards


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, Broken, r"model-00002-of-00002\.safetensors is missing\n.*incomplete")


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "C:\\x.safetensors",
        "model.bin",
        7,
        None,
        [],
        "\0.safetensors",
    ],
)
def test_a_shard_outside_the_folder(file: Any, sharded: Path) -> None:
    edited(sharded / "model.safetensors.index.json", weight_map={NAME: file})
    refused(sharded, Broken, r"index\.json.*expected the name of a \.safetensors file of the folder")


def test_an_index_that_names_a_tensor_the_shard_lacks(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    whole = json.loads(path.read_text())
    whole["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(whole))
    refused(sharded, Broken, r"model-00001-of-00002\.safetensors: tensor 'ghost' is in the index but not in the file")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "model-00002-of-00002.safetensors")
    refused(sharded, Broken, "is also in another shard")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", ""])
def test_an_index_that_is_none(index: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    refused(sharded, Broken, r"model\.safetensors\.index\.json")


def test_only_pickles(bert: Path) -> None:
    """Never opened: loading a pickle runs what is in it."""
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refused(bert, Unsupported, r"only as pickle \(pytorch_model\.bin\).*refused\n.*save_pretrained")


def test_no_weights(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    refused(bert, Broken, r"model\.safetensors is missing, and so is its index")


def test_an_adapter(bert: Path) -> None:
    (bert / "adapter_config.json").write_text("{}")
    refused(bert, Unsupported, "is an adapter")


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"7",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b"{" * 3,
        b'"' + b"\\ud800" + b'"',
        b'{"a": "\\ud800"}',
        b"9" * 5000,
    ],
)
def test_malformed_json_names_the_file(name: str, content: bytes, bert: Path) -> None:
    (bert / name).write_bytes(content)
    refused(bert, Broken, Path(name).name.replace(".", r"\."))


@pytest.mark.parametrize("depth", [*range(850, 1000, 7), 5000])
def test_nesting_that_json_takes_and_repr_does_not(depth: int, bert: Path) -> None:
    """Whatever is left of the stack, a deep value in any field is refused by an error of ours."""
    deep = "[" * depth + "]" * depth
    for name, field in (
        ("tokenizer.json", "normalizer"),
        ("tokenizer.json", "post_processor"),
        ("config.json", "hidden_act"),
        ("config.json", "num_hidden_layers"),
    ):
        path = bert / name
        before = path.read_text("utf-8")
        edited(path, **{field: "DEEP"})
        path.write_text(path.read_text("utf-8").replace('"DEEP"', deep), "utf-8")
        refused(bert, errors.ConversionError, "json")
        path.write_text(before, "utf-8")


def test_a_json_file_beyond_the_limit_is_not_read(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_JSON_BYTES", 100)
    refused(bert, Broken, "is larger than 100 bytes")


def test_a_folder_where_a_file_should_be(bert: Path) -> None:
    (bert / "config.json").unlink()
    (bert / "config.json").mkdir()
    refused(bert, Broken, r"config\.json cannot be read")


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nothing", "file"):
        refused(tmp_path / name, Broken, f"{name} is not a folder")


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [MISSING, None, 0, -1, 2**31, 2**70, 1.5, "64", True, [64], {}])
def test_sizes_that_cannot_be(field: str, value: Any, bert: Path) -> None:
    edited(bert / "config.json", **{field: value})
    refused(bert, Broken, rf"config\.json: .*{field}")


@pytest.mark.parametrize("value", ["1e-12", -1.0, 2.0, float("nan"), float("inf"), True, []])
def test_an_epsilon_that_cannot_be(value: Any, bert: Path, qwen3: Path) -> None:
    refused(edited(bert / "config.json", layer_norm_eps=value).parent, Broken, "layer_norm_eps")
    refused(edited(qwen3 / "config.json", rms_norm_eps=value).parent, Broken, "rms_norm_eps")


def test_hyper_parameters_are_taken_from_the_file(bert: Path, qwen3: Path) -> None:
    """And transformers' own default where they are missing."""
    edited(bert / "config.json", layer_norm_eps=1e-5)
    assert metadata(attempt(bert).path)["bert.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    edited(bert / "config.json", layer_norm_eps=MISSING, type_vocab_size=MISSING, position_embedding_type=MISSING)
    found = metadata(attempt(bert).path)
    assert found["bert.attention.layer_norm_epsilon"] == pytest.approx(1e-12)
    assert found["tokenizer.ggml.token_type_count"] == 2
    edited(qwen3 / "config.json", rms_norm_eps=1e-5, rope_theta=MISSING, rope_scaling=MISSING)
    edited(qwen3 / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    found = metadata(attempt(qwen3).path)
    assert found["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert found["qwen3.rope.freq_base"] == 5000.0
    edited(qwen3 / "config.json", rope_parameters=MISSING)
    assert metadata(attempt(qwen3).path)["qwen3.rope.freq_base"] == 10000.0


# ---------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "sorts into 2 classes"),
        ({"architectures": ["BertForTokenClassification"]}, "labels tokens"),
        ({"architectures": ["BertLMHeadModel"]}, "decoder"),
        (
            {"architectures": ["MPNetModel"], "model_type": "mpnet"},
            "'mpnet' models are not converted",
        ),
        ({"architectures": ["XmodModel"], "model_type": "xmod"}, "'XmodModel' .* is not supported"),
        ({"architectures": ["BertModel"], "model_type": "xlm-roberta"}, "is not supported"),
        ({"architectures": MISSING, "model_type": "t5"}, "'t5' models are not converted"),
        ({"architectures": [], "model_type": MISSING}, "is not supported"),
        ({"architectures": [7], "model_type": ["bert"]}, "is not supported"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_a_bert_that_would_not_be_computed_faithfully(fields: dict[str, Any], message: str, bert: Path) -> None:
    edited(bert / "config.json", **fields)
    refused(bert, Unsupported, message)


@pytest.mark.parametrize("names", [["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"], MISSING])
def test_classes_of_bert_that_are_converted(names: Any, bert: Path) -> None:
    edited(bert / "config.json", architectures=names)
    assert attempt(bert).architecture == "bert"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "does not put pairs into a chat template"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "is not supported"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": "full"}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is .*yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling is .*linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters is .*yarn"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters is .*full_attention"),
    ],
)
def test_a_qwen3_that_would_not_be_computed_faithfully(fields: dict[str, Any], message: str, qwen3: Path) -> None:
    edited(qwen3 / "config.json", **fields)
    refused(qwen3, Unsupported, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 31}, "head_dim"),
        ({"head_dim": 0}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"head_dim": 64}, r"self_attn\.q_proj\.weight' has shape \[128, 64\]"),
        ({"head_dim": MISSING}, r"self_attn\.q_proj\.weight' .*makes it \[512, 64\]"),  # 128, as in transformers
        ({"matryoshka_dimensions": [128]}, "matryoshka_dimensions"),
        ({"matryoshka_dimensions": "all"}, "matryoshka_dimensions"),
    ],
)
def test_a_qwen3_whose_numbers_cannot_be(fields: dict[str, Any], message: str, qwen3: Path) -> None:
    edited(qwen3 / "config.json", **fields)
    refused(qwen3, Broken, message)


# ---------------------------------------------------------------- modules and pooling


def poolings(folder: Path) -> tuple[int, bool]:
    """The pooling type in the file and its normalize flag."""
    report = attempt(folder)
    found = metadata(report.path)
    return found[f"{report.architecture}.pooling_type"], found[keys.NORMALIZE]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("spelling", ["booleans", "string"])
@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("cls", 2), ("lasttoken", 3)])
def test_pooling_in_both_spellings(pooling: str, number: int, spelling: str, normalize: bool, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "m", pooling=pooling, spelling=spelling, normalize=normalize)
    assert poolings(folder) == (number, normalize)


@pytest.mark.parametrize("spelling", ["booleans", "string"])
@pytest.mark.parametrize("pooling", ["max", "weightedmean", "mean_sqrt_len_tokens", "none"])
def test_a_pooling_that_llama_cpp_does_not_compute(pooling: str, spelling: str, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "m", pooling=pooling, spelling=spelling)
    refused(folder, Unsupported, "1_Pooling/config.json: the pooling is .*mean, cls or lasttoken")


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling_mode_cls_token": True},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": [["mean"]]},
        {"pooling_mode": 7},
    ],
)
def test_two_poolings_at_once(fields: dict[str, Any], bert: Path) -> None:
    edited(bert / "1_Pooling" / "config.json", **fields)
    refused(bert, Unsupported, "the pooling is")


def test_a_pooling_of_another_width(bert: Path) -> None:
    edited(bert / "1_Pooling" / "config.json", word_embedding_dimension=32)
    refused(bert, Broken, "1_Pooling/config.json: 'word_embedding_dimension' is 32, expected hidden_size 64")


def modules(*kinds: tuple[str, str]) -> str:
    """The text of a modules.json."""
    return json.dumps([{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(kinds)])


TRANSFORMER = ("", "sentence_transformers.models.Transformer")
POOLING = ("1_Pooling", "sentence_transformers.models.Pooling")
NORMALIZE = ("2_Normalize", "sentence_transformers.models.Normalize")


@pytest.mark.parametrize(
    "kinds",
    [
        (TRANSFORMER, ("2_Dense", "sentence_transformers.models.Dense"), POOLING),
        (TRANSFORMER, POOLING, NORMALIZE, ("2_Dense", "sentence_transformers.models.Dense")),
        (("", "sentence_transformers.models.CLIPModel"),),
        (("", "my_module.Transformer"), POOLING),
        (TRANSFORMER,),
        (POOLING, TRANSFORMER),
        (TRANSFORMER, NORMALIZE, POOLING),
        (TRANSFORMER, POOLING, NORMALIZE, NORMALIZE),
        (),
    ],
)
def test_modules_that_are_not_computed(kinds: tuple[tuple[str, str], ...], bert: Path) -> None:
    (bert / "modules.json").write_text(modules(*kinds))
    refused(bert, Unsupported, r"modules\.json: (module '.*' is not converted|the modules are)")


@pytest.mark.parametrize("path", ["..", "../elsewhere", "/etc", "a/../../b", "a\\b", "C:x", "\0"])
def test_a_module_outside_the_folder(path: str, bert: Path) -> None:
    (bert / "modules.json").write_text(modules((path, TRANSFORMER[1]), POOLING))
    refused(bert, Broken, r"modules\.json: path .* leaves the folder")


@pytest.mark.parametrize("content", ["{}", "[7]", '[{"path": 7}]', '[{"path": ""}]', '[{"path": "", "type": null}]'])
def test_a_modules_list_that_is_none(content: str, bert: Path) -> None:
    (bert / "modules.json").write_text(content)
    refused(bert, Broken, r"modules\.json")


def test_modules_of_newer_releases_and_a_transformer_in_its_own_folder(bert: Path) -> None:
    """As sentence-transformers 2 laid a checkpoint out, with the class names of its later releases."""
    inner = bert / "0_Transformer"
    inner.mkdir()
    for path in [p for p in bert.iterdir() if p.is_file() and not p.name.startswith(("modules", "config_sentence"))]:
        path.rename(inner / path.name)
    base = "sentence_transformers.base.modules."
    (bert / "modules.json").write_text(
        modules(
            ("0_Transformer", f"{base}transformer.Transformer"),
            ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
        )
    )
    assert poolings(bert) == (1, False)


def test_without_modules_a_bert_needs_to_be_told_its_pooling(bert: Path) -> None:
    (bert / "modules.json").unlink()
    refused(bert, Unsupported, r"no modules\.json.*\n.*pass pooling")
    found = metadata(attempt(bert, pooling="cls").path)
    assert (found["bert.pooling_type"], found[keys.NORMALIZE]) == (2, True)
    with pytest.raises(errors.InvalidOptionError, match="'rank' cannot be converted"):
        attempt(bert, pooling="rank")


def test_without_modules_a_qwen3_takes_the_last_token_and_says_so(qwen3: Path) -> None:
    (qwen3 / "modules.json").unlink()
    report = attempt(qwen3)
    assert metadata(report.path)["qwen3.pooling_type"] == 3
    assert report.notes == ("no modules.json: pooling last is the family's usual one",)
    assert metadata(attempt(qwen3, pooling="mean").path)["qwen3.pooling_type"] == 1


def test_asking_for_the_pooling_that_there_is(bert: Path) -> None:
    assert metadata(attempt(bert, pooling="mean").path)["bert.pooling_type"] == 1


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("sentence_bert", "model_max_length", "expected"),
    [
        (96, 64, 96),  # sentence-transformers' own file counts before the tokenizer's
        (None, 64, 64),
        (1000, 64, 128),  # never beyond the positions that there are
        (None, 1000, 128),
        (None, 10**30, 128),  # transformers' way to say that there is no limit
        (None, 1e30, 128),
        (None, None, 128),
        (None, True, 128),
        (None, "64", 128),
    ],
)
def test_most_tokens_by_precedence(sentence_bert: int | None, model_max_length: Any, expected: int, bert: Path) -> None:
    edited(bert / "sentence_bert_config.json", max_seq_length=sentence_bert, do_lower_case=False)
    edited(bert / "tokenizer_config.json", model_max_length=model_max_length)
    assert metadata(attempt(bert).path)[keys.MAX_TOKENS] == expected
    if sentence_bert is None:
        (bert / "sentence_bert_config.json").unlink()
        assert metadata(attempt(bert).path)[keys.MAX_TOKENS] == expected


@pytest.mark.parametrize("family", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_older_names_of_the_file_with_the_limit(family: str, bert: Path) -> None:
    name = f"sentence_{family}_config.json"
    edited(bert / name, max_seq_length=77)
    assert metadata(attempt(bert).path)[keys.MAX_TOKENS] == 77


def test_without_any_limit_the_positions_count(bert: Path) -> None:
    (bert / "tokenizer_config.json").unlink()
    assert metadata(attempt(bert).path)[keys.MAX_TOKENS] == 128


@pytest.mark.parametrize("value", [0, -1, "96", 1.5, True])
def test_a_limit_that_cannot_be(value: Any, bert: Path) -> None:
    edited(bert / "sentence_bert_config.json", max_seq_length=value)
    refused(bert, Broken, "sentence_bert_config.json: 'max_seq_length'")


def test_lowercasing_outside_the_tokenizer_is_refused(tmp_path: Path) -> None:
    """sentence-transformers would lowercase the text; a tokenizer that does so itself makes no difference."""
    cased = build_tiny_bert(tmp_path / "cased", lowercase=False)
    qwen3 = small_qwen3(tmp_path / "qwen3")
    for folder in (cased, qwen3):
        edited(folder / "sentence_bert_config.json", do_lower_case=True)
        refused(folder, Unsupported, "do_lower_case")
    uncased = build_tiny_bert(tmp_path / "uncased")
    edited(uncased / "sentence_bert_config.json", do_lower_case=True)
    assert metadata(attempt(uncased).path)[keys.WORDPIECE_LOWERCASE] is True


def test_another_task_than_embedding(bert: Path) -> None:
    edited(bert / "sentence_bert_config.json", transformer_task="fill-mask")
    refused(bert, Unsupported, "transformer_task is 'fill-mask'")


# ---------------------------------------------------------------- prompts


def test_prompts_and_the_default_one(bert: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: ", "ünïcode": "ü\n{x}"}
    edited(bert / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="passage")
    found = metadata(attempt(bert).path)
    assert {name: found[keys.PROMPT + name] for name in prompts} == prompts
    assert found[keys.DEFAULT_PROMPT_NAME] == "passage"
    assert keys.INSTRUCTION_TEMPLATE not in found


def test_without_the_file_there_are_no_prompts(bert: Path) -> None:
    (bert / "config_sentence_transformers.json").unlink()
    assert not [key for key in metadata(attempt(bert).path) if key.startswith(keys.PROMPT)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": {"query": 7}}, "prompt 'query' is 7"),
        ({"prompts": ["query"]}, "'prompts' is"),
        ({"default_prompt_name": "nobody"}, "'nobody' is not among the prompts"),
        ({"default_prompt_name": 7}, "'default_prompt_name' is 7"),
    ],
)
def test_prompts_that_cannot_be(fields: dict[str, Any], message: str, bert: Path) -> None:
    edited(bert / "config_sentence_transformers.json", **fields)
    refused(bert, Broken, f"config_sentence_transformers.json: .*{message}")


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder"])
def test_models_that_do_not_embed(kind: str, bert: Path) -> None:
    edited(bert / "config_sentence_transformers.json", model_type=kind)
    refused(bert, Unsupported, f"model_type is '{kind}'")


def test_prompts_left_out_of_the_mean_are_refused(bert: Path) -> None:
    edited(bert / "1_Pooling" / "config.json", include_prompt=False)
    assert "include_prompt is false" in attempt(bert).notes[0]
    bert.with_suffix(".gguf").unlink()
    edited(bert / "config_sentence_transformers.json", prompts={"query": "query: "})
    refused(bert, Unsupported, "include_prompt is false")


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        (QWEN3_QUERY_PROMPT, "Instruct: {instruction}\nQuery:"),
        ("Instruct: Find the answer.\nQuery: ", "Instruct: {instruction}\nQuery: "),
        ("Instruct: a {b} c\nQuery: ", None),
        ("Instruct: a\nb\nQuery: ", None),
        ("Instruct: a\nQuery:  ", None),
        ("Instruct: \nQuery:", None),
        ("query: ", None),
        ("", None),
    ],
)
def test_instruction_template_of_a_query_prompt(prompt: str, template: str | None) -> None:
    assert instruction_template(prompt) == template


# ---------------------------------------------------------------- small parts


@pytest.mark.parametrize(
    ("name", "plain", "inner"),
    [
        ("a", True, True),
        ("a.b-c_d", True, True),
        ("", False, True),
        (".", False, True),
        ("..", False, False),
        ("a/b", False, True),
        ("a/../b", False, False),
        ("/a", False, False),
        ("a\\b", False, False),
        ("c:a", False, False),
        ("a\0", False, False),
    ],
)
def test_names_that_stay_in_a_folder(name: str, plain: bool, inner: bool) -> None:
    assert (is_plain_name(name), is_inner_path(name)) == (plain, inner)


@given(
    st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists, max_leaves=200), st.integers(10, 300)
)
def test_a_quoted_value_is_short(value: Any, limit: int) -> None:
    assert len(short(value, limit)) <= limit + 3


def test_a_checkpoint_closes_its_files(sharded: Path) -> None:
    with Checkpoint(sharded) as opened:
        files = list(opened._files.values())
        assert len(files) == 2
    assert all(file.closed for file in files)


def test_rows_are_widened_exactly(tmp_path: Path) -> None:
    """Every float16 and every bfloat16 that is a number."""
    half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    brain = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    (tmp_path / "config.json").write_text("{}")
    for dtype, values in (("f16", half), ("bf16", brain)):
        finite = values[np.isfinite(values)]
        write_safetensors(tmp_path / "model.safetensors", {"w": finite.reshape(-1, 32)}, dtype)
        with Checkpoint(tmp_path) as opened:
            found = opened.read_rows(opened.tensors["w"], 0, len(finite) // 32)
        assert found.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), finite.reshape(-1, 32).view(np.uint32))
