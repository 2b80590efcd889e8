"""GGUFs of Qwen3-Embedding from anywhere: whatever their flags say, each text ends in one EDS token and the vectors are
those of the sound file; what was missing or wrong is said by the model, by ``show`` and by ``doctor``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, keys
from edge_embed.errors import ModelFileError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo
from tests.commands import run
from tests.tiny_gguf import Metadata, Tensors, gguf_bytes, tiny_bert, tiny_decoder, tiny_reranker

REMOVED = object()
ENDOFTEXT, IM_START, IM_END = 276, 277, 278  # the three special tokens of the tiny vocabulary, named as Qwen3's
TEXTS = ["the cat", "", "naïve café 猫 <|im_end|>", "in the house and on the mat " * 6]
NFC = "the file does not record Unicode normalization; NFC is used, as Qwen tokenizers do"

# The keys that the official files have, and what else the uploads of others do or do not say.
OFFICIAL: Metadata = {
    "general.type": "model",
    "general.name": "Qwen3 Embedding 0.6B",
    "general.basename": "Qwen3-Embedding",
    "general.size_label": "0.6B",
    "general.license": "apache-2.0",
    "general.file_type": np.uint32(1),
    "tokenizer.ggml.bos_token_id": np.uint32(ENDOFTEXT),
    "tokenizer.chat_template": "{%- for message in messages %}{{ message.content }}{%- endfor %}",
}
THIRD_PARTY: Metadata = {
    "general.name": "Qwen3-Embedding-0.6B",
    "general.quantized_by": "somebody",
    "general.repo_url": "https://huggingface.co/somebody/whatever",
    "tokenizer.ggml.add_bos_token": REMOVED,
    "tokenizer.ggml.padding_token_id": REMOVED,
}
UNKNOWN: Metadata = {"general.name": "Model"}
ORIGINS = {"official": OFFICIAL, "third-party": THIRD_PARTY, "unknown": UNKNOWN}

POOLED_BY = {"official": "Qwen/Qwen3-Embedding-0.6B", "third-party": "Qwen/Qwen3-Embedding-0.6B"}
APPENDS = f"the file's flags say that the tokenizer appends %s; '<|endoftext|>' ({ENDOFTEXT}) is appended instead"
UNPOOLED = "the file does not say how hidden states are pooled; 'last' is used, as in %s"
# What is wrong with a file, and the sentence for it; a tuple's second sentence is for names that nobody knows.
FAULTS: dict[str, tuple[Metadata, str]] = {
    "no add_eos flag": ({"tokenizer.ggml.add_eos_token": REMOVED}, APPENDS % "no token"),
    "add_eos false": ({"tokenizer.ggml.add_eos_token": np.bool_(False)}, APPENDS % "no token"),
    "no eos id": ({"tokenizer.ggml.eos_token_id": REMOVED}, APPENDS % "no token"),
    "the chat's end": ({"tokenizer.ggml.eos_token_id": np.uint32(IM_END)}, APPENDS % f"token {IM_END}"),
    "the chat's end, not appended": (
        {"tokenizer.ggml.eos_token_id": np.uint32(IM_END), "tokenizer.ggml.add_eos_token": np.bool_(False)},
        APPENDS % "no token",
    ),
    "begins with it, too": (
        {"tokenizer.ggml.add_bos_token": np.bool_(True), "tokenizer.ggml.bos_token_id": np.uint32(ENDOFTEXT)},
        f"the file's flags say that '<|endoftext|>' ({ENDOFTEXT}) begins a text, too; it ends texts, and begins none",
    ),
    "no pooling_type": ({"qwen3.pooling_type": REMOVED}, UNPOOLED),
    "pooling_type none": (
        {"qwen3.pooling_type": np.uint32(0)},
        "the file says that hidden states are not pooled; 'last' is used, as in %s",
    ),
    "nothing at all": (
        {
            "qwen3.pooling_type": REMOVED,
            "tokenizer.ggml.add_eos_token": REMOVED,
            "tokenizer.ggml.eos_token_id": REMOVED,
            "tokenizer.ggml.padding_token_id": REMOVED,
        },
        UNPOOLED,
    ),
}


def written(path: Path, model: tuple[Metadata, Tensors], *changes: Metadata) -> Path:
    metadata: Metadata = dict(model[0])
    for change in changes:
        metadata |= change
    path.write_bytes(gguf_bytes({key: item for key, item in metadata.items() if item is not REMOVED}, model[1]))
    return path


def info_of(path: Path) -> ModelInfo:
    return read_model_info(read_header(path))


@pytest.fixture(scope="module")
def model() -> tuple[Metadata, Tensors]:
    return tiny_decoder(hidden=1024, layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("origins")


@pytest.fixture(scope="module")
def sound(model: tuple[Metadata, Tensors], folder: Path) -> tuple[np.ndarray, list[list[int]]]:
    """Vectors and ids of the file whose flags are right, whole and cut to eight tokens."""
    path = written(folder / "sound.gguf", model, OFFICIAL)
    assert not [repair for repair in info_of(path).repairs if "flags" in repair or "pooled" in repair]
    return looked_at(path)


def looked_at(path: Path, eds: int = ENDOFTEXT) -> tuple[np.ndarray, list[list[int]]]:
    with Embedder(path, n_threads=1) as embedder:
        ids = [embedder.tokenize(text).token_ids.tolist() for text in TEXTS]
        for side in ("right", "left"):
            cut = embedder.tokenize(TEXTS[3], truncate=side, max_tokens=8)  # type: ignore[arg-type]
            assert (cut.n_tokens, cut.truncated) == (8, True)
            ids.append(cut.token_ids.tolist())
        for found in ids:
            assert (found.count(eds), found[-1]) == (1, eds)
        whole, cut_off = embedder.encode(TEXTS), embedder.encode(TEXTS, max_tokens=8)
    return np.concatenate([whole, cut_off]), ids


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_text_ends_in_one_eds_and_the_vectors_are_the_sound_file_s(
    fault: str, origin: str, model: tuple[Metadata, Tensors], sound: tuple[np.ndarray, list[list[int]]], folder: Path
) -> None:
    changes, sentence = FAULTS[fault]
    if "%s" in sentence:
        sentence %= POOLED_BY.get(origin, "all models of the architecture 'qwen3'")
    path = written(folder / "broken.gguf", model, ORIGINS[origin], changes)
    info = info_of(path)
    assert (info.pooling, info.eds_token_id) == ("last", ENDOFTEXT)
    said = [repair for repair in info.repairs if "Qwen3-Embedding-0.6B are used" not in repair]
    assert said[0] == sentence
    assert said[1:] == ([APPENDS % "no token", NFC] if fault == "nothing at all" else [NFC])
    vectors, ids = looked_at(path)
    assert ids == sound[1]
    np.testing.assert_array_equal(vectors, sound[0])


@pytest.mark.parametrize("origin", ["official", "third-party"])
@pytest.mark.parametrize(("stored", "name"), [(1, "mean"), (2, "cls")])
def test_a_known_model_is_pooled_as_its_publisher_does(
    stored: int,
    name: str,
    origin: str,
    model: tuple[Metadata, Tensors],
    sound: tuple[np.ndarray, list[list[int]]],
    folder: Path,
) -> None:
    path = written(folder / "mean.gguf", model, ORIGINS[origin], {"qwen3.pooling_type": np.uint32(stored)})
    info = info_of(path)
    assert (info.pooling, info.pooling_source) == ("last", "catalogue")
    assert (
        f"the file says that hidden states are pooled by '{name}'; 'last' is used, as in Qwen/Qwen3-Embedding-0.6B"
        in info.repairs
    )
    vectors, ids = looked_at(path)
    assert ids == sound[1]
    np.testing.assert_array_equal(vectors, sound[0])


def test_what_nobody_knows_and_what_our_converter_wrote_is_pooled_as_the_file_says(
    model: tuple[Metadata, Tensors], folder: Path
) -> None:
    mean = {"qwen3.pooling_type": np.uint32(1)}
    for changes in (UNKNOWN, {**OFFICIAL, keys.VERSION: np.uint32(1)}):
        info = info_of(written(folder / "own.gguf", model, mean, changes))
        assert (info.pooling, info.pooling_source) == ("mean", "file")
        assert not any("pooled" in repair for repair in info.repairs)


def test_the_caller_is_above_the_catalogue(model: tuple[Metadata, Tensors], folder: Path) -> None:
    path = written(folder / "caller.gguf", model, OFFICIAL)
    info = read_model_info(read_header(path), pooling="mean")
    assert (info.pooling, info.pooling_source) == ("mean", "caller")


def test_a_literal_eds_token_comes_first(model: tuple[Metadata, Tensors], folder: Path) -> None:
    """The flags say <|endoftext|>, the vocabulary has a token for it."""
    metadata, tensors = model
    tokens = ["[EDS]" if token == "<|im_start|>" else token for token in metadata["tokenizer.ggml.tokens"]]
    own = {**OFFICIAL, "tokenizer.ggml.tokens": tokens}
    broken = written(folder / "literal.gguf", (metadata, tensors), own)
    said = f"the file's flags say that the tokenizer appends token {ENDOFTEXT}; '[EDS]' ({IM_START}) is appended"
    assert info_of(broken).repairs[0].startswith(said)
    flags = {"tokenizer.ggml.eos_token_id": np.uint32(IM_START)}
    right = written(folder / "literal-sound.gguf", (metadata, tensors), own, flags)
    assert not any("flags" in repair for repair in info_of(right).repairs)
    vectors, ids = looked_at(broken, IM_START)
    np.testing.assert_array_equal(vectors, looked_at(right, IM_START)[0])
    assert ids == looked_at(right, IM_START)[1]


SEPARATORS: dict[str, Metadata] = {
    "none": {"tokenizer.ggml.padding_token_id": REMOVED},
    "the chat's end": {
        "tokenizer.ggml.padding_token_id": np.uint32(IM_END),
        "tokenizer.ggml.seperator_token_id": np.uint32(IM_END),
        "tokenizer.ggml.add_sep_token": np.bool_(True),
    },
    "the EDS token": {
        "tokenizer.ggml.seperator_token_id": np.uint32(ENDOFTEXT),
        "tokenizer.ggml.add_sep_token": np.bool_(True),
        "tokenizer.ggml.eot_token_id": np.uint32(IM_END),
    },
}


@pytest.mark.parametrize("which", SEPARATORS)
def test_separators_and_padding_change_nothing(
    which: str, model: tuple[Metadata, Tensors], sound: tuple[np.ndarray, list[list[int]]], folder: Path
) -> None:
    vectors, ids = looked_at(written(folder / "separators.gguf", model, THIRD_PARTY, SEPARATORS[which]))
    assert ids == sound[1]
    np.testing.assert_array_equal(vectors, sound[0])


def test_what_our_converter_recorded_may_begin_a_text_with_its_end(
    model: tuple[Metadata, Tensors], folder: Path
) -> None:
    """It is the original tokenizer's own doing then."""
    changes = {"tokenizer.ggml.add_bos_token": np.bool_(True), keys.EDS_TOKEN_ID: np.uint32(ENDOFTEXT)}
    path = written(folder / "bos.gguf", model, OFFICIAL, changes)
    with Embedder(path, n_threads=1) as embedder:
        assert embedder.tokenize("the cat").token_ids[[0, -1]].tolist() == [ENDOFTEXT, ENDOFTEXT]
    assert not any("begins" in repair for repair in info_of(path).repairs)


# What people and programs are told


def test_show_and_doctor_say_what_was_repaired(model: tuple[Metadata, Tensors], folder: Path) -> None:
    path = written(folder / "said.gguf", model, THIRD_PARTY, FAULTS["nothing at all"][0])
    repairs = list(info_of(path).repairs)
    assert len(repairs) == 5  # pooling, EDS, normalization, prompts, sizes
    assert json.loads(run("show", "--json", path).stdout)["repairs"] == repairs
    shown = run("show", path).stdout
    checked = run("doctor", path)
    found = json.loads(run("doctor", "--json", path).stdout)
    assert checked.exit_code == 0
    assert found["ok"]
    assert found["repairs"] == repairs
    for repair in repairs:
        assert repair in shown
        assert repair in checked.stdout


def test_doctor_says_when_nothing_had_to_be_repaired(bert_path: Path) -> None:
    found = json.loads(run("doctor", "--json", "-m", bert_path).stdout)
    assert found["repairs"] == []
    assert "repaired" not in run("doctor", "-m", bert_path).stdout


def test_doctor_takes_one_model(bert_path: Path) -> None:
    result = run("doctor", bert_path, "-m", bert_path)
    assert result.exit_code == 2
    assert "name the model once" in result.stderr


# Rerankers of known names


def test_a_known_reranker_without_pooling_type_is_one(folder: Path) -> None:
    model = tiny_reranker(hidden=1024, layers=1)
    name = {"general.name": "Qwen3-Reranker-0.6B"}
    for stored in (REMOVED, np.uint32(0), np.uint32(3)):
        info = info_of(written(folder / "reranker.gguf", model, name, {"qwen3.pooling_type": stored}))
        assert (info.pooling, info.pooling_source) == ("rank", "catalogue")
        assert info.rerank is not None
        assert "'rank' is used, as in Qwen/Qwen3-Reranker-0.6B" in info.repairs[0]


@pytest.mark.parametrize("stored", [REMOVED, np.uint32(1), np.uint32(3)])
def test_a_known_reranker_without_a_head_says_what_is_wrong(stored: Any, folder: Path) -> None:
    """As converters made them that knew no rerankers."""
    changes = {"general.name": "Qwen3-Reranker-0.6B", "qwen3.pooling_type": stored}
    with pytest.raises(ModelFileError, match=r"is Qwen/Qwen3-Reranker-0.6B, a reranker, and has no head"):
        info_of(written(folder / "headless.gguf", tiny_decoder(hidden=1024, layers=1), changes))
    changes = {"general.name": "ms-marco-MiniLM-L6-v2", "bert.pooling_type": stored}
    with pytest.raises(ModelFileError, match=r"is cross-encoder/ms-marco-MiniLM-L6-v2, a reranker, and has no head"):
        info_of(written(folder / "headless.gguf", tiny_bert(hidden=384), changes))
