"""From a real learner to a real engine, and every way in which new weights can fail to arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from rlcore.batch import TrainingBatch
from rlcore.models import ModelSpec
from rlcore.protocols import Engine
from rlcore.recipe.schema import Optimizer
from rollout.sync import SyncError, push
from tests.conftest import learner_of
from trainers.learner import Learner

VLLM = pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))
every_model = pytest.mark.parametrize("engine", ["transformers", VLLM], indirect=True)
only_vllm = pytest.mark.parametrize("engine", [VLLM], indirect=True)
only_transformers = pytest.mark.parametrize("engine", ["transformers"], indirect=True)


@pytest.fixture
def training(make_batch: Callable) -> TrainingBatch:
    graded = make_batch([1, 0, 1, 0], [0, 0, 1, 1], [5, 3, 9, 2])
    return TrainingBatch(graded, torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(5)), None)


@pytest.fixture
def trained(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, training: TrainingBatch) -> Callable[[str], Learner]:
    """A learner after one step: of all weights, or of an adapter that is served merged or by itself."""

    def make(what: str) -> Learner:
        model: Any = tiny_spec.load()
        if what != "full":
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            model = get_peft_model(model, config)
        serve = "adapter" if what == "adapter" else "merged"
        learner = learner_of(model, tokenizer, optimizer=Optimizer(learning_rate=1e-2), serve=serve)
        learner.update(training)
        return learner

    return make


@every_model
@pytest.mark.parametrize("what", ["full", "merged", "adapter"])
def test_pushed_weights_are_served_and_proved(engine: Engine, trained: Callable, training: TrainingBatch, what: str) -> None:
    version = engine.version + 1
    assert push(trained(what), engine, version, training.graded, "float32").parity < 1e-5
    assert engine.version == version


def skip_full(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes the update and serves what it served before."""
    if hasattr(engine, "_llm"):
        real = engine._llm.collective_rpc

        def call(method: str, args: tuple = ((),)) -> list:
            return real(method, args=args) if method == "weight_checksums" else [len(args[0])]

        monkeypatch.setattr(engine._llm, "collective_rpc", call)
    else:
        monkeypatch.setattr(engine, "receive", engine._intake.check)


@every_model
def test_a_skipped_sync_is_caught(
    engine: Engine, trained: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_full(engine, monkeypatch)
    with pytest.raises(SyncError, match=r"still serves another 'model\.embed_tokens\.weight' than was sent"):
        push(trained("full"), engine, engine.version + 1, training.graded, "float32")


@every_model
def test_a_skipped_adapter_is_caught(
    engine: Engine, trained: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_adapt" if hasattr(engine, "_llm") else "_merge", lambda *_: {})
    with pytest.raises(SyncError, match="the weights served are not the weights trained"):
        push(trained("adapter"), engine, engine.version + 1, training.graded, "float32")


@only_vllm
def test_a_loader_that_stops_half_way_is_caught(engine: Any, trained: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = type(engine._llm.apply_model(lambda model: model)[0])
    monkeypatch.setattr(model, "load_weights", lambda self, offered: next(offered))
    with pytest.raises(SyncError, match=r"vLLM took \[1\] of the 21 tensors of bucket 0"):
        engine.sync(trained("full").weights(engine.version + 1))


@only_vllm
def test_packed_matrices_that_are_loaded_wrongly_are_found_by_the_probe(
    engine: Any, trained: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's checksums do not cover its packed matrices: here each of them gets nothing but zeros."""
    real = engine._llm.collective_rpc

    def forget(method: str, args: tuple = ()) -> list:
        if method == "load_weights":
            args = ([(name, tensor * ("proj" not in name)) for name, tensor in args[0]],)
        return real(method, args=args)

    monkeypatch.setattr(engine._llm, "collective_rpc", forget)
    with pytest.raises(SyncError, match="the weights served are not the weights trained"):
        push(trained("full"), engine, engine.version + 1, training.graded, "float32")


@only_transformers
def test_an_engine_that_computes_otherwise_is_found_by_the_probe(
    engine: Engine, trained: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right weights, used in another way: what no checksum sees."""
    honest = engine.logprobs
    monkeypatch.setattr(engine, "logprobs", lambda sequences: [[1.01 * x for x in row] for row in honest(sequences)])
    with pytest.raises(SyncError, match="the weights served are not the weights trained"):
        push(trained("full"), engine, engine.version + 1, training.graded, "float32")


@every_model
def test_a_stale_push_is_refused(engine: Engine, trained: Callable, training: TrainingBatch) -> None:
    with pytest.raises(SyncError, match="is stale"):
        push(trained("full"), engine, engine.version - 1, training.graded, "float32")
