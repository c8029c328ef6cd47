"""Trees of solutions that grow step by step over any engine. Where they grow is a `Search`'s business (`rollout.searches`);
what is written down in the end is a `rlcore.data.trees.Tree`.

A step ends at the separator, a solution as the model ends it or with the last token that it is allowed. What was said before a
step is part of its prompt, as tokens that are never encoded again. A completion's random numbers depend on the seed, the
problem and its place in the tree alone, so a tree is the same whatever grows beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rlcore.data.trees import Node, Tree
from rlcore.prompts import Prompter
from rlcore.protocols import Engine
from rlcore.run.console import watched
from rlcore.types import Completion, Problem, Request, Sampling, Verdict, seed_from

Grade = Callable[[Sequence[tuple[Problem, str, bool]]], list[Verdict]]  # of (problem, text, whether it was cut off)


@dataclass(slots=True)
class Sprout:
    """A node while its tree grows. It `goes_on` where another step can follow."""

    parent: int | None
    height: int
    seed: int
    step: str = ""
    token_ids: tuple[int, ...] = ()  # of the step, its separator included
    ends: bool = False
    goes_on: bool = True
    children: list[int] = field(default_factory=list)
    visits: int = 0
    correct: int = 0


class Growing:
    """A tree while it grows; node 0 is the root."""

    def __init__(self, problem: Problem, prompt_ids: tuple[int, ...], separator: str, seed: int) -> None:
        self.problem, self.prompt_ids, self.separator = problem, prompt_ids, separator
        self.nodes = [Sprout(None, 0, seed)]

    def said(self, i: int) -> tuple[int, ...]:
        """The tokens from the root to a node, its own included."""
        parts: list[tuple[int, ...]] = []
        at: int | None = i
        while at is not None:
            parts.append(self.nodes[at].token_ids)
            at = self.nodes[at].parent
        return tuple(token for part in reversed(parts) for token in part)

    def add(self, sprout: Sprout) -> int:
        assert sprout.parent is not None
        self.nodes.append(sprout)
        self.nodes[sprout.parent].children.append(len(self.nodes) - 1)
        return len(self.nodes) - 1

    def back_up(self, i: int, visits: int, correct: int) -> None:
        """Count solutions that went through a node, at it and at all above it."""
        at: int | None = i
        while at is not None:
            node = self.nodes[at]
            node.visits, node.correct, at = node.visits + visits, node.correct + correct, node.parent

    def finished(self) -> Tree:
        nodes = (Node((n.step,) if n.step else (), n.parent, n.visits, n.correct, n.ends) for n in self.nodes)
        return Tree(self.problem.id, self.problem.prompt, self.problem.answer, tuple(nodes), self.separator)


class Place(NamedTuple):
    """A node of a tree."""

    tree: Growing
    node: int

    @property
    def sprout(self) -> Sprout:
        return self.tree.nodes[self.node]


class Solution(NamedTuple):
    """One that goes through `place`: its tokens after the prompt, and whether it was cut off. It counts `times` times."""

    place: Place
    token_ids: tuple[int, ...]
    cut: bool
    times: int = 1


class Grower:
    """Samples and grades. `sampling.max_new_tokens` are a whole solution's. `counts` has the completions and tokens that were
    sampled so far, and the solutions by their verdict; `failures` has why any were invalid."""

    def __init__(self, engine: Engine, prompter: Prompter, grade: Grade, sampling: Sampling, separator: str, seed: int) -> None:
        self.engine, self.prompter, self.grade = engine, prompter, grade
        self.sampling, self.separator, self.seed = sampling, separator, seed
        self.counts = Counter(completions=0, tokens=0, correct=0, wrong=0, invalid=0)
        self.failures: Counter[str] = Counter()

    def plant(self, problem: Problem) -> Growing:
        return Growing(problem, self.prompter.render(problem), self.separator, seed_from("annotate", self.seed, problem.id))

    def expand(self, places: Sequence[Place], children: int) -> list[Place]:
        """So many next steps at each place, all in one batch; they are in their trees then."""
        begun = [(place, seed_from(place.sprout.seed, k)) for place in places for k in range(children)]
        stop = replace(self.sampling, stop=(self.separator, *self.sampling.stop))
        done = self._sample([(place, seed, stop) for place, seed in begun], "steps")
        return [self._added(place, seed, each) for (place, seed), each in zip(begun, done, strict=True)]

    def finish(self, places: Sequence[Place], count: int) -> list[Solution]:
        """So many solutions through each place, which goes on."""
        begun = [(place, seed_from(place.sprout.seed, "finish", k)) for place in places for k in range(count)]
        done = self._sample([(place, seed, self.sampling) for place, seed in begun], "solutions")
        return [
            Solution(place, place.tree.said(place.node) + each.token_ids, each.truncated)
            for (place, _), each in zip(begun, done, strict=True)
        ]

    def judge(self, solutions: Sequence[Solution]) -> None:
        """Grade solutions and count them in their trees; not those that the grader could not judge."""
        asked = [(each.place.tree.problem, self._text(each.token_ids), each.cut) for each in solutions]
        for each, verdict in zip(solutions, self.grade(asked), strict=True):
            self.counts[verdict.kind] += 1
            if verdict.kind == "invalid":
                self.failures[verdict.reason] += 1
            else:
                each.place.tree.back_up(each.place.node, each.times, each.times * (verdict.kind == "correct"))

    def _sample(self, asked: Sequence[tuple[Place, int, Sampling]], what: str) -> list[Completion]:
        requests = []
        for k, (place, seed, sampling) in enumerate(asked):
            said = place.tree.said(place.node)
            left = replace(sampling, max_new_tokens=sampling.max_new_tokens - len(said))
            requests.append(Request(place.tree.problem.id, k, seed, place.tree.prompt_ids + said, left))
        with watched(what, len(requests)) as progress:
            done = self.engine.generate(requests, progress)
        self.counts.update(completions=len(done), tokens=sum(len(each.token_ids) for each in done))
        return done

    def _added(self, place: Place, seed: int, step: Completion) -> Place:
        tree, parent = place.tree, place.sprout
        separated = self.separator in self._text(step.token_ids)
        left = self.sampling.max_new_tokens - len(tree.said(place.node)) - len(step.token_ids)
        sprout = Sprout(place.node, parent.height + 1, seed, step.text.strip(), step.token_ids)
        sprout.ends = not separated and not step.truncated
        sprout.goes_on = separated and left > 0
        return Place(tree, tree.add(sprout))

    def _text(self, token_ids: tuple[int, ...]) -> str:
        """Cut before a string that ends the solution."""
        text = str(self.prompter.tokenizer.decode(token_ids, skip_special_tokens=True))
        return text[: min((text.find(s) for s in self.sampling.stop if s in text), default=len(text))]


class Cost(NamedTuple):
    """The most that a tree can take: nodes, completions that are sampled, and their tokens."""

    nodes: int
    completions: int
    tokens: int


class Search(ABC):
    """A way to grow trees. Takes its settings as keyword arguments, as the recipe names them."""

    @abstractmethod
    def cost(self, max_new_tokens: int) -> Cost:
        """Of a tree whose solutions have so many tokens at most."""

    @abstractmethod
    def grow(self, grower: Grower, problems: Sequence[Problem]) -> list[Tree]:
        """A tree of each problem, all of them at a time."""
