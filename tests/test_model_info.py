"""What a file's metadata means: how it is resolved, what is repaired and said so, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import keys
from edge_embed.architectures import DECODERS, ENCODERS
from edge_embed.errors import InvalidOptionError, ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader, TensorInfo
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo
from tests.tiny_gguf import Metadata, Tensors, tiny_bert, tiny_decoder

REMOVED = object()
BERT, QWEN3 = tiny_bert(), tiny_decoder()


def header(model: tuple[Metadata, Tensors], changes: dict[str, Any] | None = None, **tensors: Any) -> GgufHeader:
    """The header of a tiny model with some metadata changed or REMOVED, and some tensors' shapes."""
    plain = {key: item.tolist() if hasattr(item, "tolist") else item for key, item in model[0].items()}
    metadata = {key: item for key, item in {**plain, **(changes or {})}.items() if item is not REMOVED}
    shapes = {name: array.shape[::-1] for name, array in model[1].items()}
    shapes |= {name.replace("__", "."): shape for name, shape in tensors.items()}
    infos = {name: TensorInfo(name, s, "F32", 4 * int(np.prod(s))) for name, s in shapes.items() if s is not REMOVED}
    return GgufHeader(Path("tiny model.gguf"), 1000, metadata, infos)


def bert(changes: dict[str, Any] | None = None, **options: Any) -> ModelInfo:
    return read_model_info(header(BERT, changes), **options)


def qwen3(changes: dict[str, Any] | None = None, **options: Any) -> ModelInfo:
    return read_model_info(header(QWEN3, changes), **options)


def decoder_of(arch: str, changes: dict[str, Any] | None = None, **options: Any) -> ModelInfo:
    return read_model_info(header(tiny_decoder(arch), changes), **options)


# What is read


def test_an_encoder_is_described_by_its_file() -> None:
    info = bert({"general.license": "apache-2.0"})
    assert ("bert", "tiny bert", 32, 64, 2) == (
        info.architecture,
        info.name,
        info.n_embd,
        info.n_ctx_train,
        info.n_layer,
    )
    assert (len(BERT[0]["tokenizer.ggml.tokens"]), False) == (info.n_vocab, info.causal)
    assert ("tiny model.gguf", 1000, "apache-2.0") == (info.path, info.size_bytes, info.license)
    assert ({"F32": len(BERT[1])}, ()) == (info.types, info.repairs)


def test_a_decoder_is_causal() -> None:
    assert qwen3().causal


def test_a_file_without_a_name_is_called_by_its_stem() -> None:
    assert "tiny model" == bert({"general.name": REMOVED}).name


def test_own_keys_are_read() -> None:
    info = bert(
        {
            keys.NORMALIZE: False,
            keys.MAX_TOKENS: 40,
            keys.PROMPT + "query": "q: ",
            keys.PROMPT + "a.b": "",
            keys.DEFAULT_PROMPT_NAME: "query",
            keys.INSTRUCTION_TEMPLATE: "I: {instruction}",
            keys.MRL_DIMENSIONS: [32, 8, 99, 0, 16],
            keys.UNICODE_NORMALIZATION: "NFKC",
        }
    )
    assert (False, 40, {"a.b": "", "query": "q: "}) == (info.normalize, info.max_tokens, info.prompts)
    assert ("query", "I: {instruction}") == (info.default_prompt_name, info.instruction_template)
    assert ((8, 16, 32), "NFKC") == (info.mrl_dimensions, info.unicode_normalization)


def test_without_own_keys_there_are_sensible_defaults() -> None:
    info = bert()
    assert (True, 64, {}, None, None) == (
        info.normalize, info.max_tokens, info.prompts, info.default_prompt_name, info.instruction_template,
    )  # fmt: skip
    assert ((), "none") == (info.mrl_dimensions, info.unicode_normalization)


# Pooling: caller, file, architecture, else an error


@pytest.mark.parametrize(("stored", "expected"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_the_file_says_how_to_pool(stored: int, expected: str) -> None:
    info = bert({"bert.pooling_type": stored})
    assert (expected, "file") == (info.pooling, info.pooling_source)


@pytest.mark.parametrize("stored", [REMOVED, 0])
def test_the_architecture_fills_a_gap(stored: Any) -> None:
    """llama.cpp falls to no pooling at all where the key is missing."""
    info = qwen3({"qwen3.pooling_type": stored})
    assert ("last", "architecture") == (info.pooling, info.pooling_source)


@pytest.mark.parametrize("stored", [1, REMOVED, 4, 0])
def test_the_caller_overrides_the_file(stored: Any) -> None:
    info = bert({"bert.pooling_type": stored}, pooling="cls")
    assert ("cls", "caller") == (info.pooling, info.pooling_source)


@pytest.mark.parametrize("stored", [REMOVED, 0])
def test_what_cannot_be_resolved_names_the_option_to_pass(stored: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="does not say how") as caught:
        bert({"bert.pooling_type": stored})
    assert 'pooling="mean"' in caught.value.hint
    assert "--pooling" in caught.value.hint


def test_a_reranker_without_a_head_is_refused() -> None:
    for model in (bert, qwen3):
        with pytest.raises(ModelFileError, match=r"tiny model\.gguf is said to be a reranker and has no head"):
            model({"bert.pooling_type": 4, "qwen3.pooling_type": 4})


@pytest.mark.parametrize("stored", [5, -2, 99])
def test_an_unknown_pooling_type_in_the_file_is_refused(stored: int) -> None:
    with pytest.raises(ModelFileError, match=f"pooling_type is {stored}"):
        bert({"bert.pooling_type": stored})


@pytest.mark.parametrize("asked", ["max", "none", "MEAN", 1])
def test_an_unknown_pooling_asked_for_is_refused(asked: Any) -> None:
    with pytest.raises(InvalidOptionError, match="unknown pooling") as caught:
        bert(pooling=asked)
    assert "one of mean, cls, last" == caught.value.hint


# The EDS token: [EDS], the recorded id, <|endoftext|>, the file's flags

ENDOFTEXT, IM_END = 276, 278


def test_the_flags_that_agree_need_no_repair() -> None:
    info = qwen3({keys.UNICODE_NORMALIZATION: "NFC"})
    assert (ENDOFTEXT, ()) == (info.eds_token_id, info.repairs)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tokenizer.ggml.eos_token_id": IM_END}, f"appends token {IM_END}"),
        ({"tokenizer.ggml.add_eos_token": False}, "appends no token"),
        ({"tokenizer.ggml.add_eos_token": REMOVED}, "appends no token"),
        ({"tokenizer.ggml.eos_token_id": REMOVED}, "appends no token"),
    ],
)
def test_wrong_flags_lose_to_endoftext_and_the_repair_is_recorded(flags: dict[str, Any], said: str) -> None:
    """The files of 2025 that append nothing, or the chat's <|im_end|>, gave poor vectors."""
    info = qwen3({keys.UNICODE_NORMALIZATION: "NFC", **flags})
    expected = f"the file's flags say that the tokenizer {said}; '<|endoftext|>' ({ENDOFTEXT}) is appended instead"
    assert (ENDOFTEXT, (expected,)) == (info.eds_token_id, info.repairs)


def test_a_recorded_id_beats_endoftext() -> None:
    info = qwen3({keys.EDS_TOKEN_ID: 277})
    assert 277 == info.eds_token_id
    assert "(277) is appended instead" in info.repairs[0]


def test_a_literal_eds_token_beats_everything() -> None:
    tokens = ["[EDS]", *QWEN3[0]["tokenizer.ggml.tokens"][1:]]
    assert 0 == qwen3({"tokenizer.ggml.tokens": tokens, keys.EDS_TOKEN_ID: 277}).eds_token_id


@pytest.mark.parametrize(("add", "expected"), [(True, 2), (False, None), (REMOVED, None)])
def test_other_tokenizers_follow_the_files_flags(add: Any, expected: int | None) -> None:
    flags = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_eos_token": add}
    assert expected == qwen3(flags).eds_token_id


def test_a_recorded_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ModelFileError, match="eds_token_id is 279, and there are 279 tokens"):
        qwen3({keys.EDS_TOKEN_ID: 279})


def test_an_encoder_with_wordpiece_has_no_eds_token() -> None:
    assert None is bert().eds_token_id


@pytest.mark.parametrize("arch", ["jina-bert-v2", "gemma3", "phi3", "t5"])
def test_a_family_that_no_test_compares_with_its_original_is_refused_by_name(arch: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"the architecture '{arch}' is not supported"):
        read_model_info(header(tiny_decoder(arch, pooling=1)))


# Normalization


def test_qwens_normalization_is_assumed_and_said() -> None:
    info = qwen3()
    assert "NFC" == info.unicode_normalization
    assert ("the file does not record Unicode normalization; NFC is used, as Qwen tokenizers do",) == info.repairs


def test_a_recorded_normalization_is_kept() -> None:
    assert "none" == qwen3({keys.UNICODE_NORMALIZATION: "none"}).unicode_normalization


@pytest.mark.parametrize("form", ["NFD", "nfc", "yes"])
def test_an_unknown_normalization_is_refused(form: str) -> None:
    with pytest.raises(ModelFileError, match=f"unicode_normalization is '{form}'"):
        bert({keys.UNICODE_NORMALIZATION: form})


# Limits


def test_the_caller_lowers_the_limit() -> None:
    assert 10 == bert(max_tokens=10).max_tokens


@pytest.mark.parametrize("asked", [3, 65, 0, -1, 10.0, "10", True])
def test_an_impossible_limit_is_refused(asked: Any) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        bert(max_tokens=asked)
    assert "give 4 to 64, the model's positions" == caught.value.hint


def test_a_recorded_limit_above_the_positions_is_lowered_to_them() -> None:
    assert 64 == bert({keys.MAX_TOKENS: 512}).max_tokens


@pytest.mark.parametrize("changes", [{keys.MAX_TOKENS: 1}, {keys.MAX_TOKENS: 2}])
def test_a_recorded_limit_without_room_for_text_is_refused(changes: dict[str, Any]) -> None:
    """Two special tokens and a limit of one: what is cut then is not the text."""
    with pytest.raises(ModelFileError, match="max_tokens"):
        bert(changes)


# Refusals


@pytest.mark.parametrize("arch", ["t5", "clip", "", "BERT", "mamba", "jina-bert-v2"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(arch: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"architecture '{arch}' is not supported") as caught:
        bert({"general.architecture": arch})
    assert f"supported: {', '.join([*ENCODERS, *DECODERS])}" == caught.value.hint


@pytest.mark.parametrize(
    "key",
    ["general.architecture", "bert.embedding_length", "bert.context_length", "bert.block_count",
     "bert.attention.head_count", "bert.feed_forward_length"],
)  # fmt: skip
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(ModelFileError, match=f"metadata key '{key}' is missing"):
        bert({key: REMOVED})


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("general.architecture", 3),
        ("general.name", 3),
        ("bert.embedding_length", "32"),
        ("bert.embedding_length", 32.0),
        ("bert.context_length", True),
        ("bert.block_count", [2]),
        ("bert.attention.head_count", [2, 2]),
        ("bert.pooling_type", "mean"),
        ("tokenizer.ggml.tokens", "abc"),
        ("tokenizer.ggml.tokens", [1, 2, 3, 4]),
        ("tokenizer.ggml.bos_token_id", "1"),
        (keys.NORMALIZE, 1),
        (keys.MAX_TOKENS, "5"),
        (keys.PROMPT + "query", 3),
        (keys.DEFAULT_PROMPT_NAME, True),
        (keys.INSTRUCTION_TEMPLATE, ["x"]),
        (keys.MRL_DIMENSIONS, "32"),
        (keys.MRL_DIMENSIONS, [32.0]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_file_and_key(key: str, wrong: Any) -> None:
    with pytest.raises(ModelFileError) as caught:
        bert({key: wrong})
    assert "tiny model.gguf" in caught.value.message
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bert.embedding_length": 0}, "embedding_length is 0"),
        ({"bert.embedding_length": -32}, "embedding_length is -32"),
        ({"bert.embedding_length": 1 << 40}, "embedding_length is"),
        ({"bert.embedding_length": 64}, "'token_embd.weight' has shape (32, 78) instead of (64, 78)"),
        ({"bert.context_length": 0}, "context_length is 0"),
        ({"bert.context_length": 65}, "'position_embd.weight' has shape (32, 64) instead of (32, 65)"),
        ({"bert.block_count": 0}, "block_count is 0"),
        ({"bert.block_count": 1025}, "block_count is 1025"),
        ({"bert.block_count": 3}, "'blk.2.ffn_down.weight' is missing"),
        ({"bert.feed_forward_length": 47}, "'blk.0.ffn_down.weight' has shape (48, 32) instead of (47, 32)"),
        ({"bert.attention.head_count": 0}, "head_count is 0"),
        ({"bert.attention.head_count": 3}, "width 32 cannot be divided among 3"),
        ({"bert.attention.head_count": 1 << 31}, "head_count is"),
        ({"bert.attention.head_count_kv": 0}, "head_count_kv is 0"),
        ({"bert.attention.head_count": 4, "bert.attention.head_count_kv": 3}, "4 attention heads cannot share 3"),
        ({"bert.attention.key_length": 0}, "key_length is 0"),
        ({"bert.attention.value_length": 1 << 20}, "value_length is"),
        ({"tokenizer.ggml.tokens": []}, "a vocabulary of 0 tokens"),
        ({"tokenizer.ggml.tokens": REMOVED}, "a vocabulary of 0 tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type does not have an entry for each token"),
        ({"tokenizer.ggml.token_type": 1}, "token_type does not have an entry for each token"),
        ({"tokenizer.ggml.scores": [0.0]}, "scores does not have an entry for each token"),
        ({"tokenizer.ggml.cls_token_id": 78}, "cls_token_id is 78, and there are 78 tokens"),
        ({"tokenizer.ggml.seperator_token_id": (1 << 32) - 1}, "seperator_token_id is"),
        ({"tokenizer.ggml.unknown_token_id": -1}, "unknown_token_id is -1"),
        ({keys.MAX_TOKENS: 0}, "max_tokens is 0"),
        ({keys.INSTRUCTION_TEMPLATE: "Instruct: "}, "instruction_template has no {instruction}"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_by_file_and_reason(changes: dict[str, Any], said: str) -> None:
    assert 78 == len(BERT[0]["tokenizer.ggml.tokens"])
    with pytest.raises(ModelFileError) as caught:
        bert(changes)
    assert "tiny model.gguf" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["token_embd.weight", "position_embd.weight", "blk.0.ffn_down.weight"])
@pytest.mark.parametrize("shape", [REMOVED, (32,), (1, 1)])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(name: str, shape: Any) -> None:
    with pytest.raises(ModelFileError, match=f"the tensor '{name}' "):
        read_model_info(header(BERT, **{name.replace(".", "__"): shape}))


def test_head_width_may_be_independent_of_the_models_width() -> None:
    """Qwen3 records it: 3 heads of 16 beside a width of 32."""
    assert 32 == qwen3({"qwen3.attention.head_count": 3}).n_embd


def test_other_decoders_run_once_the_caller_says_how_to_pool() -> None:
    changes = {"llama.pooling_type": REMOVED, "general.architecture": "llama"}
    assert "last" == decoder_of("llama", changes, pooling="last").pooling


def test_two_tokens_of_one_spelling_are_refused() -> None:
    """llama.cpp ends the process on them while it loads; empty ones it renames, and what was not UTF-8 it knows."""
    tokens = QWEN3[0]["tokenizer.ggml.tokens"]
    with pytest.raises(ModelFileError, match="two tokens of one spelling, '!'"):
        qwen3({"tokenizer.ggml.tokens": [*tokens[:1] * 2, *tokens[2:]]})
    assert qwen3({"tokenizer.ggml.tokens": ["", "", "\ufffd", "\ufffd", *tokens[4:]]}).n_vocab == len(tokens)


@pytest.mark.parametrize("key", [keys.PAIR_SEPARATOR, keys.ADDED_LSTRIP, keys.ADDED_NORMALIZED])
@pytest.mark.parametrize("wrong", [[279], [-1], ["a"], "a"])
def test_special_tokens_outside_the_vocabulary_are_refused(key: str, wrong: Any) -> None:
    with pytest.raises(ModelFileError, match=key):
        qwen3({key: wrong})
