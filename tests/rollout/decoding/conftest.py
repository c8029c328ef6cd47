"""Random models of a few thousand weights, plain decoding without a cache, and drafters that only tests have."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlcore.plugins import find
from rlcore.types import Request, Sampling
from rollout.decoding import heads
from rollout.decoding.companion import Companion
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.model import Read
from rollout.decoding.tree import Tree

CONTEXT = 64


def random_model(seed: int, vocabulary: int, sharpness: float = 4.0, context: int = CONTEXT) -> PreTrainedModel:
    """Weights so large that its distributions are neither flat nor all alike."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness if parameter.ndim > 1 else 1)
    return model


def blurred(model: PreTrainedModel, by: float) -> PreTrainedModel:
    """A copy that is wrong."""
    torch.manual_seed(1)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return copy


C = TypeVar("C", bound=Companion[Any])


def drafting(kind: type[C], model: PreTrainedModel, **options: Any) -> C:
    """A drafter of a copy of this model, which is in no folder."""
    drafter = kind(model="nowhere", **options)
    drafter.draft_with(deepcopy(model))
    return drafter


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Drafter]:
    """A drafter of this name with these options; `draft` is its draft model, or has the shape of the model that its heads, `of`
    a kind, are on."""

    def make_drafter(name: str, options: dict[str, Any], draft: PreTrainedModel) -> Drafter:
        kind = find("rollout.drafters", name)
        if issubclass(kind, Companion):
            return drafting(kind, draft, **options)
        if name != "heads":
            return kind(**options)
        own = dict(options)
        kind_of_heads = dict(own.pop("of"))
        name_of_kind, folder = kind_of_heads.pop("name"), tmp_path_factory.mktemp("heads") / "heads"
        heads.save(heads.make(draft.config, name_of_kind, kind_of_heads), name_of_kind, kind_of_heads, folder)
        return kind(folder=str(folder), **own)

    return make_drafter


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    return random_model


@pytest.fixture(scope="session")
def blur() -> Callable[..., PreTrainedModel]:
    return blurred


@pytest.fixture(scope="session")
def oracle() -> PreTrainedModel:
    """The target, which no decoder touches."""
    return random_model(0, 24)


@pytest.fixture
def target(oracle: PreTrainedModel) -> PreTrainedModel:
    return deepcopy(oracle)


@pytest.fixture
def draft(oracle: PreTrainedModel) -> PreTrainedModel:
    return blurred(oracle, 0.01)


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[Request]]:
    """Requests of random prompts of 1 to 12 tokens, some of which come again."""

    def asked(count: int, seed: int = 0, **sampling: object) -> list[Request]:
        draw = random.Random(seed)
        prompts = [tuple(draw.randrange(24) for _ in range(draw.randint(1, 12))) for _ in range(max(1, count * 3 // 4))]
        settings = Sampling(**{"max_new_tokens": 24, **sampling})  # type: ignore[arg-type]
        return [Request(f"p{i}", 0, seed * 1000 + i, prompts[i % len(prompts)], settings) for i in range(count)]

    return asked


@pytest.fixture(scope="session")
def plainly(oracle: PreTrainedModel) -> Callable[..., tuple[int, ...]]:
    """What greedy decoding says: the whole sequence read for each token."""

    @cache
    @torch.inference_mode()
    def unstopped(prompt_ids: tuple[int, ...], count: int) -> tuple[int, ...]:
        said: list[int] = []
        while len(said) < min(count, CONTEXT - len(prompt_ids)):
            said.append(int(oracle(torch.tensor([[*prompt_ids, *said]])).logits[0, -1].argmax()))
        return tuple(said)

    def decoded(request: Request, stop_ids: Collection[int]) -> tuple[int, ...]:
        said = unstopped(request.prompt_ids, request.sampling.max_new_tokens)
        return said[: 1 + next((i for i, token in enumerate(said) if token in stop_ids), len(said))]

    return decoded


class Wild(Drafter):
    """Random trees, in which some paths are right by chance of an oracle: `truth` has what plain decoding says, by seed."""

    def __init__(self, truth: dict[int, Sequence[int]] | None = None, vocabulary: int = 24) -> None:
        self.truth, self.vocabulary = truth or {}, vocabulary
        self.accepted: list[int] = []  # of each row and round

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [self._tree(row) for row in rows]

    def observe(self, rows: Sequence[Row], paths: Sequence[Sequence[int]], read: Read) -> None:
        self.accepted += [len(path) - 1 for path in paths]

    def _tree(self, row: Row) -> Tree:
        draw = random.Random(f"{row.request.seed} {row.drawn}")
        tokens, parents, depths, said = [row.ids[-1]], [-1], [0], {(-1, row.ids[-1])}
        right = self.truth.get(row.request.seed, ())[row.drawn :][: draw.randint(0, 4)]

        def add(token: int, parent: int) -> int:
            if (parent, token) not in said and depths[parent] < row.room:
                said.add((parent, token))
                tokens.append(token)
                parents.append(parent)
                depths.append(depths[parent] + 1)
            return len(tokens) - 1

        for _ in range(draw.randint(0, 5)):
            add(draw.randrange(self.vocabulary), draw.randrange(len(tokens)))
        at = 0
        for token in right:
            child = next((i for i, (t, p) in enumerate(zip(tokens, parents, strict=True)) if (t, p) == (token, at)), None)
            at = add(token, at) if child is None else child
            add(draw.randrange(self.vocabulary), draw.randrange(len(tokens)))
        return Tree(tokens, parents)


@pytest.fixture(scope="session")
def wild() -> type[Wild]:
    return Wild
