"""SentencePiece tokenizers become the keys that llama.cpp reads: from tokenizer.json, or from a ``.model`` file."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Original

from edge_embed import keys
from edge_embed.convert.checkpoint import Checkpoint
from edge_embed.convert.vocab import read_tokenizer, read_vocabulary
from edge_embed.convert.vocab.vocabulary import Vocabulary
from edge_embed.errors import CheckpointError, ConversionError, UnsupportedCheckpointError
from tests import trained
from tests.checkpoints import write_safetensors
from tests.golden_texts import TEXTS
from tests.tokenizing import metadata_of, runtime_tokenizer, vocabulary_of

Broken, Unsupported = CheckpointError, UnsupportedCheckpointError
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>",
         "pad_token": "<pad>", "mask_token": {"content": "<mask>"}}  # fmt: skip


def keys_of(tokenizer: dict[str, Any], config: dict[str, Any] | None = None, n_rows: int = 0) -> dict[str, Any]:
    """The metadata, tokenizer keys without their prefix."""
    found = metadata_of(vocabulary_of(tokenizer, NAMES if config is None else config, n_rows))
    return {name.removeprefix("tokenizer.ggml."): value for name, value in found.items()}


def changed(tokenizer: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy with some fields set; ``a__b`` is field b of object a."""
    whole: dict[str, Any] = json.loads(json.dumps(tokenizer))
    for name, value in fields.items():
        *outer, last = name.split("__")
        inner = whole
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return whole


# ---------------------------------------------------------------- unigram


@pytest.mark.parametrize(
    ("spelling", "pipeline"),
    [("2020", "split-words-always"), ("2023", "collapse-words-always"), ("2024", "strip-words-always")],
)
def test_the_keys_of_a_unigram_model(spelling: str, pipeline: str) -> None:
    tokenizer = trained.unigram(spelling)
    found = keys_of(tokenizer)
    vocab = tokenizer["model"]["vocab"]
    n = len(vocab)
    assert (found["model"], found["pre"], found["tokens"]) == ("t5", "default", [token for token, _ in vocab])
    assert np.float32([score for _, score in vocab]).tolist() == found["scores"]
    assert keys.UNIGRAM_SCORES not in found
    kinds = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN]
    assert found["token_type"] == [*kinds, *[TokenType.NORMAL] * (n - 5), TokenType.CONTROL]
    ids = {name: found[f"{name}_token_id"] for name in ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask")}
    assert ids == {"bos": 0, "eos": 2, "unknown": 3, "seperator": 2, "padding": 1, "cls": 0, "mask": n - 1}
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, True)
    assert (found["add_space_prefix"], found["remove_extra_whitespaces"]) == (True, True)
    proto = trained.proto_of(trained.sentencepiece_model("unigram"))
    assert bytes(found["precompiled_charsmap"]) == proto.normalizer_spec.precompiled_charsmap
    assert (found[keys.TOKENIZER_PIPELINE], found[keys.UNICODE_NORMALIZATION]) == (pipeline, "none")
    assert (found[keys.PAIR_SEPARATOR], found[keys.ADDED_LSTRIP]) == ([2, 2], [n - 1])


def test_scores_that_need_64_bits_are_kept() -> None:
    """The trainer of ``tokenizers`` writes them; SentencePiece's are of 32 bits."""
    tokenizer = trained.unigram_trained_by_tokenizers()
    found = keys_of(tokenizer)
    assert found[keys.UNIGRAM_SCORES] == [score for _, score in tokenizer["model"]["vocab"]]
    assert (found[keys.UNICODE_NORMALIZATION], "precompiled_charsmap" in found) == ("NFKC", False)


def test_padding_rows_of_a_unigram_model() -> None:
    n = len(trained.unigram("2020")["model"]["vocab"])
    found = keys_of(trained.unigram("2020"), n_rows=n + 2)
    assert found["tokens"][n:] == [f"[PAD{n}]", f"[PAD{n + 1}]"]
    assert found["token_type"][n:] == [TokenType.UNUSED] * 2
    assert found["scores"][n:] == [-10000.0] * 2


def test_a_file_of_2020_that_does_not_name_its_model() -> None:
    tokenizer = trained.unigram("2020")
    del tokenizer["model"]["type"], tokenizer["model"]["byte_fallback"]
    assert keys_of(tokenizer) == keys_of(trained.unigram("2020"))


UNIGRAM = trained.unigram("2020")
CHARSMAP = UNIGRAM["normalizer"]
METASPACE = trained.METASPACE_NEW


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"model__byte_fallback": True}, Unsupported, "byte_fallback is set"),
        ({"pre_tokenizer": None}, Unsupported, "pre_tokenizer is not one that is converted"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, Unsupported, "pre_tokenizer is not one that is converted"),
        ({"pre_tokenizer": METASPACE | {"replacement": "_"}}, Unsupported, "pre_tokenizer is not one that is conve"),
        ({"normalizer": {"type": "Lowercase"}}, Unsupported, "normalizer is not one that is converted"),
        ({"normalizer": {"type": "Sequence", "normalizers": [CHARSMAP] * 2}}, Unsupported, "normalizer is not one"),
        ({"normalizer": CHARSMAP | {"precompiled_charsmap": "***"}}, Unsupported, "normalizer"),
        ({"post_processor": None}, Unsupported, "post_processor is not one that is converted"),
        ({"model__vocab": {}}, Broken, "model.vocab is not a list"),
        ({"model__vocab": []}, Broken, "model.vocab is not a list"),
        ({"model__vocab": [["a", "b"]]}, Broken, "is not a token and its score"),
        ({"model__vocab": [["a", float("nan")]]}, Broken, "is not a token and its score"),
        ({"model__vocab": [["a", True]]}, Broken, "is not a token and its score"),
        ({"model__vocab": [["a", 0.0, 1]]}, Broken, "is not a token and its score"),
        ({"model__vocab": [["a", 0.0], ["a", -1.0]]}, Broken, "'a' has the ids 0 and 1"),
        ({"model__unk_id": 10**6}, Broken, "unk_id"),
        ({"model__unk_id": None}, Broken, "unk_id"),
    ],
)
def test_a_unigram_part_that_is_refused(fields: dict[str, Any], kind: type[ConversionError], message: str) -> None:
    with pytest.raises(kind, match=message):
        keys_of(changed(UNIGRAM, **fields))


# ---------------------------------------------------------------- BPE


@pytest.mark.parametrize(
    ("spelling", "pipeline", "prefix"),
    [("prepend", "prepend", True), ("metaspace", "metaspace-first", True), ("gemma", "replace-split", False)],
)
def test_the_keys_of_a_bpe_model(spelling: str, pipeline: str, prefix: bool) -> None:
    tokenizer = trained.sentencepiece_bpe(spelling)
    vocabulary = vocabulary_of(tokenizer, NAMES)
    found = keys_of(tokenizer)
    assert (found["model"], found["tokens"][:3], found["merges"][0]) == ("llama", ["<unk>", "<s>", "</s>"], "a a")
    assert found["token_type"][:4] == [TokenType.CONTROL] * 3 + [TokenType.BYTE]
    assert found["token_type"].count(TokenType.BYTE) == 256
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (1, 2, 0)
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (True, True, prefix)
    assert (found[keys.TOKENIZER_PIPELINE], found[keys.EDS_TOKEN_ID], vocabulary.eds_token_id) == (pipeline, 2, 2)
    scores = dict(zip(found["tokens"], found["scores"], strict=True))
    merged = ["".join(merge.split(" ")) for merge in found["merges"]]
    ranks = [scores[token] for token in dict.fromkeys(merged)]
    assert ranks == sorted(ranks, reverse=True)  # llama.cpp joins what has the highest score first
    assert max(score for token, score in scores.items() if token not in merged and len(token) == 1) < min(ranks)


def test_a_template_without_an_end_has_no_eds_token() -> None:
    tokenizer = changed(trained.sentencepiece_bpe("prepend"), post_processor=trained.template([("<s>", 1)], [], []))
    found = keys_of(tokenizer)
    assert (found["add_eos_token"], found["eos_token_id"], keys.EDS_TOKEN_ID in found) == (False, 2, False)


BPE = trained.sentencepiece_bpe("prepend")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__vocab": {"?" * (1 + (t == "<0x41>")) + t: i for t, i in BPE["model"]["vocab"].items()}}, "bytes"),
        ({"model__dropout": 0.5}, "dropout"),
        ({"model__ignore_merges": True}, "ignore_merges"),
        ({"normalizer": CHARSMAP}, "pre_tokenizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [CHARSMAP, trained.REPLACE]}}, "precompiled_charsmap"),
        ({"normalizer": None}, "pre_tokenizer"),
        ({"post_processor": trained.template([("<s>", 1)] * 2, [], [])}, "post_processor"),
    ],
)
def test_a_bpe_part_that_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        keys_of(changed(BPE, **fields))


# ---------------------------------------------------------------- .model files


def checkpoint_of(folder: Path, name: str, model: bytes, **config: Any) -> Checkpoint:
    """A folder with a ``.model`` file and no tokenizer.json."""
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES | config), "utf-8")
    (folder / name).write_bytes(model)
    write_safetensors(folder / "model.safetensors", {"x": np.zeros(1, np.float32)})
    return Checkpoint(folder)


def vocabulary(folder: Path, name: str, model: bytes, **config: Any) -> Vocabulary:
    with checkpoint_of(folder, name, model, **config) as checkpoint:
        return read_vocabulary(checkpoint, ("unigram", "sentencepiece"), 1000)


def test_a_model_file_of_xlm_roberta_is_what_its_tokenizer_json_would_be(tmp_path: Path) -> None:
    model = trained.sentencepiece_model("unigram")
    name, owner = "sentencepiece.bpe.model", "XLMRobertaTokenizer"
    found = metadata_of(vocabulary(tmp_path / "m", name, model, tokenizer_class=owner))
    assert found == metadata_of(vocabulary_of(trained.unigram("2020"), NAMES, 1000))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_model_file_of_llama_gives_the_ids_of_the_sentencepiece_library(legacy: bool, tmp_path: Path) -> None:
    model = trained.sentencepiece_model("bpe")
    config = {"tokenizer_class": "LlamaTokenizerFast", "legacy": legacy, "add_eos_token": True}
    with checkpoint_of(tmp_path / "m", "tokenizer.model", model, **config) as checkpoint:
        original = Original.from_str(json.dumps(dict(read_tokenizer(checkpoint).values)))
        ours = runtime_tokenizer(metadata_of(read_vocabulary(checkpoint, "sentencepiece", 1000)))
    library = SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        found = ours.encode(text).token_ids.tolist()
        assert found == [1, *library.encode(text), 2] == original.encode(text).ids


def test_a_model_file_of_gemma_has_no_space_in_front(tmp_path: Path) -> None:
    model = trained.sentencepiece_model("bpe")
    found = metadata_of(vocabulary(tmp_path / "m", "tokenizer.model", model, tokenizer_class="GemmaTokenizer"))
    assert (found[keys.TOKENIZER_PIPELINE], found["tokenizer.ggml.add_bos_token"]) == ("replace-split", True)
    assert found["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize(
    ("kind", "config", "error", "message"),
    [
        ("bpe", {"tokenizer_class": "T5Tokenizer"}, Unsupported, "type 2 with tokenizer_class 'T5Tokenizer'"),
        ("bpe", {}, Unsupported, "type 2 with tokenizer_class ''"),
        ("unigram", {"tokenizer_class": "LlamaTokenizer"}, Unsupported, "type 1 with tokenizer_class"),
        ("bpe", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<x>"}, Broken, "bos_token is '<x>'"),
        ("broken", {"tokenizer_class": "LlamaTokenizer"}, Broken, "is not a SentencePiece model"),
        ("empty", {"tokenizer_class": "LlamaTokenizer"}, Broken, "is not a SentencePiece model"),
    ],
)
def test_a_model_file_that_is_refused(
    kind: str, config: dict[str, Any], error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    damaged = {"broken": base64.b64decode("////"), "empty": b""}
    model = damaged[kind] if kind in damaged else trained.sentencepiece_model(kind)
    with pytest.raises(error, match=message):
        vocabulary(tmp_path / "m", "tokenizer.model", model, **config)


def test_a_model_file_that_normalizes_is_refused(tmp_path: Path) -> None:
    model = trained.sentencepiece_model("bpe", normalization_rule_name="nmt_nfkc")
    with pytest.raises(Unsupported, match="it normalizes texts"):
        vocabulary(tmp_path / "m", "tokenizer.model", model, tokenizer_class="LlamaTokenizer")


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sentencepiece", "sentencepiece.sentencepiece_model_pb2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match="the library that reads it is missing") as caught:
        vocabulary(tmp_path / "m", "tokenizer.model", b"", tokenizer_class="LlamaTokenizer")
    assert caught.value.hint == 'pip install "edge-embed[sentencepiece]"'


def test_a_folder_without_any_tokenizer(tmp_path: Path) -> None:
    with (
        checkpoint_of(tmp_path / "m", "other.bin", b"") as checkpoint,
        pytest.raises(Broken, match=r"tokenizer\.json is missing"),
    ):
        read_vocabulary(checkpoint, "unigram", 10)
