"""Grows a tree of solutions from each problem and writes them down: `job: annotate`.

Trees go to `trees.jsonl` in the run folder (`rlcore.data.trees`), `at_once` at a time, in the order of the problems. A
checkpoint remembers how far the file had come, so a resumed run writes on there: what a killed process wrote beyond it, half a
line perhaps, is cut off and grown again, to the bit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore import plugins
from rlcore.data.mixture import load as load_problems
from rlcore.data.trees import Tree, to_json
from rlcore.errors import UserError
from rlcore.prompts import Prompter, refuse_long
from rlcore.protocols import Engine
from rlcore.recipe.schema import Annotate
from rlcore.run.checkpoint import flush
from rlcore.run.console import say
from rlcore.run.folder import Run
from rlcore.types import Problem, seed_from
from rollout.growing import Grower, Search

FILE = "trees.jsonl"


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for, as far as it can be made without a model."""

    problems: list[Problem]
    search: Search
    engine: Callable[..., Engine]
    max_new_tokens: int

    def describe(self) -> Iterator[str]:
        """The cost, at most: solutions that end early make it less."""
        count, one = len(self.problems), self.search.cost(self.max_new_tokens)
        yield f"{count} problems, a tree each"
        for name, value in one._asdict().items():
            yield f"{name}: at most {value:,} a tree, {count * value:,} in all"


def plan(recipe: Annotate) -> Plan:
    """Raises UserError for anything in the recipe that cannot work."""
    search = plugins.bind("rollout.searches", recipe.search.name, recipe.search.options)()
    engine = plugins.bind("rollout.engines", recipe.rollout.engine.name, recipe.rollout.engine.options)
    return Plan(load_problems(recipe.data), search, engine, recipe.rollout.max_new_tokens)


def longest_prompt(asked: Plan, prompter: Prompter, context: int) -> int:
    """In tokens. Raises UserError where a prompt does not fit into the context with its solutions."""
    lengths = {problem.id: len(prompter.render(problem)) for problem in asked.problems}
    for id, tokens in lengths.items():
        refuse_long(id, tokens, asked.max_new_tokens, context, "rollout.max_new_tokens")
    return max(lengths.values())


def annotate(recipe: Annotate, run: Run, asked: Plan, grower: Grower) -> dict[str, float]:
    """Grow the trees that are not written yet. What they hold and took, over all resumes."""
    written = _Written(run.folder / FILE, asked.problems)
    run.cursors = {"trees": written}
    step = run.restore()
    if not step:
        written.path.write_bytes(b"")
    while step < len(asked.problems):
        some = asked.problems[step : step + recipe.at_once]
        with run.timed("grow"):
            trees, counts = _grown(asked.search, grower, some)
        refuse_broken(counts, grower.failures, recipe.max_invalid_fraction)
        written.append(trees, counts)
        step += len(some)
        run.log(step, {"nodes": counts["nodes"], "tokens": counts["tokens"], **rates(counts)})
        run.checkpoint(step)
        if step == len(some) < len(asked.problems):
            left = len(asked.problems) - step
            minutes = counts["seconds"] / step * left / 60
            say(f"{step} trees in {counts['seconds']:.1f} s: about {minutes:.1f} minutes for the other {left}")
    return {"trees": step, **written.counts, **rates(written.counts)}


def _grown(search: Search, grower: Grower, problems: Sequence[Problem]) -> tuple[list[Tree], dict[str, float]]:
    """The trees, and what was counted while they grew: what the grower counts, nodes without the roots, seconds."""
    before, began = grower.counts.copy(), time.perf_counter()
    trees = search.grow(grower, problems)
    counts = {name: count - before[name] for name, count in grower.counts.items()}
    nodes, seconds = sum(len(tree.nodes) - 1 for tree in trees), time.perf_counter() - began
    return trees, {"nodes": nodes, **counts, "seconds": seconds}


def refuse_broken(counts: Mapping[str, float], failures: Counter[str], max_invalid_fraction: float) -> None:
    """Raise UserError with the reasons where too many solutions could not be graded."""
    invalid = counts["invalid"]
    judged = counts["correct"] + counts["wrong"] + invalid
    if invalid > max_invalid_fraction * judged:
        told = "; ".join(f"{count} x {reason}" for reason, count in failures.most_common(3))
        raise UserError(
            f"{invalid} of {judged} solutions could not be graded, more than max_invalid_fraction {max_invalid_fraction}: "
            f"{told}"
        )


def rates(counts: Mapping[str, float]) -> dict[str, float]:
    """`accuracy` is the share of right solutions, of those that were sampled and could be graded."""
    judged = counts["correct"] + counts["wrong"]
    return {
        "nodes_per_second": counts["nodes"] / counts["seconds"],
        **({"accuracy": counts["correct"] / judged} if judged else {}),
    }


class _Written:
    """The file of trees, as far as it counts, and what they hold and took; a run's cursor."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.counts: dict[str, float] = {}
        self._problems = seed_from(*((p.id, p.prompt, p.answer) for p in problems))

    def append(self, trees: Sequence[Tree], counts: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{to_json(tree)}\n" for tree in trees)
        flush(self.path)
        self.counts = {name: self.counts.get(name, 0) + count for name, count in counts.items()}

    def state(self) -> Any:
        return {"bytes": self.path.stat().st_size, "counts": self.counts, "problems": self._problems}

    def restore(self, state: Any) -> None:
        if state["problems"] != self._problems:
            raise UserError(f"the problems are others than those that {self.path} was begun with: it cannot go on")
        if not self.path.is_file() or self.path.stat().st_size < state["bytes"]:
            raise UserError(f"{self.path} has lost trees that were written: it cannot go on; start anew with name=NAME")
        with self.path.open("ab") as file:
            file.truncate(state["bytes"])
        self.counts = state["counts"]
