"""What the small JSON files around the weights mean: modules, pooling, limits, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_embed import errors, keys
from edge_embed.convert.modules import instruction_template
from tests.checkpoints import QWEN3_QUERY_PROMPT, build_tiny_bert
from tests.converting import edited, metadata, small_qwen3
from tests.folders import Broken, Unsupported, attempt, refused

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
