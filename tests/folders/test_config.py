"""JSON that is damaged, and settings of models that would not be computed faithfully: each refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_embed import errors
from edge_embed.convert import checkpoint
from tests.converting import MISSING, edited, metadata
from tests.folders import Broken, Unsupported, attempt, refused

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
