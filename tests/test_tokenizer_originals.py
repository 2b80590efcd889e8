"""Ids of every kind of tokenizer that is converted, taken through a GGUF's keys, are those of the original."""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edge_embed import Embedder, keys, rebuild
from edge_embed.errors import ModelFileError
from edge_embed.tokenizer import Tokenizer
from tests import trained
from tests.checkpoints import qwen3_tokenizer_text
from tests.golden_texts import TEXTS
from tests.scripts import run_script
from tests.test_tokenizer import HARD_TEXTS
from tests.tiny_gguf import gguf_bytes, tiny_decoder
from tests.tokenizing import both, metadata_of, runtime_tokenizer, typed, vocabulary_of

NAMES = list(trained.ALL)
SPECIAL = [
    "<s>", "</s>", "<unk>", "<mask>", " <mask> x", "<pad>", "[MASK]", " [MASK]", "[CLS]", "[SEP]x", "<unused0>", "\n\n",
    "<|endoftext|>", "<|endoftext|>\u0338", "<think>", "<0x0A>", "▁", "▁▁x", "|||IP_ADDRESS|||",
]  # fmt: skip
SPICED = st.lists(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from([*SPECIAL, " ", "  ", "\t", "the", "'s", "2021", "中文", "e\u0301", "가\u11a8", "ﬁ", "\0"]),
    max_size=8,
).map("".join)


@functools.cache
def pair_of(name: str) -> tuple[Original, Tokenizer]:
    """The original and ours."""
    return both(trained.ALL[name]())


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text).token_ids.tolist()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_golden_and_hard_texts_and_special_tokens(name: str) -> None:
    original, rebuilt = pair_of(name)
    texts = [*TEXTS, *HARD_TEXTS, *SPECIAL, *(f"a {token} b" for token in SPECIAL)]
    texts += [unicodedata.normalize("NFD", text) for text in texts]
    expected = {text: original.encode(text).ids for text in texts}
    assert expected == {text: ids(rebuilt, text) for text in texts}


@pytest.mark.parametrize("name", NAMES)
@given(text=SPICED)
def test_any_text(name: str, text: str) -> None:
    original, rebuilt = pair_of(name)
    assert original.encode(text).ids == ids(rebuilt, text)


@functools.cache
def real_qwen3() -> tuple[Original, Tokenizer]:
    """The tokenizer of Qwen3 with the embedding models' post-processor: 151,669 tokens."""
    return both(json.loads(qwen3_tokenizer_text()))


def test_the_real_tokenizer_of_qwen3() -> None:
    original, rebuilt = real_qwen3()
    texts = [*TEXTS, *HARD_TEXTS, *SPECIAL]
    texts += [unicodedata.normalize("NFD", text) for text in texts]
    expected = {text: original.encode(text).ids for text in texts}
    assert expected == {text: ids(rebuilt, text) for text in texts}


@given(text=SPICED)
def test_the_real_tokenizer_of_qwen3_on_any_text(text: str) -> None:
    original, rebuilt = real_qwen3()
    assert original.encode(text).ids == ids(rebuilt, text)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("bpe")])
@given(query=SPICED, document=SPICED)
def test_any_pair(name: str, query: str, document: str) -> None:
    original, rebuilt = pair_of(name)
    if rebuilt.separator is None:  # nothing stands between the texts of a causal model's pair
        assert name in ("qwen", "llama3", "smollm")
        return
    assert original.encode(query, document).ids == rebuilt.encode_pair(query, document).token_ids.tolist()


@pytest.mark.parametrize("name", NAMES)
@given(text=st.lists(SPICED, max_size=20).map(" ".join))
def test_long_texts_are_cut_where_it_changes_nothing(name: str, text: str) -> None:
    original, rebuilt = pair_of(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "_SLICE", 8)
        assert original.encode(text).ids == ids(rebuilt, text)


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_cut_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt = pair_of(name)[1]
    seen: list[str] = []
    slices = rebuild._slices

    def recorded(*arguments: Any) -> Any:
        for part in slices(*arguments):
            seen.append(part)
            yield part

    monkeypatch.setattr(rebuild, "_slices", recorded)
    monkeypatch.setattr(rebuild, "_SLICE", 100)
    ids(rebuilt, "all work and no play makes jack a dull boy " * 50)
    assert len(seen) > 10
    assert max(map(len, seen)) < 150


HOSTILE = """
import json, sys
from tests.tokenizing import runtime_tokenizer
metadata = json.load(open(sys.argv[1]))
tokenizer = runtime_tokenizer(metadata)
units = ("a", "1", "?", " ", "\\n", "é", "中", "\\u0301", "\\0", "▁", "the ", "'s", "\\U0010ffff")
texts = [unit * 100_000 for unit in units]
texts += ["x" + "\\u0301" * 50_000, "\\u200d" * 10_000, "".join(metadata["tokenizer.ggml.tokens"]), ""]
for text in texts:
    assert len(tokenizer.encode(text).token_ids) > 0
print("tokens")
"""


@pytest.mark.parametrize("name", NAMES)
def test_hostile_texts_do_not_end_the_process(name: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(metadata_of(vocabulary_of(trained.ALL[name]()))), "utf-8")
    assert run_script(HOSTILE, path).strip() == "tokens"


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_loads_the_vocabulary_and_its_own_tokenizer_agrees_on_plain_text(name: str, tmp_path: Path) -> None:
    """Stock llama.cpp reads the standard keys alone: the special tokens and the ids of ordinary sentences are right."""
    vocabulary = vocabulary_of(trained.ALL[name]())
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(*tiny_decoder("llama", typed(vocabulary), n_ctx=4096)))
    original = pair_of(name)[0]
    with Embedder(tmp_path / "x.gguf", n_threads=1) as embedder:
        for text in TEXTS:
            assert original.encode(text).ids == embedder.tokenize(text).token_ids.tolist()
        for text in TEXTS[:5]:
            assert original.encode(text, add_special_tokens=False).ids == list(embedder.backend.engine.tokenize(text))


def test_merges_are_made_of_the_scores_where_a_file_has_none() -> None:
    """Files of llama.cpp's converter: every way to make a token of two, the best token first."""
    tokenizer = trained.sentencepiece_bpe("prepend")
    metadata = metadata_of(vocabulary_of(tokenizer))
    for key in ("tokenizer.ggml.merges", keys.TOKENIZER_PIPELINE):
        del metadata[key]
    original, rebuilt = Original.from_str(json.dumps(tokenizer)), runtime_tokenizer(metadata)
    assert [original.encode(text).ids for text in TEXTS] == [ids(rebuilt, text) for text in TEXTS]


def test_padding_rows_do_not_change_the_ids() -> None:
    """Their spelling is in no text, and the unknown token's score does not come from theirs."""
    tokenizer = trained.unigram("2020")
    n = len(tokenizer["model"]["vocab"])
    rebuilt = runtime_tokenizer(metadata_of(vocabulary_of(tokenizer, n_rows=n + 10)))
    original = Original.from_str(json.dumps(tokenizer))
    for text in [*TEXTS, f"[PAD{n}] x", f" [PAD{n + 1}]"]:
        assert original.encode(text).ids == ids(rebuilt, text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]}, "x.gguf"),
        ({"tokenizer.ggml.precompiled_charsmap": [0, 0, 0, 0]}, "x.gguf"),
        ({keys.TOKENIZER_PIPELINE: "other"}, "tokenizer.pipeline is 'other', expected one of"),
        ({"tokenizer.ggml.unknown_token_id": 10**6}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.scores": [0.0]}, "1 scores"),
    ],
)
def test_a_damaged_unigram_is_an_error_that_names_the_file(changes: dict[str, Any], message: str) -> None:
    metadata = metadata_of(vocabulary_of(trained.unigram("2020"))) | changes
    with pytest.raises(ModelFileError, match=message):
        runtime_tokenizer(metadata, path="x.gguf").encode("Hello ﬁne world")


@pytest.mark.parametrize("key", ["tokenizer.ggml.merges", "tokenizer.ggml.scores"])
@pytest.mark.parametrize("value", [["a", 1], [1, 2], 3])
def test_a_damaged_sentencepiece_is_an_error_that_names_the_file(key: str, value: Any) -> None:
    metadata = metadata_of(vocabulary_of(trained.sentencepiece_bpe("prepend")))
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ModelFileError, match=rf"x\.gguf: {key} is not a list"):
        runtime_tokenizer(metadata | {key: value}, path="x.gguf")


def test_merges_that_cannot_be_are_an_error_that_names_the_file() -> None:
    metadata = metadata_of(vocabulary_of(trained.byte_level("qwen")))
    with pytest.raises(ModelFileError, match=r"x\.gguf: tokenizer\.ggml\.merges"):
        runtime_tokenizer(metadata | {"tokenizer.ggml.merges": ["no such"]}, path="x.gguf")
