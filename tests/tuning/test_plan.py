"""What tuning tries, and on which texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_embed.engine import bindings, builds, devices, tuner, tuning_texts
from edge_embed.engine.devices import Gpu
from edge_embed.engine.search import Coordinate
from edge_embed.engine.trial import Call, Work
from edge_embed.errors import InvalidOptionError
from edge_embed.types import ModelInfo
from tests.engines import install
from tests.tuning.choices import REFERENCE


def names(planned: tuner.Plan) -> list[str]:
    return [coordinate.name for coordinate in planned.coordinates]


def test_decoders_have_more_to_choose_than_encoders(info: ModelInfo, decoder: ModelInfo) -> None:
    assert {"n_ubatch", "share_prefixes"} == set(names(tuner.plan(decoder, "mixed"))) - set(
        names(tuner.plan(info, "mixed"))
    )


def test_batches_are_not_tried_on_single_queries(info: ModelInfo, decoder: ModelInfo) -> None:
    for model in (info, decoder):
        assert {"n_batch", "n_ubatch"}.isdisjoint(names(tuner.plan(model, "queries")))


def test_kernels_that_crash_are_not_tried(info: ModelInfo) -> None:
    planned = tuner.plan(info, "mixed", use_extra_bufts=False)
    assert not planned.reference.use_extra_bufts
    assert "use_extra_bufts" not in names(planned)


def test_a_folder_of_libraries_is_one_more_engine(info: ModelInfo) -> None:
    folder = bindings.load().library.parent
    planned = tuner.plan(info, "mixed", libraries=[folder])
    assert ("", str(folder.resolve())) == planned.coordinates[0].values
    assert "device" in names(planned)


def test_engines_that_were_built_beside_are_considered(
    info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that fit this machine; not the one that is used anyway, which is tried as it is."""
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path))
    one, two = (install(name).folder for name in ("one", "two"))
    install("another-machine", machine="sparc64")
    assert ("", str(one), str(two)) == tuner.plan(info, "mixed").coordinates[0].values
    builds.choose("two")
    assert ("", str(one)) == tuner.plan(info, "mixed").coordinates[0].values


def test_a_folder_without_libraries_is_refused(info: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no libllama"):
        tuner.plan(info, "mixed", libraries=[tmp_path])


def cards(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    found = [Gpu(f"{kind}{n}", "a card", kind, 1, 1, False, n) for n, kind in enumerate(kinds)]
    monkeypatch.setattr(devices, "gpus", lambda _: found)


def tried(planned: tuner.Plan) -> tuple[str, list[str]]:
    """The device of the reference, and those that are compared with it."""
    values = [list(c.values) for c in planned.coordinates if c.name == "device" and c.applies(planned.reference)]
    return planned.reference.device, values[0] if values else []


def test_devices_are_compared_where_there_are_some(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` takes, the CPU, and the cards that it would not take."""
    assert tried(tuner.plan(info, "mixed")) == ("", [])
    cards(monkeypatch, "CUDA")
    assert tried(tuner.plan(info, "mixed")) == ("", ["", "cpu"])
    cards(monkeypatch, "CUDA", "Vulkan")
    assert tried(tuner.plan(info, "mixed")) == ("", ["", "cpu", "vulkan:1"])


def test_devices_that_are_named_are_the_only_ones(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, "CUDA", "Vulkan")
    assert tried(tuner.plan(info, "mixed", device_names=["cpu"])) == ("cpu", [])
    assert tried(tuner.plan(info, "mixed", device_names=["cuda:0", "cpu"])) == ("cuda:0", ["cuda:0", "cpu"])
    assert tried(tuner.plan(info, "mixed", device_names=["auto", "vulkan:1"])) == ("", ["", "vulkan:1"])
    assert tried(tuner.plan(info, "mixed", device_names=["CUDA:0, cpu", "cuda", "AUTO"])) == ("cuda:0", ["cuda:0", ""])
    with pytest.raises(InvalidOptionError, match="there is no metal"):
        tuner.plan(info, "mixed", device_names=["metal"])


def test_other_engines_may_have_other_devices(info: ModelInfo) -> None:
    """The reference is measured with the libraries in use, so its device must be one of theirs."""
    libraries = [bindings.load().library.parent]
    planned = tuner.plan(info, "mixed", device_names=["auto", "Vulkan:1,cpu"], libraries=libraries)
    assert tried(planned) == ("", ["", "vulkan:1"])
    with pytest.raises(InvalidOptionError, match="auto,cpu"):
        tuner.plan(info, "mixed", device_names=["auto", "auto,cpu"], libraries=libraries)
    with pytest.raises(InvalidOptionError, match="there is no vulkan:1"):
        tuner.plan(info, "mixed", device_names=["vulkan:1", "cpu"], libraries=libraries)


def test_no_texts_are_refused(info: ModelInfo) -> None:
    with pytest.raises(InvalidOptionError, match="no texts"):
        tuner.plan(info, "mixed", texts=["", ""])


def test_batches_that_the_texts_do_not_fill_are_left_out() -> None:
    threads = Coordinate("n_threads", (1, 2, 4, 8), ordered=True)
    whole = [Coordinate("n_batch", (128, 512, 1024), ordered=True), threads]
    left = tuner._worth_trying(whole, {"queries": 40, "documents": 600}, lambda _: "cpu")
    assert [(128, 512), threads.values] == [coordinate.values for coordinate in left]


@pytest.mark.parametrize(
    ("values", "device", "tried"),
    [
        (("", "cpu"), "cpu", False),
        (("", "cpu"), "cuda:0", True),
        (("", "cpu", "vulkan:1"), "cpu", True),
        (("cpu", "cuda:0"), "cpu", True),
    ],
)
def test_the_cpu_is_not_compared_with_itself(values: tuple[str, ...], device: str, tried: bool) -> None:
    """Another engine's devices are known once it has run."""
    (left,) = tuner._worth_trying([Coordinate("device", values)], {"documents": 600}, lambda _: device)
    assert left.applies(REFERENCE) == tried


def test_built_in_documents_begin_differently_and_vary_in_length() -> None:
    work = tuning_texts.work("mixed", None, pairs=False)
    (documents,) = work.parts["documents"]
    assert len({text[:4] for text in documents.texts}) == len(documents.texts)
    assert max(map(len, documents.texts)) > 4 * min(map(len, documents.texts))
    assert all(len(call.texts) == 1 and call.role == "query" for call in work.parts["queries"])


def test_own_texts_are_used_once_each_and_the_shortest_stand_for_queries() -> None:
    own = ["a long text about bees", "bees", "bees", "wax", "honey from heather"]
    work = tuning_texts.work("mixed", own, pairs=False)
    assert [("wax",)] == [call.texts for call in work.parts["queries"]]
    assert ("a long text about bees", "bees", "wax", "honey from heather") == work.parts["documents"][0].texts
    assert {"queries"} == set(tuning_texts.work("queries", own, pairs=False).parts)


def test_a_reranker_compares_each_query_with_a_few_documents() -> None:
    calls = tuning_texts.work("queries", None, pairs=True).parts["queries"]
    assert all(call.query and len(call.texts) == 5 for call in calls[:-1])


def test_the_first_texts_of_work_are_cut_out_of_its_calls() -> None:
    work = Work({"a": (Call(("1", "2"), "query"), Call(("3", "4"), "query"), Call(("5",), "query"))})
    assert [("1", "2"), ("3",)] == [call.texts for call in work.first({"a": 3}).parts["a"]]
