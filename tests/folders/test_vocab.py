"""A tokenizer.json becomes the keys that llama.cpp reads, whole and recognized, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Tokenizer

from edge_embed import Embedder, keys
from edge_embed.gguf_header import read_header
from tests.checkpoints import QWEN2_REGEX, build_tiny_bert, build_tiny_qwen3, wordpiece_vocabulary
from tests.converting import MISSING, edited, metadata, small_qwen3
from tests.folders import Broken, Unsupported, attempt, refused
from tests.folders.tokenizers import added, keys_of, template, with_added

# ---------------------------------------------------------------- both kinds


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    """Embedding matrices are padded to round sizes; llama.cpp needs a token for each row."""
    found = keys_of(small_qwen3(tmp_path / "m", n_rows=288))
    assert found["tokens"][276:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [
        f"[PAD{i}]" for i in range(279, 288)
    ]
    assert found["token_type"][276:] == [TokenType.CONTROL] * 3 + [TokenType.UNUSED] * 9


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_more_tokens_than_rows(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pristine[name], tmp_path / name))
    path = folder / "tokenizer.json"
    vocab = json.loads(path.read_text("utf-8"))["model"]["vocab"]
    edited(path, model__vocab=vocab | {f"more {i}": i for i in range(len(vocab), 2000)})
    refused(folder, Broken, r"tokenizer\.json: 2000 tokens, and the embedding matrix has \d+ rows")


def test_added_tokens_beyond_the_matrix_are_left_out_and_noted(qwen3: Path) -> None:
    """transformers would fail on them; no text that a model can embed has them."""
    report = attempt(with_added(qwen3, added("<extra>", 279)))
    assert report.notes == ("added tokens without a row in the embedding matrix are left out: ['<extra>']",)
    assert len(metadata(report.path)["tokenizer.ggml.tokens"]) == 279


@pytest.mark.parametrize("name", ["bert", "qwen3"])
@pytest.mark.parametrize(
    "change",
    [
        {"model__vocab": {}},
        {"model__vocab": {"a": 0, "b": 0}},
        {"model__vocab": {"a": 1, "b": 2}},
        {"model__vocab": {"a": "0"}},
        {"model__vocab": {"a": True, "b": 0}},
        {"model__vocab": {"a": -1}},
        {"model__vocab": ["a", "b"]},
        {"model__vocab": None},
        {"model": []},
        {"model": MISSING},
        {"added_tokens": {}},
        {"added_tokens": [7]},
        {"added_tokens": [{"id": 0}]},
        {"added_tokens": [{"id": "0", "content": "a"}]},
        {"added_tokens": [{"id": -1, "content": "a"}]},
        {"added_tokens": [{"id": 0, "content": 7}]},
        {"added_tokens": [{"id": 0, "content": "a", "special": "yes"}]},
    ],
)
def test_a_vocabulary_that_cannot_be(
    name: str, change: dict[str, Any], pristine: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pristine[name], tmp_path / name))
    edited(folder / "tokenizer.json", **change)
    refused(folder, Broken, r"tokenizer\.json")


def test_a_missing_tokenizer(bert: Path) -> None:
    (bert / "vocab.txt").unlink()
    (bert / "tokenizer.json").unlink()
    refused(bert, Broken, r"tokenizer\.json is missing")


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "spiece.model"])
def test_a_tokenizer_of_the_time_before(name: str, bert: Path) -> None:
    """The download may be complete, and the file has to be made."""
    (bert / "vocab.txt").unlink()
    (bert / "tokenizer.json").rename(bert / name)
    with pytest.raises(Unsupported, match=f"has {name} and no tokenizer.json") as caught:
        attempt(bert)
    assert "save_pretrained" in (caught.value.hint or "")


def test_an_added_token_whose_id_is_anothers(bert: Path, qwen3: Path) -> None:
    refused(with_added(qwen3, added("<|im_start|>", 276)), Broken, r"have one id, 276")
    refused(with_added(bert, added("[NEW]", 9)), Broken, "have one id, 9")
    edited(bert / "tokenizer.json", added_tokens=[added("[CLS]", 3)])
    refused(bert, Broken, r"'\[CLS\]' has the ids 3 and 2")


def test_two_tokens_of_one_spelling(qwen3: Path, tmp_path: Path) -> None:
    """llama.cpp ends the process on them."""
    refused(with_added(qwen3, added("<|im_end|>", 276)), Broken, "one id")
    padded = small_qwen3(tmp_path / "padded", n_rows=288)
    refused(with_added(padded, added("<|im_end|>", 280)), Unsupported, "token 280 .* is spelled like token 278")
    other = small_qwen3(tmp_path / "other", n_rows=288)
    refused(with_added(other, added("[PAD285]", 281)), Unsupported, "token 285 .* is spelled like token 281")


def test_an_empty_token(tmp_path: Path) -> None:
    refused(with_added(small_qwen3(tmp_path / "m", n_rows=288), added("", 280)), Unsupported, "token 280 .* is empty")
    pieces = [*wordpiece_vocabulary(), "##"]
    refused(build_tiny_bert(tmp_path / "b", vocab=pieces), Unsupported, "is empty in llama.cpp's form")


def test_a_wordpiece_and_a_bpe_are_not_taken_for_each_other(bert: Path, qwen3: Path) -> None:
    texts = [(folder / "tokenizer.json").read_text("utf-8") for folder in (bert, qwen3)]
    (bert / "tokenizer.json").write_text(texts[1], "utf-8")
    (qwen3 / "tokenizer.json").write_text(texts[0], "utf-8")
    refused(bert, Unsupported, "model.type .*'BPE'")
    refused(qwen3, Unsupported, "model.type .*'WordPiece'")


@pytest.mark.parametrize("kind", ["Other", "WordLevel", None, 7])
def test_an_unrecognized_model(kind: Any, bert: Path, qwen3: Path) -> None:
    for folder in (bert, qwen3):
        edited(folder / "tokenizer.json", model__type=kind)
        refused(folder, Unsupported, "model.type is not one that is converted")


# ---------------------------------------------------------------- byte-level BPE


def test_token_types_of_a_bpe(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "m", n_rows=288)
    found = keys_of(with_added(folder, added("<think>", 279, special=False)))
    assert found["token_type"][0] == TokenType.NORMAL
    assert found["token_type"][276:280] == [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED]


@pytest.mark.parametrize("spelling", ["pairs", "strings"])
def test_merges_in_both_spellings(spelling: str, qwen3: Path) -> None:
    path = qwen3 / "tokenizer.json"
    merges = json.loads(path.read_text("utf-8"))["model"]["merges"]
    lines = [" ".join(pair) for pair in merges]
    edited(path, model__merges=merges if spelling == "pairs" else lines)
    assert keys_of(qwen3)["merges"] == lines


@pytest.mark.parametrize("form", ["none", "NFC", "NFKC"])
def test_unicode_normalization_is_recorded(form: str, qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", normalizer=None if form == "none" else {"type": form})
    assert keys_of(qwen3)[keys.UNICODE_NORMALIZATION] == form


def eds(folder: Path) -> tuple[int, int]:
    """The EDS id and the end-of-sequence id that stock llama.cpp appends."""
    found = keys_of(folder)
    assert found["add_eos_token"] is True
    return found[keys.EDS_TOKEN_ID], found["eos_token_id"]


def test_eds_is_what_the_post_processor_appends(qwen3: Path) -> None:
    """Even the end of a chat turn, where the checkpoint says so; in a Sequence and alone."""
    assert eds(qwen3) == (276, 276)
    for i, token in ((277, "<|im_start|>"), (278, "<|im_end|>")):
        edited(qwen3 / "tokenizer.json", post_processor=template([], [(token, i)]))
        assert eds(qwen3) == (i, i)


def test_a_literal_eds_token_comes_first(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "m", n_rows=288)
    assert eds(with_added(folder, added("[EDS]", 279))) == (279, 279)


def test_eds_without_a_post_processor_is_the_pad_token_and_never_the_end_of_a_turn(qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", post_processor=None)
    assert eds(qwen3) == (276, 276)
    assert attempt(qwen3).notes == ("the post-processor appends nothing: the pad token (276) ends every text",)
    edited(qwen3 / "tokenizer_config.json", pad_token="<|im_end|>")
    assert eds(qwen3) == (276, 276)
    assert attempt(qwen3).notes == ("the post-processor appends nothing: <|endoftext|> (276) ends every text",)
    edited(qwen3 / "tokenizer_config.json", pad_token=None, eos_token={"content": "<|endoftext|>"})
    qwen3.with_suffix(".gguf").unlink()
    refused(qwen3, Unsupported, "nothing says which token ends a text")


def test_a_mean_has_no_token_that_the_original_does_not_see(qwen3: Path) -> None:
    """As of KaLM-Embedding: Qwen2's tokenizer appends nothing, and only last pooling needs a token to read."""
    edited(qwen3 / "1_Pooling" / "config.json", pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)
    with Embedder(attempt(qwen3).path, n_threads=1) as model:
        assert model.tokenize("the words").token_ids[-1] == 276  # its post-processor says so
    edited(qwen3 / "tokenizer.json", post_processor=None)
    report = attempt(qwen3)
    found = metadata(report.path)
    assert (report.notes, found["tokenizer.ggml.add_eos_token"], keys.EDS_TOKEN_ID in found) == ((), False, False)
    with Embedder(report.path) as model:
        original = Tokenizer.from_file(str(qwen3 / "tokenizer.json"))
        assert model.tokenize("the words").token_ids.tolist() == original.encode("the words").ids


def test_the_vector_ends_with_the_eds_token_of_the_file(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "m", n_rows=288)
    with Embedder(attempt(with_added(folder, added("[EDS]", 279))).path, n_threads=1) as embedder:
        assert embedder.tokenize("in the house").token_ids[-1] == 279


SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def sequence(*parts: Any) -> dict[str, Any]:
    """A Sequence of pre-tokenizers."""
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        sequence(SPLIT | {"pattern": {"Regex": QWEN2_REGEX.replace(r"\p{N}|", r"\p{N}{1,2}|")}}, BYTES),
        sequence(SPLIT | {"pattern": {"String": " "}}, BYTES),
        sequence(SPLIT | {"pattern": "x"}, BYTES),
        sequence(SPLIT | {"pattern": None}, BYTES),
        sequence(SPLIT | {"pattern": {"Regex": [QWEN2_REGEX]}}, BYTES),
        sequence(SPLIT | {"behavior": "Removed"}, BYTES),
        sequence(SPLIT | {"invert": True}, BYTES),
        sequence(SPLIT, BYTES | {"add_prefix_space": True}),
        sequence(SPLIT, BYTES | {"use_regex": True}),
        sequence(SPLIT),
        sequence(SPLIT, BYTES, BYTES),
        sequence(7, BYTES),
        sequence(SPLIT, 7),
        sequence(),
        {"type": "Sequence", "pretokenizers": 7},
        BYTES,
    ],
)
def test_an_unrecognized_pre_tokenizer(pre_tokenizer: dict[str, Any], qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", pre_tokenizer=pre_tokenizer)
    refused(qwen3, Unsupported, "pre_tokenizer is not one that is converted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFD"}}, "normalizer"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}}, "normalizer"),
        ({"normalizer": "NFC"}, "normalizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"model__byte_fallback": True}, "model.type"),
        ({"model__dropout": 0.1}, "dropout"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"post_processor": template([("<|im_start|>", 277)] * 2, [])}, "post_processor"),
        ({"post_processor": template([], [("<|endoftext|>", 276), ("<|im_end|>", 278)])}, "post_processor"),
        ({"post_processor": {"type": "Other"}}, "post_processor"),
    ],
)
def test_a_bpe_part_that_is_not_recognized(change: dict[str, Any], message: str, qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", **change)
    refused(qwen3, Unsupported, f"{message}.* is not one that is converted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__merges": None}, "merges is not a list"),
        ({"model__merges": [["a"]]}, "is not a pair"),
        ({"model__merges": ["a b c"]}, "is not a pair"),
        ({"model__merges": [["a", ""]]}, "is not a pair"),
        ({"model__merges": [["a b", "c"]]}, "is not a pair"),
        ({"model__merges": [7]}, "is not a pair"),
        ({"model__merges": [["q", "q"]]}, "not in the vocabulary"),
        ({"post_processor": template([], [("<|endoftext|>", 279)])}, "token 279, which is not in the vocabulary"),
        ({"post_processor": template([], [("<|endoftext|>", 2**40)])}, "which is not in the vocabulary"),
    ],
)
def test_a_bpe_part_that_cannot_be(change: dict[str, Any], message: str, qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", **change)
    refused(qwen3, Broken, message)


def test_an_eds_token_that_is_only_a_padding_row(tmp_path: Path) -> None:
    folder = small_qwen3(tmp_path / "m", n_rows=288)
    edited(folder / "tokenizer.json", post_processor=template([], [("<|endoftext|>", 285)]))
    refused(folder, Broken, "token 285, which is not in the vocabulary")


def test_words_that_are_taken_whole(qwen3: Path) -> None:
    """Which llama.cpp does by its pre-tokenizer's name, and not for this one."""
    edited(qwen3 / "tokenizer.json", model__ignore_merges=True)
    refused(qwen3, Unsupported, "model.ignore_merges is true")


def test_an_unknown_token_where_bytes_are_missing(qwen3: Path) -> None:
    edited(qwen3 / "tokenizer.json", model__unk_token="<unk>")
    assert attempt(qwen3).path.exists()  # with all 256 bytes it never occurs
    qwen3.with_suffix(".gguf").unlink()
    path = qwen3 / "tokenizer.json"
    vocab = json.loads(path.read_text("utf-8"))["model"]["vocab"]
    edited(path, model__vocab={"?" + token if token == "~" else token: i for token, i in vocab.items()})
    refused(qwen3, Unsupported, "1 of the 256 bytes are not in the vocabulary, and model.unk_token '<unk>'")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("lstrip", keys.ADDED_LSTRIP),
        ("rstrip", keys.ADDED_RSTRIP),
        ("single_word", keys.ADDED_SINGLE_WORD),
        ("normalized", keys.ADDED_NORMALIZED),
    ],
)
def test_how_added_tokens_are_found_is_recorded(flag: str, key: str, tmp_path: Path) -> None:
    folder = with_added(small_qwen3(tmp_path / "m", n_rows=288), added("<x>", 279, **{flag: True}))
    found = keys_of(folder)
    assert found[key] == [279]
    assert [name for name in found if name.startswith("edge_embed.tokenizer.added")] == [key]


def test_a_beginning_of_sequence_token(qwen3: Path) -> None:
    edited(qwen3 / "tokenizer_config.json", add_bos_token=True)
    refused(qwen3, Unsupported, "add_bos_token")


def test_a_space_before_every_text(qwen3: Path) -> None:
    """transformers' RobertaTokenizer and Qwen2Tokenizer read it there, whatever tokenizer.json says."""
    edited(qwen3 / "tokenizer_config.json", add_prefix_space=False)
    attempt(qwen3).path.unlink()
    edited(qwen3 / "tokenizer_config.json", add_prefix_space=True)
    refused(qwen3, Unsupported, "tokenizer_config.json: add_prefix_space is set")


def test_the_real_tokenizer_of_qwen3(tmp_path: Path) -> None:
    """Every token under its id, and the EDS token of the embedding models."""
    folder = build_tiny_qwen3(tmp_path / "m", n_rows=151936)
    header = read_header(attempt(folder).path).metadata  # GGUFReader takes ten seconds for so many tokens
    found = {name.removeprefix("tokenizer.ggml."): value for name, value in header.items()}
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    expected = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert len(found["tokens"]) == len(found["token_type"]) == 151936
    assert [found["tokens"][i] for i in expected.values()] == list(expected)
    assert set(found["token_type"][max(expected.values()) + 1 :]) == {TokenType.UNUSED}
    assert len(found["merges"]) == len(tokenizer["model"]["merges"])
    assert (found[keys.EDS_TOKEN_ID], found["eos_token_id"], found["eot_token_id"]) == (151643, 151643, 151645)
    assert (found["pre"], found[keys.UNICODE_NORMALIZATION]) == ("qwen2", "NFC")
