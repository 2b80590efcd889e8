"""Bytes against loss: which type each unit gets, when every unit's bytes and losses are known. Pure arithmetic.

A unit is a matrix, or matrices that get one type together. Losses of different units add up nearly, so the least loss
for a number of bytes is a knapsack; its Lagrangian is solved by buying, over and over, what avoids most loss for a
byte, along the convex hull of each unit's choices.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

Losses = npt.NDArray[np.float64]
"""1 - cosine to the unquantized vector, of each text."""

Assignment = tuple[Kind, ...]
"""A type for each unit."""

# What is made small is a power mean over texts: 1 is the mean, infinity the worst text. On all-MiniLM-L6-v2 it makes
# little difference (1 to 6 tried, benchmarks/LOG.md).
POWER = 3.0
_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Unit:
    """What one decision is about.

    Attributes:
        sizes: type -> bytes in the file.
        losses: type -> loss of each text, for the same types.
    """

    sizes: Mapping[Kind, int]
    losses: Mapping[Kind, Losses]


class Frontier:
    """Assignments from the smallest to the closest, each one step from the next."""

    def __init__(self, units: Sequence[Unit], weights: Losses) -> None:
        """``weights`` says how much each text counts."""
        self.units = tuple(units)
        hulls = [_hull(unit, weights) for unit in self.units]
        self._first = tuple(hull[0][0] for hull in hulls)
        steps = [
            (-gain, number, position, kind)
            for number, hull in enumerate(hulls)
            for position, (kind, gain) in enumerate(hull[1:])
        ]
        self._steps = [(number, kind) for _, number, _, kind in sorted(steps)]
        growth = (self._growth(index) for index in range(len(self._steps)))
        self._sizes = list(accumulate(growth, initial=self.size(self._first)))

    def __len__(self) -> int:
        return len(self._steps) + 1

    def at(self, index: int) -> Assignment:
        """The assignment after so many steps."""
        assignment = list(self._first)
        for number, kind in self._steps[:index]:
            assignment[number] = kind
        return tuple(assignment)

    def spread(self, count: int) -> list[int]:
        """About so many indices whose sizes are spread evenly, in proportion, from the smallest to the closest."""
        wanted = np.geomspace(self._sizes[0], self._sizes[-1], count)
        inner = {min(bisect.bisect_left(self._sizes, size), len(self) - 1) for size in wanted.tolist()}
        return sorted({0, *inner, len(self) - 1})

    def within(self, n_bytes: int) -> Assignment | None:
        """The closest within that size; what is left over buys later steps that still fit. None where none fits."""
        index = bisect.bisect_right(self._sizes, n_bytes) - 1
        if index < 0:
            return None
        assignment = list(self.at(index))
        left = n_bytes - self._sizes[index]
        for number, kind in self._steps[index:]:
            cost = self.units[number].sizes[kind] - self.units[number].sizes[assignment[number]]
            if cost <= left:
                assignment[number] = kind
                left -= cost
        return tuple(assignment)

    def size(self, assignment: Assignment) -> int:
        """Bytes of all units."""
        return sum(unit.sizes[kind] for unit, kind in zip(self.units, assignment, strict=True))

    def losses(self, assignment: Assignment) -> Losses:
        """What the texts lose, if losses add up."""
        total = np.zeros_like(next(iter(self.units[0].losses.values())))
        for unit, kind in zip(self.units, assignment, strict=True):
            total = total + unit.losses[kind]
        return total

    def first_within(self, loss: float) -> Assignment:
        """The smallest whose texts all lose at most that, if losses add up; the closest where none does."""
        low, high = 0, len(self) - 1
        while low < high:
            middle = (low + high) // 2
            if self.losses(self.at(middle)).max() <= loss:
                high = middle
            else:
                low = middle + 1
        return self.at(low)

    def _growth(self, index: int) -> int:
        number, kind = self._steps[index]
        before = [k for n, k in self._steps[:index] if n == number]
        sizes = self.units[number].sizes
        return sizes[kind] - sizes[before[-1] if before else self._first[number]]


def weighted_frontier(units: Sequence[Unit], pick: Callable[[Frontier], Assignment | None]) -> Frontier:
    """The frontier under the weights of texts that make the power mean of the picked assignment's losses smallest.

    A text that loses much weighs more in the next round, as the derivative of the power mean says.

    Args:
        units: what is decided.
        pick: the assignment that counts, e.g. the one within a size.
    """
    n_texts = len(next(iter(units[0].losses.values())))
    weights = np.full(n_texts, 1.0 / n_texts)
    best, least = Frontier(units, weights), np.inf
    for _ in range(_ROUNDS):
        frontier = Frontier(units, weights)
        picked = pick(frontier)
        if picked is None:
            return frontier
        losses = frontier.losses(picked)
        mean = float((losses**POWER).mean())
        if mean < least:
            best, least = frontier, mean
        new = losses ** (POWER - 1)
        if not new.sum():
            break
        weights = (weights + new / new.sum()) / 2  # half way: it would swing between two texts otherwise
    return best


def _hull(unit: Unit, weights: Losses) -> list[tuple[Kind, float]]:
    """The unit's choices worth making, smallest first, each with the loss avoided for a byte since the one before."""
    points = sorted((size, float(weights @ unit.losses[kind]), kind) for kind, size in unit.sizes.items())
    hull: list[tuple[int, float, Kind]] = []
    for size, loss, kind in points:
        if hull and (size == hull[-1][0] or loss >= hull[-1][1]):
            continue  # more bytes for nothing
        while len(hull) > 1 and _gain(hull[-1][:2], (size, loss)) >= _gain(hull[-2][:2], hull[-1][:2]):
            hull.pop()
        hull.append((size, loss, kind))
    gains = [0.0, *(_gain(a[:2], b[:2]) for a, b in pairwise(hull))]
    return [(kind, gain) for (_, _, kind), gain in zip(hull, gains, strict=True)]


def _gain(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])
