"""From a real learner to a real engine, and every way in which new weights can fail to arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from compress.codec import Codec, Named, codec
from rlcore.batch import TrainingBatch
from rlcore.models import ModelSpec, without_weights
from rlcore.protocols import Bucket, Engine, WeightUpdate
from rlcore.recipe.schema import Optimizer
from rollout.sync import SyncError, push
from tests.conftest import learner_of
from trainers.learner import Learner

VLLM = pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))
POOL = pytest.param("pool", marks=pytest.mark.xdist_group("ray"))
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

    def make(what: str, codec: Codec | None = None) -> Learner:
        model: Any = tiny_spec.load()
        if what != "full":
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            model = get_peft_model(model, config)
        serve = "adapter" if what == "adapter" else "merged"
        learner = learner_of(model, tokenizer, optimizer=Optimizer(learning_rate=1e-2), serve=serve, codec=codec)
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


METHODS: dict[str, list[Named]] = {
    "int8": [("rtn", {"bits": 8, "run": 0})],
    "nf4": [("nf4", {"run": 32})],
    "cube_root": [("cube_root", {"bits": 6, "run": 32})],
    "clipped": [("clipped", {"bits": 4, "run": 32})],
    "sparse": [("magnitude", {"pattern": [2, 4]})],
    "vq": [("vq", {"codes": 32, "width": 4})],
    "mvq": [("magnitude", {"pattern": [4, 8]}), ("mvq", {"codes": 32})],
}


class Compressed:
    """A learner all of whose updates are compressed, as `trainers.compression` has them."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def weights(self, version: int) -> WeightUpdate:
        return self.learner.weights(version, compressed=True)


@pytest.fixture
def compressed(tiny_spec: ModelSpec, trained: Callable) -> Callable[..., Compressed]:
    def make(method: str = "int8", what: str = "full", keep_dense: tuple[str, ...] = ("down_proj",)) -> Compressed:
        shapes = partial(without_weights, tiny_spec.location)
        return Compressed(trained(what, codec(METHODS[method], keep_dense, torch.float32, shapes, tiny_spec.load)))

    return make


every_engine = pytest.mark.parametrize("engine", ["transformers", VLLM, POOL], indirect=True)


@every_engine
@pytest.mark.parametrize("what", ["full", "merged"])
@pytest.mark.parametrize("method", ["int8", "mvq"])
def test_compressed_weights_are_served_and_proved(
    engine: Engine, compressed: Callable, training: TrainingBatch, method: str, what: str
) -> None:
    """Parity with the learner's own reconstruction, and not with the policy itself; then the policy itself, again."""
    learner, version = compressed(method, what), engine.version + 1
    assert push(learner, engine, version, training.graded, "float32").parity < 1e-5
    own, served = learner.logprobs(training.graded), learner.served_logprobs(training.graded)
    assert (own - served).abs().max() > 1e-4
    assert push(learner.learner, engine, version + 1, training.graded, "float32").parity < 1e-5


@only_transformers
@pytest.mark.parametrize("method", METHODS)
def test_what_is_served_is_the_reconstruction_to_the_bit(engine: Any, compressed: Callable, method: str) -> None:
    learner = compressed(method)
    expected = dict(learner.learner._merged(torch.float32))
    for name in learner.codec.names:
        expected[name] = learner.codec.encode(name, expected[name]).decode()
    engine.sync(learner.weights(engine.version + 1))
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@only_transformers
def test_buckets_of_any_size_bring_the_same(engine: Any, compressed: Callable) -> None:
    """Also where each holds one weight: its tensors are never apart."""
    learner = compressed("mvq")
    engine.sync(learner.weights(engine.version + 1))
    expected = engine.checksums()
    learner.learner.bucket_bytes = 1
    update = learner.weights(engine.version + 1)
    assert len(list(update.buckets)) == len(expected)
    engine.sync(update)
    assert engine.checksums() == expected


def flipped(bucket: Bucket) -> Bucket:
    name = next(name for name in bucket.tensors if name.endswith("/codes"))
    tensor = bucket.tensors[name].clone()
    tensor[3] ^= 1
    return replace(bucket, tensors={**bucket.tensors, name: tensor})


def without_a_field(bucket: Bucket) -> Bucket:
    return replace(bucket, tensors={name: t for name, t in bucket.tensors.items() if not name.endswith("q_proj.weight/scales")})


def decoded_otherwise(bucket: Bucket) -> Bucket:
    """The sender's reconstruction was another one."""
    wrong = {name: value + ("q_proj.weight" in name and "/" not in name) for name, value in bucket.checksums.items()}
    return replace(bucket, checksums=wrong)


@every_engine
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (flipped, "q_proj.weight/codes' arrived corrupted"),
        (without_a_field, "q_proj.weight/scales' is not in one bucket"),
        (decoded_otherwise, "q_proj.weight' was not decoded as"),
    ],
)
def test_codes_that_arrive_broken_are_refused(
    engine: Engine, compressed: Callable, reference: Any, break_it: Callable, message: str
) -> None:
    version = engine.version
    update = compressed().weights(version + 1)
    with pytest.raises(SyncError, match=message):
        engine.sync(replace(update, buckets=[break_it(bucket) for bucket in update.buckets]))
    assert engine.version == version
    with pytest.raises(SyncError, match="did not arrive whole"):
        engine.logprobs([((5,), (6,))])


@only_transformers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, version=0), "is stale"),
        (lambda m: replace(m, compressed={}), "brings '.*/codes', which the engine's model does not have"),
        (lambda m: replace(m, shapes={n: s for n, s in m.shapes.items() if "norm" not in n}), "does not bring 'model"),
        (lambda m: replace(m, shapes={n: s for n, s in m.shapes.items() if "/codes" not in n}), "is not whole"),
        (
            lambda m: replace(m, compressed={n: {**s, "shape": [1, 2]} for n, s in m.compressed.items()}),
            r"comes with shape \(1, 2\)",
        ),
    ],
)
def test_codes_that_do_not_fit_are_refused_and_change_nothing(
    engine: Engine, compressed: Callable, change: Callable, message: str
) -> None:
    before, update = engine.checksums(), compressed().weights(engine.version + 1)
    with pytest.raises(SyncError, match=message):
        engine.sync(replace(update, manifest=change(update.manifest)))
    assert engine.checksums() == before


@only_transformers
def test_codes_that_are_decoded_into_nothing_are_caught(
    engine: Any, compressed: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "receive", engine._intake.check)
    with pytest.raises(SyncError, match="still serves another"):
        push(compressed(), engine, engine.version + 1, training.graded, "float32")


@only_transformers
def test_codes_that_are_the_policys_own_weights_are_found_by_the_probe(
    engine: Engine, compressed: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is about the reconstruction: under the policy itself it would have to be wider."""
    learner = compressed("nf4")
    monkeypatch.setattr(learner.learner, "served_logprobs", learner.learner.logprobs)
    with pytest.raises(SyncError, match="the weights served are not the weights trained"):
        push(learner, engine, engine.version + 1, training.graded, "float32")
