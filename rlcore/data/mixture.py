"""The training data as one endless stream, mixed from sources by weight; and plain loading, for evaluation.

Sources come from `rlcore.data.sources` by name. The trainers draw from `Mixture` and save its `state()` in checkpoints; a
restored mixture goes on exactly where it stood. Problems are dropped here and nowhere else, and counted: those that their
source marks as not gradable, with the reason in `meta["unusable"]`, and for training those that repeat an earlier one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlcore.data.overlap import normalise
from rlcore.errors import UserError
from rlcore.plugins import bind
from rlcore.recipe.schema import Source
from rlcore.types import Problem, seed_from


class Mixture:
    """Draw k takes from a source chosen by weight with random numbers keyed by (seed, k), each source in shuffled epochs."""

    def __init__(self, sources: Sequence[Source], seed: int):
        self._sources = sources
        self._seed = seed
        self._draws = 0
        self._dropped: list[Counter[str]] = []
        self._streams: list[_Stream] = []
        for i, (problems, dropped) in enumerate(_load_each(sources)):
            kept = _once(problems)
            self._dropped.append(dropped + Counter({"repeats an earlier problem": len(problems) - len(kept)}))
            self._streams.append(_Stream(kept, seed_from(seed, i)))

    @property
    def problems(self) -> list[Problem]:
        """Every problem that can be drawn."""
        return [problem for stream in self._streams for problem in stream.problems]

    def describe(self) -> list[str]:
        """One line per source: what was read, what was kept, what was dropped and why."""
        return [
            f"{source.name} (weight {source.weight:g}): {len(stream.problems) + dropped.total()} problems read, "
            f"{len(stream.problems)} kept" + "".join(f", {n} dropped: {why}" for why, n in dropped.items())
            for source, stream, dropped in zip(self._sources, self._streams, self._dropped, strict=True)
        ]

    def next(self, n: int) -> list[Problem]:
        """The next n problems; none of them twice unless its source holds fewer than n."""
        taken: list[set[int]] = [set() for _ in self._streams]
        batch = []
        for draw in range(self._draws, self._draws + n):
            rng = random.Random(seed_from("draw", self._seed, draw))
            [i] = rng.choices(range(len(self._streams)), [source.weight for source in self._sources])
            index = self._streams[i].next(avoid=taken[i])
            taken[i].add(index)
            batch.append(self._streams[i].problems[index])
        self._draws += n
        return batch

    def state(self) -> dict[str, Any]:
        cursors = [dataclasses.asdict(stream.cursor) for stream in self._streams]
        return {"data": self._fingerprint, "draws": self._draws, "cursors": cursors}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["data"] != self._fingerprint:
            raise UserError("the training data, its weights or the seed have changed since the checkpoint: it cannot go on")
        self._draws = state["draws"]
        for stream, cursor in zip(self._streams, state["cursors"], strict=True):
            stream.move(_Cursor(**cursor))

    @functools.cached_property
    def _fingerprint(self) -> int:
        """Of everything that decides what comes next; it takes a while to make, and problems never change."""
        weights = [source.weight for source in self._sources]
        return seed_from(self._seed, weights, *((p.id, p.prompt, p.answer) for p in self.problems))


def load(sources: Sequence[Source]) -> list[Problem]:
    """All gradable problems of all sources, one after the other, each id once."""
    loaded = _load_each(sources)
    for source, (_, dropped) in zip(sources, loaded, strict=True):
        for why, n in dropped.items():
            logging.getLogger(__name__).warning("%s: %d dropped: %s", source.name, n, why)
    return [problem for problems, _ in loaded for problem in problems]


@dataclasses.dataclass(frozen=True)
class _Cursor:
    epoch: int
    position: int
    late: list[int]  # problems that come last in this epoch, as they had just been drawn when it began


class _Stream:
    """One source's problems in an order shuffled anew for each epoch."""

    def __init__(self, problems: list[Problem], seed: int):
        self.problems = problems
        self._seed = seed
        self.move(_Cursor(0, 0, []))

    def move(self, cursor: _Cursor) -> None:
        self.cursor = cursor
        self._order = list(range(len(self.problems)))
        random.Random(seed_from("epoch", self._seed, cursor.epoch)).shuffle(self._order)
        late = set(cursor.late)
        self._order.sort(key=late.__contains__)  # stable: the others stay shuffled

    def next(self, avoid: Collection[int]) -> int:
        if self.cursor.position == len(self._order):
            self.move(_Cursor(self.cursor.epoch + 1, 0, sorted(avoid)))
        index = self._order[self.cursor.position]
        self.cursor = dataclasses.replace(self.cursor, position=self.cursor.position + 1)
        return index


def _load_each(sources: Sequence[Source]) -> list[tuple[list[Problem], Counter[str]]]:
    """Each source's gradable problems, and how many of the others there were for which reason.

    Where a source gives an id that an earlier one gave too, its ids get a prefix.
    """
    seen: set[str] = set()
    loaded = []
    for number, source in enumerate(sources, 1):
        problems = _read(source)
        if not seen.isdisjoint(problem.id for problem in problems):
            problems = [dataclasses.replace(problem, id=f"{source.name}#{number}/{problem.id}") for problem in problems]
        seen.update(problem.id for problem in problems)
        dropped = Counter(problem.meta["unusable"] for problem in problems if "unusable" in problem.meta)
        if len(problems) == dropped.total():
            raise UserError(f"source {source.name!r} has no problem that can be graded{''.join(f': {why}' for why in dropped)}")
        loaded.append(([problem for problem in problems if "unusable" not in problem.meta], dropped))
    return loaded


def _read(source: Source) -> list[Problem]:
    problems: list[Problem] = bind("rlcore.data.sources", source.name, source.options)()
    for id_, times in Counter(problem.id for problem in problems).most_common(1):
        if times > 1:
            raise UserError(f"source {source.name!r} gives the id {id_!r} to {times} problems")
    return problems


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Of the problems with one text, the first."""
    kept: dict[str, Problem] = {}
    for problem in problems:
        kept.setdefault(normalise(problem.prompt), problem)
    return list(kept.values())
