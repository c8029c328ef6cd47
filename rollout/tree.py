"""The completions of a problem sampled as a tree, behind the ordinary engine protocol: TreePO's rollouts (Li et al. 2025, arXiv
2508.17445) over any engine, which should have a prefix cache.

Requests of one problem that are submitted together are the leaves wanted, `leaves` to a tree. Completions grow in segments of
so many tokens. A branch has leaves to bring forth, the trunk all of them; where a segment has not ended the completion, the
branch goes on as min(leaves, branches) ones that share its leaves evenly, `first` of them at the root. A branch that ends with
leaves left plants them again at one of the nodes that it came by, drawn at random, the root included. So every tree has exactly
the leaves that were asked for, and what many of them have in common was computed once:

    computed = Σ tokens over nodes        used = Σ tokens over leaves

A branch that goes round in a circle is dead: it ends there, as if at the token limit, and its leaves are planted elsewhere.

Every leaf is an ordinary completion, whose `path` names its nodes, the root first: by the seeds of their segments, each of
which depends on its parent's alone, so that a tree is the same whatever else is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlcore.protocols import Engine
from rlcore.types import Completion, Prefix, Request, seed_from
from rollout.around import Around


@dataclass(frozen=True)
class _Branch:
    """A segment that is under way."""

    leaves: Sequence[Request]  # what it is to bring forth
    path: tuple[int, ...]  # the nodes it came by, the root first
    prefixes: tuple[Prefix, ...]  # what had been sampled at each of them


class TreeEngine(Around):
    """Samples `segment` tokens at a time by `engine`, and divides into `first` branches at the root and `branches` elsewhere.
    Requests at temperature 0 go through as they are."""

    def __init__(self, engine: Engine, *, leaves: int, segment: int, first: int, branches: int) -> None:
        super().__init__(engine)
        self.leaves, self.segment, self.first, self.branches = leaves, segment, first, branches
        self._branches: dict[int, _Branch] = {}  # by seed

    def submit(self, requests: Sequence[Request]) -> None:
        for leaves in self.divided(requests, self.leaves):
            root = leaves[0].seed
            self._grow(_Branch(leaves, (root,), (leaves[0].prefix,)), root, self.first)

    def poll(self) -> list[Completion]:
        finished = []
        for completion in self.engine.poll():
            branch = self._branches.pop(completion.seed, None)
            finished += [completion] if branch is None else self._advance(branch, completion)
        return finished

    def _advance(self, branch: _Branch, segment: Completion) -> list[Completion]:
        """Go on from a segment that is done; the leaf, if it was the last of its branch."""
        asked, path = branch.leaves[0], (*branch.path, segment.seed)
        ended = segment.finish_reason == "stop" or len(segment.token_ids) >= asked.sampling.max_new_tokens
        if not ended and not circles(segment.token_ids, self.segment):
            prefixes = (*branch.prefixes, segment.resumed().prefix)
            self._grow(_Branch(branch.leaves, path, prefixes), segment.seed, self.branches)
            return []
        if len(branch.leaves) > 1:
            again = seed_from(segment.seed, "again")
            depth = 1 + again % len(branch.path)
            self._grow(_Branch(branch.leaves[1:], branch.path[:depth], branch.prefixes[:depth]), again, self.branches)
        return [replace(segment, sample=asked.sample, seed=asked.seed, sampling=asked.sampling, path=path)]

    def _grow(self, branch: _Branch, seed: int, most: int) -> None:
        """Divide a branch, at the last of its nodes, into `most` or as many as it has leaves."""
        count, requests = min(len(branch.leaves), most), []
        for number in range(count):
            leaves = branch.leaves[number::count]
            first, prefix, child = leaves[0], branch.prefixes[-1], seed_from(seed, number)
            until = min(len(prefix.token_ids) + self.segment, first.sampling.max_new_tokens)
            requests.append(replace(first, seed=child, sampling=replace(first.sampling, max_new_tokens=until), prefix=prefix))
            self._branches[child] = replace(branch, leaves=leaves)
        self.engine.submit(requests)


def circles(token_ids: Sequence[int], window: int) -> bool:
    """Whether the last `window` tokens repeat what stands some way before them, at most half a window: a loop that goes on."""
    return any(
        len(token_ids) >= window + period and tuple(token_ids[-window:]) == tuple(token_ids[-window - period : -period])
        for period in range(1, window // 2 + 1)
    )


def computed_tokens(leaves: Sequence[Completion], segment: int) -> int:
    """Tokens that were sampled for the leaves: those of a node that several have came once. Every node has `segment` of them,
    but the last of a leaf."""
    inner = {node for leaf in leaves for node in leaf.path[1:-1]}
    return segment * len(inner) + sum(len(leaf.token_ids) - segment * (len(leaf.path) - 2) for leaf in leaves)
