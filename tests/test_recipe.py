"""Types chosen by measurement: the arithmetic, matrices replaced in memory, and files that keep what was asked for."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed import Embedder, errors, keys
from edge_embed.cli import main
from edge_embed.cli.recipe import n_bytes
from edge_embed.convert import convert
from edge_embed.convert.calibrate.observed import ObservedModel
from edge_embed.convert.calibrate.texts import TEXTS
from edge_embed.convert.gguf_source import GGUFSource
from edge_embed.convert.quantize import quantize
from edge_embed.convert.recipe import Measuring, Target, convert_to_target, quantize_to_target
from edge_embed.convert.recipe.measure import MeasuredModel, compare
from edge_embed.convert.recipe.scheme import groups_of, scheme_for
from edge_embed.convert.recipe.tradeoff import Frontier, Unit, weighted_frontier
from edge_embed.convert.verify import Verification
from edge_embed.convert.verify import verify as verify_file
from edge_embed.engine.observe import WeightObserver
from edge_embed.gguf_header import TensorInfo
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3, tensors

SOME = TEXTS[:48:4]
KINDS = (Kind.F16, Kind.Q8_0, Kind.Q5_0, Kind.Q4_0)

# ---------------------------------------------------------------- the arithmetic

units = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=4).map(
        lambda points: Unit(
            {kind: size for kind, (size, _) in zip(KINDS, points, strict=False)},
            {kind: np.array([loss, loss / 2]) for kind, (_, loss) in zip(KINDS, points, strict=False)},
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(units, st.integers(0, 200))
def test_what_is_bought_fits_and_nothing_of_its_size_on_the_frontier_is_better(made: list[Unit], budget: int) -> None:
    weights = np.array([0.25, 0.75])
    frontier = Frontier(made, weights)
    every = list(itertools.product(*(unit.sizes for unit in made)))
    smallest = min(frontier.size(assignment) for assignment in every)
    found = frontier.within(budget)
    if budget < smallest:
        assert found is None
        return
    assert found is not None
    assert frontier.size(found) <= budget
    for index in range(len(frontier)):  # each point of the frontier is optimal for its own size
        assignment = frontier.at(index)
        loss = float(weights @ frontier.losses(assignment))
        for other in every:
            if frontier.size(other) <= frontier.size(assignment):
                assert loss <= float(weights @ frontier.losses(other)) + 1e-9
        if frontier.size(assignment) <= budget:
            assert float(weights @ frontier.losses(found)) <= loss + 1e-9


@settings(max_examples=100, deadline=None)
@given(units)
def test_the_frontier_grows_and_loses_less_with_every_step(made: list[Unit]) -> None:
    frontier = Frontier(made, np.array([0.5, 0.5]))
    assignments = [frontier.at(index) for index in range(len(frontier))]
    sizes = [frontier.size(assignment) for assignment in assignments]
    losses = [float(frontier.losses(assignment).sum()) for assignment in assignments]
    assert sizes == sorted(set(sizes))
    assert all(a >= b for a, b in itertools.pairwise(losses))
    spread = frontier.spread(5)
    assert spread == sorted(set(spread))
    assert (spread[0], spread[-1]) == (0, len(frontier) - 1)


def test_a_text_that_would_lose_most_weighs_more() -> None:
    """Two matrices, room to keep one of them: the second helps the mean a little less, and the worst text much more."""
    small = {Kind.F16: 10, Kind.Q4_0: 1}
    made = [
        Unit(small, {Kind.F16: np.zeros(4), Kind.Q4_0: np.array([0.2, 0.2, 0.2, 0.1])}),
        Unit(small, {Kind.F16: np.zeros(4), Kind.Q4_0: np.array([0.0, 0.0, 0.0, 0.6])}),
    ]
    plain = Frontier(made, np.full(4, 0.25)).within(11)
    weighted = weighted_frontier(made, lambda frontier: frontier.within(11)).within(11)
    assert plain == (Kind.F16, Kind.Q4_0)
    assert weighted == (Kind.Q4_0, Kind.F16)


def test_large_models_are_measured_in_groups_and_on_fewer_texts() -> None:
    def model(n_layer: int, width: int) -> list[TensorInfo]:
        shapes = {"attn_q": (width, width), "ffn_up": (width, 4 * width)}
        return [
            TensorInfo(f"blk.{i}.{part}.weight", shape, "F16", 2 * math.prod(shape))
            for i in range(n_layer)
            for part, shape in shapes.items()
        ]

    small, large, huge = (scheme_for(model(*size), TEXTS, 25.0) for size in ((6, 384), (28, 1024), (36, 4096)))
    assert (small.banded, small.scaled, len(small.texts)) == (False, False, len(TEXTS))
    assert large.banded
    assert huge.scaled
    assert 16 <= len(huge.texts) < len(TEXTS)
    assert max(s.products for s in (small, large, huge)) < 1e14
    groups = groups_of(model(28, 1024), banded=True)
    assert len(groups) == 8
    assert {len(group) for group in groups} == {7}


# ---------------------------------------------------------------- matrices replaced in memory


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipe")
    bert = build_tiny_bert(folder / "bert", hidden=96, layers=2)
    qwen3 = small_qwen3(folder / "qwen3", hidden=256, layers=2, heads=2, kv_heads=1, head_dim=128, dtype="bf16")
    return {
        "bert": convert(bert, folder / "bert.gguf", ftype="f32").path,
        "qwen3": convert(qwen3, folder / "qwen3.gguf", ftype="bf16").path,
        "checkpoint": qwen3,
    }


@pytest.mark.parametrize("model", ["bert", "qwen3"])
@pytest.mark.parametrize("ftype", ["f16", "q8_0", "q4_k_m", "iq4_xs"])
def test_a_model_with_replaced_matrices_computes_what_the_file_does(
    model: str, ftype: str, exact: dict[str, Path], tmp_path: Path
) -> None:
    path = quantize(exact[model], tmp_path / "q.gguf", ftype=ftype).path
    kinds = {name: tensor.tensor_type for name, tensor in tensors(path).items()}
    with GGUFSource(exact[model]) as source, MeasuredModel(source, {}, engine_threads=1) as measured:
        measured.measure_on(SOME)
        if ftype == "f16" and model == "qwen3":
            assert Kind.F16 not in measured.candidates(measured.matrices[0])  # bfloat16 has it all already
        for tensor in measured.matrices:
            measured.replace(tensor, Kind(kinds[tensor.name]))
        found = measured.losses()
        for tensor in measured.matrices:
            measured.restore(tensor)
        assert np.abs(measured.losses()).max() < 1e-6
        reference = measured.reference
    with ObservedModel(path, WeightObserver(), threads=1) as model_of_file:  # the same kernels: nothing repacked
        vectors, _ = model_of_file.vectors(SOME)
    losses = 1 - (vectors.astype(np.float64) * reference).sum(axis=1)
    assert losses.max() > 1e-7
    np.testing.assert_allclose(found, losses, rtol=1e-3, atol=1e-6)


def test_a_replacement_must_fit(exact: dict[str, Path]) -> None:
    with GGUFSource(exact["qwen3"]) as source, MeasuredModel(source, {}, engine_threads=1) as measured:
        measured.measure_on(SOME[:2])
        tensor = measured.matrices[0]
        with pytest.raises(ValueError, match="do not fit"):
            measured._observer.replace(tensor.name, 0, (1, 4), [b"\0" * 8])
        with pytest.raises(ValueError, match="do not fit"):
            measured._observer.replace(tensor.name, 0, (1, 4), [b"\0" * (2 * tensor.n_bytes)])


def test_overlap_counts_neighbours_that_stay() -> None:
    angles = np.linspace(0, 1, 40)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    same = compare(vectors, vectors)
    assert (same.overlap, round(same.min_cosine, 6)) == (1.0, 1.0)
    shuffled = compare(vectors, vectors[np.random.default_rng(0).permutation(40)])
    assert shuffled.overlap < 0.6


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("model", ["bert", "qwen3"])
def test_at_the_size_of_a_plain_type_less_is_lost(model: str, exact: dict[str, Path], tmp_path: Path) -> None:
    plain = quantize(exact[model], tmp_path / "plain.gguf", ftype="q4_k_m")
    target = Target(max_bytes=plain.size_bytes)
    choice = quantize_to_target(exact[model], tmp_path / "r.gguf", target, Measuring(SOME, threads=1))
    beside = next(point for point in choice.frontier if point.name == "q4_k_m")
    assert beside.size_bytes == plain.size_bytes
    assert choice.report.size_bytes == (tmp_path / "r.gguf").stat().st_size <= plain.size_bytes
    assert choice.figures.mean_cosine > beside.figures.mean_cosine
    assert choice.figures.min_cosine > beside.figures.min_cosine
    found = metadata(tmp_path / "r.gguf")
    assert found[keys.RECIPE] == f"max-size={plain.size_bytes}"
    figures = f"cosine {choice.figures.mean_cosine:.6f}, lowest {choice.figures.min_cosine:.6f}, top-10 overlap "
    assert found[keys.MEASURED].startswith(f"{figures}{choice.figures.overlap:.4f} on {len(SOME)} texts")  # the file's
    assert hashlib.sha256((tmp_path / "r.gguf").read_bytes()).hexdigest() == choice.report.sha256
    again = quantize_to_target(exact[model], tmp_path / "again.gguf", target, Measuring(SOME, threads=1))
    assert again.report.sha256 == choice.report.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.gguf", "plain.gguf", "r.gguf"]


def test_a_large_model_is_measured_coarsely_and_beside_the_plain_types_of_its_size(
    exact: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were too large for more; each point of the frontier is the whole model encoded anew."""
    monkeypatch.setattr("edge_embed.convert.recipe.scheme._BUDGET", 0.0)
    plain = quantize(exact["qwen3"], tmp_path / "plain.gguf", ftype="q4_k_m")
    phases = Phases()
    how = Measuring(SOME, threads=1, log=phases.log, progress=phases)
    choice = quantize_to_target(exact["qwen3"], tmp_path / "r.gguf", Target(max_bytes=plain.size_bytes), how)
    assert "in one type, and scaling the others" in phases.found[0][0]
    assert choice.report.size_bytes <= plain.size_bytes
    names = [point.name for point in choice.frontier]
    assert names[:2] == ["recipe", "recipe"]
    sizes = {point.name: point.size_bytes for point in choice.frontier if point.name != "recipe"}
    assert len(sizes) == 2
    assert min(sizes.values()) <= plain.size_bytes < max(sizes.values())
    beside = min(choice.frontier[2:], key=lambda point: point.size_bytes)
    assert choice.figures.mean_cosine > beside.figures.mean_cosine


class Phases:
    """What a choice says of its progress: the runs of the model behind each sentence."""

    def __init__(self) -> None:
        self.found: list[tuple[str, list[tuple[int, int]]]] = []

    def log(self, sentence: str) -> None:
        self.found.append((sentence, []))

    def __call__(self, done: int, total: int, what: str) -> None:
        assert what
        self.found[-1][1].append((done, total))

    def check(self, n_runs: int) -> None:
        """Every run is counted, one after the other, and each phase but the search knows how many there will be."""
        assert [sentence.split()[0] for sentence, _ in self.found[:4]] == [
            "measuring",
            "searching",
            "measuring",
            "writing",
        ]
        assert sum(len(runs) for _, runs in self.found) == n_runs
        for _, runs in (self.found[0], self.found[2]):
            assert runs == [(i + 1, len(runs)) for i in range(len(runs))] != []


def test_a_lowest_cosine_holds_in_the_file_and_costs_no_more_than_it_must(
    exact: dict[str, Path], tmp_path: Path
) -> None:
    sizes = []
    for cosine in (0.98, 0.999):
        path = tmp_path / f"{cosine}.gguf"
        phases = Phases()
        how = Measuring(SOME, threads=1, log=phases.log, progress=phases)
        choice = quantize_to_target(exact["qwen3"], path, Target(min_cosine=cosine), how)
        phases.check(choice.n_runs)
        with Embedder(exact["qwen3"], n_threads=1) as a, Embedder(path, n_threads=1) as b:
            for method in ("encode_query", "encode_document"):
                pair = [getattr(e, method)(SOME).astype(np.float64) for e in (a, b)]
                assert (pair[0] * pair[1]).sum(axis=1).min() >= cosine - 1e-6
        enough = [p.size_bytes for p in choice.frontier if p.name != "recipe" and p.figures.min_cosine >= cosine]
        assert choice.report.size_bytes <= min(enough, default=math.inf)
        sizes.append(choice.report.size_bytes)
    assert sizes[0] < sizes[1]


def test_a_checkpoint_is_converted_to_the_target_and_nothing_is_left_behind(
    exact: dict[str, Path], tmp_path: Path
) -> None:
    how = Measuring(SOME, threads=1)
    via = quantize_to_target(exact["qwen3"], tmp_path / "via.gguf", Target(max_bytes=900_000), how)
    types = []

    def exactly(path: Path, ftype: str) -> object:
        types.append(ftype)
        return convert(exact["checkpoint"], path, ftype=ftype, name="qwen3")

    choice = convert_to_target(
        exact["checkpoint"],
        tmp_path / "direct.gguf",
        Target(max_bytes=900_000),
        how,
        convert_exact=exactly,  # type: ignore[arg-type]  # a report
    )
    assert types == ["bf16"]
    assert choice.report.sha256 == via.report.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["direct.gguf", "via.gguf"]


def test_a_chosen_file_that_fails_its_verification_is_not_kept(exact: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"

    def verify(file: Path) -> Verification:
        assert file != path
        found = verify_file(file, exact["checkpoint"], texts=SOME[:3], n_threads=1)
        return replace(found, problems=("the network is another one",))

    with pytest.raises(errors.VerificationError, match="the network is another one"):
        quantize_to_target(
            exact["qwen3"], path, Target(max_bytes=900_000), Measuring(SOME[:4], threads=1, verify=verify)
        )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_met_is_refused_and_leaves_nothing(exact: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(errors.InvalidOptionError, match="no file of this model fits into 1,000 bytes"):
        quantize_to_target(exact["bert"], path, Target(max_bytes=1000), Measuring(SOME[:2], threads=1))
    with pytest.raises(errors.InvalidOptionError, match="closest choice has a lowest cosine of"):
        quantize_to_target(exact["bert"], path, Target(min_cosine=1 - 1e-12), Measuring(SOME[:2], threads=1))
    small = quantize(exact["bert"], tmp_path / "q8.gguf", ftype="q8_0").path
    with pytest.raises(errors.InvalidOptionError, match="quantized already"):
        quantize_to_target(small, path, Target(max_bytes=10**6), Measuring(SOME[:2], threads=1))
    assert not path.exists()
    for bad in ({}, {"max_bytes": 1, "min_cosine": 0.5}, {"min_cosine": 1.0}, {"min_cosine": 0.0}):
        with pytest.raises(errors.InvalidOptionError):
            Target(**bad)  # type: ignore[arg-type]  # both at once


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3GB", 3 * 10**9), ("2.5GiB", 5 * 2**29), ("400 mb", 4 * 10**8), ("17", 17), ("1KiB", 1024)],
)
def test_sizes(text: str, expected: int) -> None:
    assert n_bytes(None, None, text) == expected


@pytest.mark.parametrize("text", ["", "GB", "3 TB", "-1MB", "0", "1.2.3", "3GBit"])
def test_what_is_no_size(text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["quantize", "a.gguf", str(tmp_path / "b.gguf"), f"--max-size={text}"])
    assert result.exit_code == 2
    assert "is not a size" in result.output


def test_the_command_chooses_reports_and_draws(exact: dict[str, Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SOME[:6]), "utf-8")
    arguments = ["quantize", str(exact["bert"]), str(tmp_path / "m.gguf"), "--max-size", "0.4MB", "--threads", "1"]
    result = CliRunner().invoke(main, [*arguments, "--calibration", str(texts), "--plot", str(tmp_path / "p.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.gguf").stat().st_size <= 400_000
    assert "at the worst text" in result.output
    assert "q4_k_m" in result.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "texts.txt" in metadata(tmp_path / "m.gguf")[keys.MEASURED]


def test_a_plot_that_cannot_be_drawn_is_known_before_measuring(exact: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["quantize", str(exact["bert"]), str(tmp_path / "m.gguf"), "--max-size", "1MB", "--plot"]
    for plot, message in (("p.svg", "not a .png"), ("none/p.png", "no such folder")):
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / plot)])
        assert result.exit_code in (2, 4)
        assert message in result.output
    assert not (tmp_path / "m.gguf").exists()


def test_convert_takes_a_target_in_place_of_a_type(exact: dict[str, Path], tmp_path: Path) -> None:
    """One command from the checkpoint; the loss is reported, and the exact file it was measured with is gone."""
    path = tmp_path / "m.gguf"
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SOME[:6]), "utf-8")
    options = ["-o", str(path), "--threads", "1", "--calibration", str(texts)]
    result = CliRunner().invoke(main, ["convert", str(exact["checkpoint"]), "--max-size", "1MB", *options])
    assert result.exit_code == 0, result.output
    assert path.stat().st_size <= 10**6
    assert "at the worst text" in result.output
    assert hashlib.sha256(path.read_bytes()).hexdigest() in result.output
    values = metadata(path)
    assert values["edge_embed.verify.texts"] > 0, "the chosen file itself is held against the checkpoint"
    assert 0.9 < values["edge_embed.verify.min_cosine"] <= values["edge_embed.verify.mean_cosine"] < 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "texts.txt"]
    for wrong in (["--max-size", "1MB", "--type", "q8_0"], ["--type", "q8_0", "--calibration", str(texts)]):
        assert CliRunner().invoke(main, ["convert", str(exact["checkpoint"]), "-o", str(path), *wrong]).exit_code == 2
