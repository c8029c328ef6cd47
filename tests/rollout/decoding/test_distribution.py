"""Sampled completions under every kind of draft are distributed as the target says: all completions of three tokens over a
vocabulary of five are enumerated, and thousands of sampled ones are within the Monte-Carlo bound of that, in total variation.

With K outcomes and N samples, E[TV] ≤ ½ Σ √(p(1 − p)/N), and TV exceeds its mean by ε with probability ≤ exp(−2Nε²)
(McDiarmid); ε is that of one in a million. Drafts are wrong on purpose: of other models, at other temperatures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import product

import pytest
import torch
from transformers import PreTrainedModel

from rlcore.types import Request, Sampling
from rollout.decoding.decode import decode
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree
from rollout.drafters.draft_model import DraftModel, Shoot
from rollout.drafters.gsd import Gsd
from rollout.sampling import SamplingRows, processed
from tests.rollout.decoding.conftest import drafting

VOCABULARY, LENGTH, STOP, PROMPT, SAMPLES = 5, 3, 4, (1, 2), 3000
PLAIN = Sampling(max_new_tokens=LENGTH)
CUT = Sampling(temperature=1.3, top_k=4, top_p=0.9, min_p=0.05, max_new_tokens=LENGTH)


@pytest.fixture(scope="module")
def small(make_model: Callable) -> PreTrainedModel:
    return make_model(11, VOCABULARY, sharpness=3.0)


@torch.inference_mode()
def enumerated(model: PreTrainedModel, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every completion, from plain forward passes."""
    found: dict[tuple[int, ...], float] = {}
    under_way = {(): 1.0}
    for length in range(1, LENGTH + 1):
        ids = torch.tensor([[*PROMPT, *said] for said in under_way])
        logits = processed(model(ids).logits[:, -1], SamplingRows.of([sampling] * len(ids), VOCABULARY, ids.device))
        grown = {
            (*said, token): before * p
            for (said, before), row in zip(under_way.items(), logits.softmax(-1).tolist(), strict=True)
            for token, p in enumerate(row)
        }
        found |= {said: p for said, p in grown.items() if said[-1] == STOP or length == LENGTH}
        under_way = {said: p for said, p in grown.items() if said[-1] != STOP and length < LENGTH}
    return found


def sampled(model: PreTrainedModel, sampling: Sampling, drafter: Drafter, first_seed: int = 0) -> Counter[tuple[int, ...]]:
    requests = [Request("p", i, first_seed + i, PROMPT, sampling) for i in range(SAMPLES)]
    done, counts = decode(deepcopy(model), requests, drafter, [STOP])
    assert counts.accepted > SAMPLES / 10  # else it would be plain sampling that is tested
    return Counter(each.token_ids for each in done)


def assert_distributed(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    distance = sum(abs(found[each] / SAMPLES - p) for each, p in expected.items()) / 2
    bound = sum(math.sqrt(p * (1 - p) / SAMPLES) for p in expected.values()) / 2 + math.sqrt(math.log(1e6) / (2 * SAMPLES))
    assert set(found) <= {each for each, p in expected.items() if p > 0}
    assert distance < bound, (distance, bound)


class Fixed(Drafter):
    """The same tree for every row, as far as there is room: all that two tokens can say, but for some."""

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        said = [(a,) for a in range(4)] + [(a, b) for a, b in product(range(4), range(5)) if (a + b) % 2]
        return [self._tree(row, [each for each in said if len(each) <= row.room]) for row in rows]

    def _tree(self, row: Row, said: list[tuple[int, ...]]) -> Tree:
        node = {each: i for i, each in enumerate([(), *said])}
        return Tree([row.ids[-1], *(each[-1] for each in said)], [-1, *(node[each[:-1]] for each in said)])


DRAFTERS: dict[str, Callable[[PreTrainedModel], Drafter]] = {
    "chain": lambda draft: drafting(DraftModel, draft, depth=2),
    "tree": lambda draft: drafting(DraftModel, draft, depth=2, children=3, width=2),
    "graph": lambda draft: drafting(Gsd, draft, depth=2, children=3, same=0, sibling=0.1, probable=0.01),
    "fixed": lambda draft: Fixed(),
}


@pytest.mark.parametrize("sampling", [PLAIN, CUT], ids=["plain", "cut"])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_completions_are_distributed_as_the_target_says(
    small: PreTrainedModel, blur: Callable, kind: str, sampling: Sampling
) -> None:
    drafter = DRAFTERS[kind](blur(small, 0.15))
    assert_distributed(sampled(small, sampling, drafter), enumerated(small, sampling))


def test_a_drafter_that_drops_what_it_drew_would_be_found_out(small: PreTrainedModel, blur: Callable) -> None:
    """The bound can tell: dropping drafts that come out unlikely, which `Tree` forbids, is outside of it."""

    class Dropping(DraftModel):
        def grown(self, shoot: Shoot, room: int) -> Tree:
            tree = super().grown(shoot, room)
            if len(tree.tokens) < 2 or float(tree.q[0][tree.tokens[1]]) > 0.3:
                return tree
            return Tree.chain(tree.tokens[:1])

    with pytest.raises(AssertionError):
        assert_distributed(sampled(small, PLAIN, drafting(Dropping, blur(small, 0.15), depth=2)), enumerated(small, PLAIN))
