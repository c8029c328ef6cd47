"""Weights from GPU to GPU, without a GPU: vLLM's own trainer and worker engines for NCCL, their start, update and finish, and
their meeting over TCP are all real, and the learner's rank and the engine are ours. What is made up is NCCL's communicator,
from the signatures of vLLM's (a call that does not fit them fails), which passes tensors on by way of the meeting's store, and
the accelerator's streams. Not exercised: NCCL, streams, and more than one process of an engine.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Bucket
from rlcore.recipe.load import load
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm
from rollout.pool import Pool
from rollout.sync import SyncError, weight_update
from rollout.transport import BroadcastUpdate, announce, is_announced, meeting
from rollout.worker import from_wire, to_wire
from tests.conftest import learner_of
from trainers.group import LearnerGroup, LearnerRank, RemoteSender

BUCKET_BYTES = 50_000


# -- the pool, whose workers hear by a store of torch's (first: rlcore is to import Ray, which vLLM does too) -----------------


class Listening(Transformers):
    """Receives what is announced, from where it was told to."""

    def join(self, group: dict[str, Any]) -> None:
        self._store = TCPStore(group["master_address"], group["master_port"], timeout=timedelta(seconds=30))
        self._heard = 0

    def receive(self, bucket: Bucket) -> None:
        if is_announced(bucket):
            data = torch.frombuffer(bytearray(self._store.get(str(self._heard))), dtype=torch.float32)
            self._heard += 1
            sizes = [tensor.numel() for tensor in bucket.tensors.values()]
            parts = zip(bucket.tensors.items(), data.split(sizes), strict=True)
            bucket = replace(bucket, tensors={name: part.view(like.shape) for (name, like), part in parts})
            super().receive(bucket)
            self._store.add(f"{self._heard - 1}/received", 1)
        else:
            super().receive(bucket)


class Sending:
    """A `rollout.transport.Sender` that lets no bucket go before all have taken the one before it."""

    processes = 1

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.opened = tensors, list[int]()
        self.meanwhile: Callable[[int], None] = lambda index: None  # done before that bucket is announced
        self.carried = self.deaths = (
            0  # how often the buckets were asked for with their tensors; workers that died in the group
        )
        self.thread = ThreadPoolExecutor(1)

    def update(self, version: int) -> BroadcastUpdate:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        self.plain = weight_update(version, shapes, self.tensors.items, bucket_bytes=BUCKET_BYTES)
        return BroadcastUpdate(self.plain.manifest, _Counted(self), _Announced(self), self)

    def open(self, workers: int) -> tuple[list[dict[str, Any]], Callable[[], Any]]:
        self.opened.append(workers)
        self.sent = self.deaths = 0
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
        return meeting("127.0.0.1", self.store.port, workers, 1), lambda: None

    def send(self) -> Callable[[], Any]:
        bucket, self.ready = self.ready, None
        data = torch.cat([tensor.detach().reshape(-1) for tensor in bucket.tensors.values()]).numpy().tobytes()
        self.sent += 1
        return self.thread.submit(self.store.set, str(self.sent - 1), data).result


class _Counted:
    def __init__(self, sending: Sending) -> None:
        self.sending, self.plain = sending, sending.plain

    def __iter__(self) -> Iterator[Bucket]:
        self.sending.carried += 1
        return iter(self.plain.buckets)


class _Announced(_Counted):
    def __iter__(self) -> Iterator[Bucket]:
        sending = self.sending
        for bucket in self.plain.buckets:
            sending.ready = bucket
            sending.meanwhile(bucket.index)
            yield announce(bucket)
            assert sending.ready is None
            assert sending.store.add(f"{sending.sent - 1}/received", 0) == sending.opened[-1] - sending.deaths


@pytest.fixture(scope="module")
def pool(ray: None, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pool]:
    make = partial(Listening, tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=8)
    started = Pool(make, tokenizer, workers=2, dtype="float32", deadline_s=60, max_restarts=100)
    yield started
    started.close()


def moved(reference: PreTrainedModel, by: float) -> dict[str, Tensor]:
    return {name: parameter.detach() + by for name, parameter in reference.named_parameters()}


def whole(pool: Pool) -> None:
    while len(pool._serving()) < 2:
        pool._hear()


def kill_one(pool: Pool) -> None:
    import ray

    actor: Any = pool._serving()[0].actor
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def assert_served(pool: Pool, sent: dict[str, int]) -> None:
    served = pool.checksums()  # raises where two workers differ
    assert served
    assert all(sent[name] == value for name, value in served.items())


@pytest.mark.xdist_group("ray")
def test_the_pool_broadcasts_in_lockstep_to_a_group_that_meets_once(pool: Pool, reference: PreTrainedModel) -> None:
    whole(pool)
    sending = Sending(moved(reference, 0.01))
    for version in (pool.version + 1, pool.version + 2):
        assert_served(pool, pool.sync(sending.update(version)))
        assert pool.version == version
    assert (sending.opened, sending.carried) == ([2], 0)
    another = Sending(moved(reference, 0.02))  # the learner was restarted
    assert_served(pool, pool.sync(another.update(pool.version + 1)))
    assert another.opened == [2]


@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("when", [-1, 2])
def test_a_pool_that_lost_a_worker_takes_the_object_store_and_then_meets_anew(
    pool: Pool, reference: PreTrainedModel, when: int
) -> None:
    """Killed before a sync, or in the middle of one; the newcomer too gets its weights by the object store."""
    whole(pool)
    sending = Sending(moved(reference, 0.03 * (2 + when)))
    pool.sync(sending.update(pool.version + 1))

    def die(index: int) -> None:
        if index == when:
            kill_one(pool)
            sending.deaths += 1

    sending.meanwhile = die
    die(-1)
    assert_served(pool, pool.sync(sending.update(pool.version + 1)))
    sending.meanwhile = lambda index: None
    whole(pool)
    assert (sending.opened, sending.carried) == ([2], 2)
    assert_served(pool, pool.sync(sending.update(pool.version + 1)))
    assert (sending.opened, sending.carried) == ([2, 2], 2)


@pytest.mark.xdist_group("ray")
def test_a_damaged_broadcast_ends_the_pools_sync_and_names_the_tensor(pool: Pool, reference: PreTrainedModel) -> None:
    whole(pool)
    sending = Sending(moved(reference, 0.04))
    version = pool.version

    def spoil(index: int) -> None:
        if index == 1:
            tensors = dict(sending.ready.tensors)
            name = next(iter(tensors))
            sending.ready = replace(sending.ready, tensors=tensors | {name: tensors[name] + 1})
            sending.spoiled = name  # type: ignore[attr-defined]

    sending.meanwhile = spoil
    with pytest.raises(SyncError) as raised:
        pool.sync(sending.update(version + 1))
    assert repr(sending.spoiled) in str(raised.value)  # type: ignore[attr-defined]
    assert pool.version == version
    with pytest.raises(SyncError, match="did not arrive whole"):
        pool.submit([])
    sending.meanwhile = lambda index: None
    assert_served(pool, pool.sync(sending.update(version + 1)))
    assert len(sending.opened) == 1


# -- the learner's rank and vLLM ---------------------------------------------------------------------------------------------

with_vllm = pytest.mark.parametrize("engine", [pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))], indirect=True)
Damage = Callable[[int, Tensor, Tensor | None], Tensor]
"""(number of the broadcast, the tensor that was sent, the one before it) → what arrives."""


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What NCCL would be: `damage` is what it does to the tensors, `ranks` who joined, `left` who left."""
    import ray.util
    from vllm.distributed.device_communicators import pynccl

    genuine = pynccl.PyNcclCommunicator
    state = SimpleNamespace(damage=lambda number, tensor, before: tensor, ranks=[], left=[])

    def connect(group: Any, device: Any, library_path: Any = None) -> Any:
        state.ranks.append((group.rank, group.world_size))
        communicator = create_autospec(genuine, instance=True, spec_set=True)
        arrived: list[Tensor] = []

        def broadcast(tensor: Tensor, src: int, stream: Any = None) -> None:
            assert tensor.is_contiguous()
            if group.rank == src:
                group.broadcast_obj(tensor.detach().clone(), src)
                return
            sent = group.broadcast_obj(None, src)
            assert (sent.dtype, sent.shape) == (tensor.dtype, tensor.shape)  # NCCL would wait for ever, or mix them up
            tensor.copy_(state.damage(len(arrived), sent, arrived[-1] if arrived else None))
            arrived.append(sent)

        communicator.broadcast.side_effect = broadcast
        communicator.destroy.side_effect = lambda: state.left.append(group.rank)
        return communicator

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", create_autospec(genuine, spec_set=True, side_effect=connect))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    return state


class Alone:
    """`trainers.ranks.Ranks` of one rank, in this process."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank, self.called = rank, list[str]()

    def call(self, method: str, *arguments: Any) -> list[Any]:
        self.called.append(method)
        return [getattr(self.rank, method)(*arguments)]


@pytest.fixture
def group(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> LearnerGroup:
    """A learner whose weights are not those of the reference."""
    torch.manual_seed(3)
    model = tiny_spec.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    learner = learner_of(model, tokenizer, bucket_bytes=BUCKET_BYTES)
    ranks: Any = Alone(LearnerRank(learner, None, 0))
    return LearnerGroup(ranks, RemoteSender(ranks, processes=1))


def updated(group: LearnerGroup, version: int) -> BroadcastUpdate:
    update = group.weights(version)
    assert isinstance(update, BroadcastUpdate)
    return update


def join(engine: Vllm, update: BroadcastUpdate) -> None:
    [here], opening = update.sender.open(1)
    engine.join(here)
    opening()


def broadcast(engine: Vllm, update: BroadcastUpdate) -> dict[str, int]:
    """What the pool does with its workers."""
    sent: dict[str, int] = {}
    engine.begin_sync(update.manifest)
    for bucket in update.announced:
        sending = update.sender.send()
        try:
            engine.receive(bucket)
        finally:
            sending()
        sent |= bucket.checksums
    engine.end_sync()
    return sent


@with_vllm
def test_broadcast_weights_are_served_by_vllm_as_those_that_are_handed_over(
    engine: Vllm, group: LearnerGroup, line: SimpleNamespace, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Bit for bit; in vLLM's own session, which is started once, and finished once after the last of several buckets."""
    asked = [(tokenizer(f"{i}+1=?\n").input_ids, tokenizer("3\n").input_ids) for i in range(3)]
    before = engine.logprobs(asked)
    tensors = dict(group.ranks.rank.learner.model.named_parameters())  # type: ignore[attr-defined]
    engine.sync(weight_update(engine.version + 1, {name: tuple(p.shape) for name, p in tensors.items()}, tensors.items))
    handed_over = engine.logprobs(asked)
    assert handed_over != before
    [called] = engine._llm.collective_rpc(spied)
    update = updated(group, engine.version + 1)
    join(engine, update)
    sent = broadcast(engine, update)
    buckets = list(update.announced)
    assert len(buckets) > 2
    assert called == ["start_weight_update", *["update_weights"] * len(buckets), "finish_weight_update"]
    assert engine.version == update.manifest.version
    assert engine.logprobs(asked) == handed_over
    assert all(sent[name] == value for name, value in engine.checksums().items())
    assert line.ranks in ([(0, 2), (1, 2)], [(1, 2), (0, 2)])


def spied(wrapper: Any) -> list[str]:
    """Have vLLM's worker note here how it is called from now on."""
    called: list[str] = []
    worker = wrapper.worker

    def noted(name: str, genuine: Callable, *arguments: Any) -> Any:
        called.append(name)
        return genuine(*arguments)

    for name in ("start_weight_update", "update_weights", "finish_weight_update"):
        setattr(worker, name, partial(noted, name, getattr(type(worker), name).__get__(worker)))
    return called


def flipped(number: int, tensor: Tensor, before: Tensor | None) -> Tensor:
    if number == 7:
        tensor.view(-1).view(torch.int32)[0] ^= 1
    return tensor


def lost(number: int, tensor: Tensor, before: Tensor | None) -> Tensor:
    return torch.zeros_like(tensor) if number == 7 else tensor


def repeated(number: int, tensor: Tensor, before: Tensor | None) -> Tensor:
    return before if before is not None and before.shape == tensor.shape and number > 1 else tensor


@with_vllm
@pytest.mark.parametrize("damage", [flipped, lost, repeated])
def test_a_tensor_that_is_damaged_on_its_way_is_named_and_not_served(
    engine: Vllm, group: LearnerGroup, line: SimpleNamespace, damage: Damage
) -> None:
    """The sender is not left waiting; the same group brings the whole update at the next try."""
    hurt: list[str] = []
    names = iter(group.weights(0).manifest.shapes)

    def noted(number: int, tensor: Tensor, before: Tensor | None) -> Tensor:
        name, genuine = next(names), tensor.clone()
        arrives = damage(number, tensor, before)
        hurt.extend([name] * (not torch.equal(arrives, genuine)))
        return arrives

    line.damage = noted
    update = updated(group, engine.version + 1)
    join(engine, update)
    with pytest.raises(SyncError) as raised:
        broadcast(engine, update)
    assert f"{hurt[0]!r} was not received as it was sent" in str(raised.value)
    with pytest.raises(SyncError, match="did not arrive whole"):
        engine.logprobs([([1], [2])])
    line.damage = lambda number, tensor, before: tensor
    sent = broadcast(engine, update)
    assert all(sent[name] == value for name, value in engine.checksums().items())
    assert len(line.ranks) == 2


@with_vllm
def test_buckets_out_of_order_twice_or_lacking_are_refused(engine: Vllm, group: LearnerGroup, line: SimpleNamespace) -> None:
    update = updated(group, engine.version + 1)
    join(engine, update)
    first, second, *_ = update.announced
    engine.begin_sync(update.manifest)
    with pytest.raises(SyncError, match=f"bucket 1 .* in place of bucket 0.*{next(iter(second.tensors))!r}"):
        engine.receive(second)
    buckets = iter(update.announced)
    sending = [next(buckets), update.sender.send()]
    engine.receive(sending[0])
    sending[1]()
    with pytest.raises(SyncError, match="in place of bucket 1"):
        engine.receive(first)
    with pytest.raises(SyncError, match=f"never came, first {next(iter(second.tensors))!r}"):
        engine.end_sync()


@with_vllm
def test_a_group_is_left_when_another_one_is_met_even_in_the_middle_of_an_update(
    engine: Vllm, group: LearnerGroup, line: SimpleNamespace
) -> None:
    update = updated(group, engine.version + 1)
    join(engine, update)
    line.left.clear()  # the worker's group of an earlier test
    engine.begin_sync(update.manifest)
    join(engine, update)
    assert sorted(line.left) == [0, 1]
    broadcast(engine, update)
    assert engine.version == update.manifest.version


def test_every_process_has_a_rank_of_its_own_and_the_fields_are_vllms() -> None:
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

    groups = meeting("127.0.0.1", 29_500, workers=3, processes=4)
    infos = [NCCLWeightTransferInitInfo(**each) for each in groups]
    for each in groups:
        inspect.signature(NCCLWeightTransferInitInfo).bind(**each)
    assert [0, *(info.rank_offset + rank for info in infos for rank in range(4))] == list(range(13))
    assert {(info.world_size, info.packed) for info in infos} == {(13, False)}


def test_the_learner_makes_a_bucket_only_when_the_one_before_it_was_sent(
    group: LearnerGroup, line: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's trainer engine, of its own signatures, sends exactly the tensors that were announced; rank 0 then lets go of them.
    Another rank makes the buckets too, and sends nothing."""
    from rollout import broadcast as module

    engine = create_autospec(module.TrainerWeightTransferEngine, instance=True, spec_set=True)
    opened = create_autospec(module.WeightTransferTrainerFactory.trainer_init, return_value=engine)
    monkeypatch.setattr(module.WeightTransferTrainerFactory, "trainer_init", opened)
    sent: list[dict[str, int]] = []
    from rollout.sync import checksum

    def send() -> None:
        source = opened.call_args.kwargs["source"]
        pairs = dict(source)
        assert [(m.name, m.dtype, m.shape) for m in source.metadata()] == [(n, t.dtype, t.shape) for n, t in pairs.items()]
        sent.append({name: checksum(tensor) for name, tensor in pairs.items()})

    engine.send_weights.side_effect = send
    update = updated(group, 1)
    _, opening = update.sender.open(2)
    opening()
    info = opened.call_args.args[0]
    assert (info.backend, info.world_size, info.rank, info.packed) == ("nccl", 3, 0, False)
    rank = group.ranks.rank  # type: ignore[attr-defined]
    other = LearnerRank(rank.learner, None, 1)
    other.announce(1)
    other.rewind(1)
    announced = []
    for bucket in update.announced:
        assert is_announced(bucket)
        assert other.next_announced() is None
        other.send()
        update.sender.send()()
        assert rank._announced is None
        announced.append(dict(bucket.checksums))
    assert sent == announced
    assert other._announced is None
    assert set().union(*sent) == set(update.manifest.shapes)


def test_an_adapter_goes_by_the_object_store(group: LearnerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = group.ranks.rank  # type: ignore[attr-defined]
    manifest = replace(group.weights(1).manifest, kind="adapter")
    monkeypatch.setattr(rank, "announce", lambda version, compressed: manifest)
    assert not isinstance(group.weights(2), BroadcastUpdate)


def test_what_is_announced_passes_the_wire_without_its_bytes() -> None:
    tensors = {"a": torch.ones(3, 2, dtype=torch.bfloat16), "b": torch.zeros(4)}
    bucket = announce(Bucket(1, 0, tensors, {"a": 1, "b": 2}))
    arrived = from_wire(to_wire(bucket.tensors))
    assert {n: (t.shape, t.dtype, t.is_meta) for n, t in arrived.items()} == {
        n: (t.shape, t.dtype, True) for n, t in tensors.items()
    }
    assert not is_announced(Bucket(1, 0, tensors, {}))


NCCL = ["quickstart", "cluster.transport=nccl", "rollout.engine=vllm", "cluster.gpus_per_worker=1", "cluster.gpus_per_rank=1"]


def test_nccl_is_refused_where_it_cannot_work() -> None:
    load([*NCCL, "device=auto"])
    for spoiled in ("rollout.engine=transformers", "cluster.gpus_per_worker=0.5", "cluster.gpus_per_rank=0", "device=cpu"):
        with pytest.raises(UserError, match=r"cluster\.transport nccl goes from GPU to GPU"):
            load([*NCCL, "device=auto", spoiled])
    with pytest.raises(UserError, match="object_store"):
        load([*NCCL, "cluster.transport=ipc"])
