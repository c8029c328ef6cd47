"""Engines for the tests of this folder: each started once, and given the reference's weights before every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.cluster.connect import connected
from rlcore.models import ModelSpec
from rlcore.protocols import Engine
from rlcore.types import Request
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm
from rollout.pool import Pool
from rollout.scripted import Scripted
from rollout.sync import weight_update


@pytest.fixture(scope="session")
def reference(tiny_spec: ModelSpec) -> PreTrainedModel:
    return tiny_spec.load()


@pytest.fixture(scope="session")
def make(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, reference: PreTrainedModel) -> Callable[[str], Engine]:
    spec, stop_ids = replace(tiny_spec, adapter_rank=4), [tokenizer.eos_token_id]
    return {
        "transformers": lambda: Transformers(spec, tokenizer, stop_ids, batch_size=7),
        "vllm": lambda: Vllm(spec, tokenizer, stop_ids, kv_cache_gb=0.1, top_h=True),
        "scripted": lambda: Scripted(tokenizer, said, dict(reference.named_parameters()), context=512),
    }.__getitem__


def said(request: Request) -> str:
    return f"{request.seed % 1000}+{request.sample}=?\n" * 5


@pytest.fixture(scope="session")
def started(make: Callable) -> Iterator[dict[str, Engine]]:
    engines: dict[str, Engine] = {}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray cluster of this machine. A process can be in one at a time: whoever comes next starts its own."""
    with connected("local"):
        yield


@pytest.fixture(scope="module")
def pool(ray: None, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pool]:
    """Two transformers engines in processes of their own."""
    engine = partial(Transformers, replace(tiny_spec, adapter_rank=4), tokenizer, [tokenizer.eos_token_id], batch_size=7)
    started = Pool(engine, tokenizer, workers=2, dtype="float32")
    yield started
    started.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, make: Callable, started: dict[str, Engine], reference: PreTrainedModel) -> Engine:
    """The engine of that name, which serves the reference's weights."""
    if request.param == "pool":
        engine = request.getfixturevalue("pool")
    else:
        if request.param not in started:
            started[request.param] = make(request.param)()
        engine = started[request.param]
    tensors = dict(reference.named_parameters())
    engine.sync(weight_update(engine.version + 1, {name: tuple(p.shape) for name, p in tensors.items()}, tensors.items))
    return engine
