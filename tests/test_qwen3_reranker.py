"""Qwen3-Reranker, converted: its scores against the original's, and against stock llama.cpp's on the same file."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed import Embedder, Reranker, errors, keys
from edge_embed.convert import ConversionReport, convert
from edge_embed.convert.reranker import plain_template
from edge_embed.engine.llama import LlamaEngine
from edge_embed.gguf_header import read_header
from edge_embed.prompts import rerank_problem
from tests.converting import MISSING, edited, metadata, tensors
from tests.families import golden, qwen3_reranker
from tests.families.qwen3_reranker import (
    CHAT_TEMPLATE,
    INSTRUCTION,
    KINDS,
    MAX_TOKENS,
    NAME,
    NO,
    OTHER_INSTRUCTION,
    PAIRS,
    PREFIX,
    SUFFIX,
    YES,
    Kind,
)

CARD = f"{PREFIX}<Instruct>: {{instruction}}\n<Query>: {{query}}\n<Document>: {{document}}{SUFFIX}"


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return golden(NAME)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints as published, and as sentence-transformers saves them."""
    folder = tmp_path_factory.mktemp("qwen3-reranker")
    return {kind: qwen3_reranker.build(folder / kind, kind) for kind in KINDS} | {
        f"{kind} st": qwen3_reranker.build(folder / f"{kind} st", kind, sentence_transformers=True)
        for kind in ("tied", "one_output")
    }


@pytest.fixture(scope="module")
def converted(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of them in F16; those of sentence-transformers say themselves what they are."""
    target = tmp_path_factory.mktemp("converted")
    return {
        name: convert(folder, target / f"{name}.gguf", ftype="f16", reranker=not name.endswith("st")).path
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def tied(converted: dict[str, Path]) -> Iterator[Reranker]:
    with Reranker(converted["tied"], n_threads=1) as reranker:
        yield reranker


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def rows(arrays: dict[str, np.ndarray], name: str) -> list[list[int]]:
    return [row.tolist() for row in np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])]


def header(path: Path) -> dict[str, Any]:
    """The metadata; gguf-py takes seconds for 151,669 tokens."""
    return read_header(path).metadata


def ids_of(reranker: Reranker, max_tokens: int | None = None) -> list[list[int]]:
    """What the engine is given for the pairs."""
    job = reranker.prepare(PAIRS, max_tokens=max_tokens)
    return [job.encodings[i].token_ids.tolist() for i in job.positions]


# Against the original


@pytest.mark.parametrize("name", ["tied", "untied", "one_output", "tied st", "one_output st"])
def test_scores_are_the_originals(name: str, converted: dict[str, Path], original: dict[str, np.ndarray]) -> None:
    kind = name.removesuffix(" st")
    with Reranker(converted[name], n_threads=1) as reranker:
        for case, options in {
            kind: {},
            f"{kind}_instructed": {"instruction": OTHER_INSTRUCTION},
            f"{kind}_cut": {"max_tokens": MAX_TOKENS},
        }.items():
            expected = sigmoid(original[case])
            assert np.ptp(expected) > 0.2, "scores that are all alike would show nothing"
            np.testing.assert_allclose(reranker.predict(PAIRS, **options), expected, atol=1e-3)
            np.testing.assert_allclose(reranker.predict(PAIRS, raw_scores=True, **options), original[case], atol=0.01)


def test_ids_are_the_originals_cut_ones_too(tied: Reranker, original: dict[str, np.ndarray]) -> None:
    """Texts that spell special tokens among them: the original's tokenizer recognizes those."""
    assert ids_of(tied) == rows(original, "ids")
    assert ids_of(tied, MAX_TOKENS) == rows(original, "cut_ids")
    assert max(map(len, ids_of(tied))) > MAX_TOKENS


@pytest.mark.parity
def test_recorded_scores_are_what_transformers_computes_now(
    folders: dict[str, Path], original: dict[str, np.ndarray]
) -> None:
    for kind in KINDS:
        found = qwen3_reranker.log_odds(folders[kind], qwen3_reranker.token_ids(folders[kind]))
        np.testing.assert_allclose(found, original[kind], atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["tied st", "one_output st"])
def test_sentence_transformers_scores_the_same(
    name: str, folders: dict[str, Path], original: dict[str, np.ndarray]
) -> None:
    """So the chat template is read as Jinja renders it."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folders[name]), model_kwargs={"dtype": "float32"}, device="cpu")
    np.testing.assert_allclose(model.predict(PAIRS), sigmoid(original[name.removesuffix(" st")]), atol=1e-4)


# Against llama.cpp


@pytest.mark.parametrize("name", ["tied", "untied", "one_output"])
def test_stock_llama_cpp_gives_the_same_probabilities(
    name: str, converted: dict[str, Path], original: dict[str, np.ndarray]
) -> None:
    """By the file's own metadata, as its server does: template filled, tokenized, pooled by rank."""
    import llama_cpp
    from llama_cpp import llama_cpp as c

    model = llama_cpp.Llama(
        str(converted[name]), embedding=True, n_ctx=1024, n_batch=1024, n_ubatch=1024, verbose=False
    )
    try:
        assert c.llama_pooling_type(model.ctx) == c.LLAMA_POOLING_TYPE_RANK
        assert c.llama_model_n_cls_out(model.model) == 2
        template = c.llama_model_chat_template(model.model, b"rerank").decode()
        chosen = [i for i, ids in enumerate(rows(original, "ids")) if len(ids) <= 400][:6]
        for i in chosen:
            text = template.replace("{query}", PAIRS[i][0]).replace("{document}", PAIRS[i][1])
            ids = model.tokenize(text.encode(), add_bos=True, special=True)
            assert ids == rows(original, "ids")[i]
            yes, no = stock_outputs(c, model.ctx, ids)
            assert yes == pytest.approx(sigmoid(original[name])[i], abs=0.002)
            assert yes + no == pytest.approx(1, abs=1e-5)
    finally:
        model.close()


def stock_outputs(c: Any, context: Any, ids: list[int]) -> tuple[float, float]:
    """The two floats of llama.cpp's rank pooling for one sequence."""
    c.llama_memory_clear(c.llama_get_memory(context), True)
    batch = c.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
        batch.seq_id[i][0] = 0
    assert c.llama_decode(context, batch) == 0
    c.llama_batch_free(batch)
    found = ctypes.cast(c.llama_get_embeddings_seq(context, 0), ctypes.POINTER(ctypes.c_float))
    return found[0], found[1]


def test_the_pooled_way_agrees_with_the_hidden_one(tied: Reranker) -> None:
    engine = LlamaEngine(tied.info, n_threads=1, hidden=False)
    try:
        pooled = Reranker.from_parts(tied.info, engine, tied.tokenizer)
        np.testing.assert_allclose(pooled.predict(PAIRS[:9]), tied.predict(PAIRS[:9]), atol=0.002)
        assert not engine.hidden
    finally:
        engine.close()


@pytest.mark.parametrize("ftype", ["f32", "bf16", "q8_0", "q4_k_m"])
def test_every_type_keeps_a_head_that_is_read_here(ftype: str, tmp_path: Path) -> None:
    with Reranker(reconverted(small(tmp_path), ftype=ftype).path, n_threads=1) as reranker:
        assert reranker.backend.engine.hidden  # type: ignore[attr-defined]
        assert reranker.info.rerank is not None
        assert reranker.info.rerank.head_type in ("F32", "F16", "BF16")
        scores = np.asarray(reranker.predict(PAIRS))
    assert scores.shape == (len(PAIRS),)
    assert ((scores > 0) & (scores < 1)).all()


# What is written


def small(folder: Path, kind: Kind = "tied", **options: Any) -> Path:
    """A checkpoint with a tokenizer of some 280 tokens, yes and no among them: the last two of its merges."""
    qwen3_reranker.build(folder, kind, real_tokenizer=False, n_rows=300, **options)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    model = tokenizer["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "no", "ye", "yes"]
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    model["merges"] += [["n", "o"], ["y", "e"], ["ye", "s"]]
    for i, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = len(tokens) + i
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer), "utf-8")
    return folder


def small_ids(folder: Path) -> tuple[int, int]:
    vocab = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return vocab["yes"], vocab["no"]


def reconverted(folder: Path, **options: Any) -> ConversionReport:
    return convert(folder, folder / "x.gguf", **{"ftype": "f32", "reranker": True, **options})


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_rows_of_yes_and_no_become_the_head(kind: Kind, sharded: bool, tmp_path: Path) -> None:
    report = reconverted(small(tmp_path, kind, sharded=sharded))
    found = tensors(report.path)
    whole = found["token_embd.weight"].data
    if kind == "untied":
        assert "output.weight" not in found
        assert [(s.name, s.reason) for s in report.skipped] == [
            ("lm_head.weight", "two of its rows are cls.output.weight")
        ]
        whole = tensors(reconverted(small(tmp_path / "tied")).path)["token_embd.weight"].data
        assert not np.array_equal(found["cls.output.weight"].data, whole[list(small_ids(tmp_path))])
        assert found["cls.output.weight"].data.shape == (2, 64)
    else:
        assert np.array_equal(found["cls.output.weight"].data, whole[list(small_ids(tmp_path))])


def test_the_metadata_is_what_llama_cpp_and_the_runtime_read(converted: dict[str, Path]) -> None:
    found = header(converted["tied"])
    assert found["qwen3.pooling_type"] == 4
    assert found["qwen3.classifier.output_labels"] == ["yes", "no"]
    assert found["tokenizer.chat_template.rerank"] == CARD.replace("{instruction}", INSTRUCTION)
    assert found[keys.RERANK_TEMPLATE] == CARD
    assert found[keys.RERANK_INSTRUCTION] == INSTRUCTION
    assert found[keys.RERANK_ACTIVATION] == "sigmoid"
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert keys.EDS_TOKEN_ID not in found
    assert header(converted["tied st"])[keys.RERANK_TEMPLATE] == CARD


def test_one_output_gets_a_row_of_zeros_beside_it(tmp_path: Path) -> None:
    head = tensors(reconverted(small(tmp_path, "one_output")).path)["cls.output.weight"].data
    assert head.shape == (2, 64)
    assert head[0].any()
    assert not head[1].any()


def test_a_lone_yes_token_is_scored_by_its_sigmoid(tmp_path: Path) -> None:
    folder = small(tmp_path, sentence_transformers=True)
    yes, no = small_ids(folder)
    edited(folder / "1_LogitScore" / "config.json", true_token_id=no, false_token_id=None)
    found = tensors(reconverted(folder, reranker=False).path)
    assert np.array_equal(found["cls.output.weight"].data[0], found["token_embd.weight"].data[no])
    assert not found["cls.output.weight"].data[1].any()
    assert yes != no


def test_prompts_of_sentence_transformers_are_instructions(tmp_path: Path) -> None:
    folder = small(tmp_path, sentence_transformers=True)
    yes, no = small_ids(folder)
    edited(folder / "1_LogitScore" / "config.json", true_token_id=yes, false_token_id=no)
    edited(folder / "config_sentence_transformers.json", prompts={"code": "Find the code"}, default_prompt_name="code")
    found = metadata(reconverted(folder, reranker=False).path)
    assert found[keys.RERANK_INSTRUCTION] == "Find the code"
    assert "Find the code" in found["tokenizer.chat_template.rerank"]


def test_what_sentence_transformers_leaves_as_logits_is_noted(tmp_path: Path) -> None:
    folder = small(tmp_path, sentence_transformers=True)
    yes, no = small_ids(folder)
    edited(folder / "1_LogitScore" / "config.json", true_token_id=yes, false_token_id=no)
    edited(folder / "config_sentence_transformers.json", activation_fn="torch.nn.modules.linear.Identity")
    report = reconverted(folder, reranker=False)
    assert any("probabilities of yes" in note for note in report.notes)
    assert metadata(report.path)[keys.RERANK_ACTIVATION] == "sigmoid"


def test_a_causal_model_is_an_embedding_model_unless_something_says_otherwise(tmp_path: Path) -> None:
    """Whatever its folder is called."""
    report = reconverted(small(tmp_path / "Qwen3-Reranker-0.6B"), reranker=False)
    assert metadata(report.path)["qwen3.pooling_type"] == 3
    assert "cls.output.weight" not in tensors(report.path)


# What is refused


@pytest.mark.parametrize(
    ("build", "edit", "expected"),
    [
        ({}, {"tokenizer.json": {"model__vocab": "without yes"}}, "yes is not a single token"),
        ({"kind": "untied"}, {"config.json": {"tie_word_embeddings": True}}, None),
        ({}, {"config.json": {"tie_word_embeddings": MISSING}}, "'lm_head.weight' is missing"),
        ({}, {"config.json": {"vocab_size": 299}}, "has shape"),
    ],
)
def test_a_checkpoint_without_the_two_rows_is_refused(
    build: dict[str, Any], edit: dict[str, dict[str, Any]], expected: str | None, tmp_path: Path
) -> None:
    folder = small(tmp_path, **build)
    for name, fields in edit.items():
        if fields == {"model__vocab": "without yes"}:
            text = (folder / name).read_text("utf-8")
            (folder / name).write_text(text.replace('"yes"', '"yez"').replace('["ye", "s"]', '["ye", "z"]'), "utf-8")
        else:
            edited(folder / name, **fields)
    if expected is None:  # tied: the output matrix is there and is not used, as in transformers
        found = tensors(reconverted(folder).path)
        assert np.array_equal(found["cls.output.weight"].data, found["token_embd.weight"].data[list(small_ids(folder))])
        return
    with pytest.raises(errors.ConversionError, match=expected):
        reconverted(folder)
    assert not (folder / "x.gguf").exists()


@pytest.mark.parametrize("token", [300, 10**9, -1, "yes", None])
def test_a_token_without_a_row_is_refused(token: Any, tmp_path: Path) -> None:
    folder = small(tmp_path, sentence_transformers=True)
    edited(folder / "1_LogitScore" / "config.json", true_token_id=token, false_token_id=1)
    with pytest.raises(errors.CheckpointError, match=r"true_token_id|rows and none for"):
        reconverted(folder, reranker=False)


def test_a_token_of_the_template_without_a_row_is_refused(tmp_path: Path) -> None:
    """The original would look it up beyond the end of its matrix."""
    folder = small(tmp_path)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": "<think>", "id": 300})
    path.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(errors.CheckpointError, match="<think>"):
        reconverted(folder)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    from tests.checkpoints import write_safetensors

    folder = small(tmp_path, "one_output")
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"score.weight": np.ones((3, 64))})
    with pytest.raises(errors.UnsupportedCheckpointError, match="has 3 outputs"):
        reconverted(folder)


def test_an_output_matrix_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """It is in no line of the sheet, so its shape and dtype are checked where its rows are read."""
    folder = small(tmp_path, "untied")
    path = folder / "model.safetensors"
    for old, new, expected in ((b'"BF16"', b'"I16" ', "has dtype I16"), (b"[300,64]", b"[64,300]", "64 wide")):
        raw = path.read_bytes()
        at = raw.index(b'"lm_head.weight"')
        path.write_bytes(raw[:at] + raw[at:].replace(old, new, 1))
        with pytest.raises(errors.CheckpointError, match=expected):
            reconverted(folder)
        path.write_bytes(raw)


def test_reranker_is_refused_for_other_models(tmp_path: Path) -> None:
    from tests.checkpoints import build_tiny_bert, build_tiny_qwen3

    with pytest.raises(errors.InvalidOptionError, match="--reranker is about"):
        reconverted(build_tiny_bert(tmp_path / "bert"))
    with pytest.raises(errors.InvalidOptionError, match=r"modules\.json makes it an embedding model"):
        reconverted(build_tiny_qwen3(tmp_path / "qwen3", real_tokenizer=False))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": None}, "no chat template with places for a query and a document"),
        ({"chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "places for a query"),
        ({"chat_template.jinja": "{%- set a = 1 %}" + CHAT_TEMPLATE}, "has statements"),
        ({"chat_template.jinja": CHAT_TEMPLATE.replace('"document")', '"passage")')}, "is not an expression"),
        ({"chat_template.jinja": CHAT_TEMPLATE.replace("{{ messages | sel", "{{ bos }}{{ messages | sel", 1)}, "bos"),
        ({"sentence_bert_config.json": {"modality_config": {"text": {}}}}, "modality_config has no message"),
        (
            {"sentence_bert_config.json": {"processing_kwargs": {"chat_template": {"chat_template": "other"}}}},
            r"sets \['chat_template'\]",
        ),
    ],
)
def test_a_pair_that_is_put_otherwise_is_refused(files: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = small(tmp_path, sentence_transformers=True)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, str):
            (folder / name).write_text(content, "utf-8")
        else:
            edited(folder / name, **content)
    with pytest.raises(errors.UnsupportedCheckpointError, match=expected):
        reconverted(folder, reranker=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHAT_TEMPLATE, (CARD, INSTRUCTION)),
        (
            "q: {{ (messages | selectattr('role', 'eq', 'query') | first).content }} "
            "d: {{(messages|selectattr('role','eq','document')|first).content}} ?\n\n",
            ("q: {query} d: {document} ?\n", None),
        ),
    ],
)
def test_a_template_of_plain_places_is_read(source: str, expected: tuple[str, str | None]) -> None:
    assert plain_template(source, "x") == expected


PIECES = [
    "{{", "}}", "{%", "{#", "-}}", "messages", " | ", "selectattr('role', 'eq', 'query')", "first", ".content",
    "map(attribute='content')", "default('a\\')", 'default("\\ud800")', "default('\\x')", "default('\0')", "system",
    "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}",
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}",
    "{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('", "') }}",
    "{query}", "{document}", "\n", "'", '"', "\\", "(", ")",
]  # fmt: skip


@settings(max_examples=300)
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12))
def test_any_template_is_read_or_refused(parts: list[str]) -> None:
    try:
        template, instruction = plain_template("".join(parts), "x")
    except errors.UnsupportedCheckpointError:
        return
    assert rerank_problem(template) == ""
    assert "{{" not in template
    assert ("{instruction}" in template) == (instruction is not None)


@pytest.mark.parametrize("default", ["a\\", "\\ud800", "\\x0", "\\0", "\\N{no such name}"])
def test_a_default_that_is_no_sound_text_is_refused(default: str) -> None:
    with pytest.raises(errors.UnsupportedCheckpointError):
        plain_template(CHAT_TEMPLATE.replace(INSTRUCTION, default), "x")


def test_an_embedder_refuses_the_file_and_a_reranker_an_embedding_model(
    converted: dict[str, Path], qwen3_path: Path
) -> None:
    with pytest.raises(errors.UnsupportedModelError, match="is a reranker") as caught:
        Embedder(converted["tied"])
    assert "edge-embed rerank" in caught.value.hint
    with pytest.raises(errors.UnsupportedModelError, match="is an embedding model") as caught:
        Reranker(qwen3_path)
    assert "--reranker" in caught.value.hint


def test_the_ids_of_yes_and_no_are_those_of_the_real_tokenizer(converted: dict[str, Path]) -> None:
    tokens = header(converted["tied"])["tokenizer.ggml.tokens"]
    assert (tokens[YES], tokens[NO]) == ("yes", "no")
