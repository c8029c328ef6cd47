"""The pool where it is more than one engine: workers that die, hang, come late or serve something else. Real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.codec import Anew
from compress.quantise.rtn import Rtn
from rlcore.batch import TrainingBatch
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Superseded, WeightUpdate
from rlcore.run.metrics import Mean, Metrics
from rlcore.types import Completion, Request, Sampling, seed_from
from rollout.engines.transformers import Transformers
from rollout.pool import Pool
from rollout.sync import SyncError, codes_update, push, weight_update
from tests.trainers.test_outliers import Started

pytestmark = pytest.mark.xdist_group("ray")
DEADLINE_S = 8.0


class Hanging(Transformers):
    """Stops for good at a request that is called `hang`, once: the file says that it has."""

    def poll(self) -> list[Completion]:
        if any(row.problem_id.startswith("hang:") for row in self._rows):
            flag = next(row.problem_id for row in self._rows if row.problem_id.startswith("hang:")).removeprefix("hang:")
            if not os.path.exists(flag):  # noqa: PTH110
                open(flag, "w").close()  # noqa: PTH123
                time.sleep(10_000)
        return super().poll()

    def metrics(self) -> Metrics:
        return {"drafter/accepted": Mean(1, 2)}


@pytest.fixture(scope="module")
def pool(ray: None, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pool]:
    make = partial(Hanging, tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=8)
    started = Pool(make, tokenizer, workers=2, dtype="float32", deadline_s=DEADLINE_S, max_restarts=100)
    yield started
    started.close()


@pytest.fixture
def updating(reference: PreTrainedModel) -> Callable[..., WeightUpdate]:
    def make(version: int, moved: float = 0.0) -> WeightUpdate:
        generator = torch.Generator().manual_seed(1)
        tensors = {n: p.detach() + moved * torch.randn(p.shape, generator=generator) for n, p in reference.named_parameters()}
        return weight_update(version, {n: tuple(t.shape) for n, t in tensors.items()}, tensors.items, bucket_bytes=50_000)

    return make


def asked(tokenizer: PreTrainedTokenizerBase, count: int, name: str = "p", tokens: int = 40) -> list[Request]:
    prompts = [tuple(tokenizer(f"{i}+1=?\n").input_ids) for i in range(3)]
    sampling = Sampling(max_new_tokens=tokens)
    return [Request(f"{name}{i % 3}", i, seed_from("pool", i), prompts[i % 3], sampling) for i in range(count)]


def pids(pool: Pool) -> list[int]:
    import ray

    actors: list[Any] = [member.actor for member in pool._serving()]
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])


def only_once(update: WeightUpdate) -> WeightUpdate:
    """An update whose learner moves on as soon as it has been sent."""

    class Gone:
        used = False

        def __iter__(self) -> Iterator[Any]:
            first, self.used = not self.used, True
            if not first:
                raise Superseded
            return iter(update.buckets)

    return replace(update, buckets=Gone())


def finish(pool: Pool, done: list[Completion]) -> dict[int, tuple[int, ...]]:
    while pool.busy:
        done += pool.poll()
    assert len({c.seed for c in done}) == len(done)
    return {c.seed: c.token_ids for c in done}


def test_what_workers_report_is_added_up(pool: Pool) -> None:
    assert pool.metrics() == {"drafter/accepted": Mean(2, 4)}


def whole(pool: Pool) -> None:
    """Wait until every worker serves."""
    while len(pool._serving()) < 2:
        pool._hear()


def test_a_worker_that_is_killed_is_replaced_and_its_work_done_again(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, updating: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same tokens come out, and the newcomer serves the weights of the last sync, proved by their checksums."""
    whole(pool)
    pool.sync(updating(pool.version + 1, moved=0.05))
    requests = asked(tokenizer, 30)
    expected = {c.seed: c.token_ids for c in pool.generate(requests)}
    pool.submit(requests)
    done = pool.poll()
    os.kill(pids(pool)[0], signal.SIGKILL)
    assert finish(pool, done) == expected
    whole(pool)
    died = "warning: rollout worker 0 died (killed, out of memory, or crashed); replaced"
    assert died in capsys.readouterr().err
    served = pool.checksums()  # raises where the two differ
    assert served == {name: value for name, value in pool.sync(updating(pool.version, moved=0.05)).items() if name in served}
    assert {c.seed: c.token_ids for c in pool.generate(requests)} == expected


def test_a_worker_that_replaces_another_is_made_from_the_base_and_sent_what_is_trained(
    ray: None, tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_batch: Callable
) -> None:
    """A sparse update alone says all that differs from what a worker is made from."""
    begun = Started(tiny, tmp_path / "run")
    graded = make_batch([1, 0, 1, 0], [0, 0, 1, 1], [5, 3, 9, 2])
    make = partial(Transformers, ModelSpec(begun.location, device="cpu"), tokenizer, [tokenizer.eos_token_id])
    pool = Pool(make, tokenizer, workers=1, dtype="float32", deadline_s=DEADLINE_S)
    try:
        for version in (1, 2):
            begun.learner.update(TrainingBatch(graded, torch.ones(graded.tokens.shape), graded.rollout_logprobs))
            assert push(begun.learner, pool, version, graded, "float32").parity < 1e-5
        served = pool.checksums()
        os.kill(pids(pool)[0], signal.SIGKILL)
        pool.generate(asked(tokenizer, 3, tokens=4))
        assert pool.restarts == 1
        assert pool.checksums() == served
    finally:
        pool.close()


def test_a_worker_that_replaces_another_decodes_what_the_others_serve(pool: Pool, reference: PreTrainedModel) -> None:
    """From the update alone: no worker keeps anything of the ones before it."""
    whole(pool)
    int8 = Anew([Rtn(bits=8, run=0)], reference, torch.float32, [])
    tensors = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    held = {name: int8.encode(name, tensors[name]) for name in int8.names}
    others = {name: tensor for name, tensor in tensors.items() if name not in held}
    shapes = {name: tuple(tensor.shape) for name, tensor in others.items()}
    sent = pool.sync(codes_update(pool.version + 1, held, shapes, others.items, torch.float32, bucket_bytes=20_000))
    os.kill(pids(pool)[1], signal.SIGKILL)
    pool.checksums()  # finds that it is dead
    assert len(pool._serving()) == 1
    whole(pool)
    assert pool.checksums() == {name: sent[name] for name in tensors}


def test_a_worker_that_hangs_past_its_deadline_counts_as_dead(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, tmp_path: Any
) -> None:
    whole(pool)
    before = pool.restarts
    requests = asked(tokenizer, 12)
    requests[5] = replace(requests[5], problem_id=f"hang:{tmp_path}/flag")
    assert len(finish(pool, pool.generate(requests))) == 12
    assert pool.restarts == before + 1


def test_a_worker_that_dies_while_new_weights_come_is_replaced(pool: Pool, updating: Callable) -> None:
    whole(pool)
    update = updating(pool.version + 1, moved=0.1)

    def deadly() -> Iterator[Any]:
        for bucket in update.buckets:
            yield bucket
            if bucket.index == 1:
                os.kill(pids(pool)[1], signal.SIGKILL)

    class Once:
        """Kills at its first use only."""

        used = False

        def __iter__(self) -> Iterator[Any]:
            first, self.used = not self.used, True
            return deadly() if first else iter(update.buckets)

    sent = pool.sync(replace(update, buckets=Once()))
    whole(pool)
    assert pool.version == update.manifest.version
    assert all(sent[name] == value for name, value in pool.checksums().items())


def test_a_newcomer_waits_for_the_next_sync_where_the_learner_has_moved_on(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, updating: Callable
) -> None:
    """It gets no work until it has weights; the other goes on."""
    whole(pool)

    pool.sync(only_once(updating(pool.version + 1)))
    os.kill(pids(pool)[0], signal.SIGKILL)
    assert len(pool.generate(asked(tokenizer, 10))) == 10
    while any(member.state == "starting" for member in pool._members):
        pool._hear()
    assert [member.state for member in pool._members].count("serving") == 1
    assert len(pool.generate(asked(tokenizer, 10))) == 10
    pool.sync(updating(pool.version + 1))
    assert len(pool._serving()) == 2


def test_where_no_worker_has_weights_what_is_queued_comes_back(
    ray: None, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, updating: Callable
) -> None:
    """Its only worker dies while the learner moves on: nobody can go on before the next sync, and nobody waits for it."""
    make = partial(Transformers, tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=8)
    alone = Pool(make, tokenizer, workers=1, dtype="float32", deadline_s=DEADLINE_S)

    alone.sync(only_once(updating(1)))
    requests = asked(tokenizer, 20)
    alone.submit(requests)
    done = alone.poll()
    os.kill(pids(alone)[0], signal.SIGKILL)
    while alone.busy:
        done += alone.poll()
    back = [completion.resumed() for completion in done if completion.finish_reason == "interrupted"]
    assert back
    alone.sync(updating(2))
    done = [c for c in done if c.finish_reason != "interrupted"] + alone.generate(back)
    assert {c.seed for c in done} == {r.seed for r in requests}
    alone.close()


def test_workers_that_serve_different_weights_stop_the_run(pool: Pool, updating: Callable) -> None:
    whole(pool)
    pool.sync(updating(pool.version + 1))
    stray = pool._members[1]
    update = updating(pool.version, moved=0.2)
    pool._ask(stray, "begin_sync", update.manifest)
    for bucket in update.buckets:
        pool._settle(pool._send(bucket, [stray]))
    pool._ask(stray, "end_sync")
    with pytest.raises(SyncError, match="rollout worker 1 does not serve what the others serve: its checksums differ"):
        pool.checksums()
    with pytest.raises(SyncError, match="its logprobs differ"):
        pool.logprobs([((5, 6, 7), (8, 9))])
    pool.sync(updating(pool.version + 1))
    pool.checksums()


def test_too_many_deaths_end_the_run_with_one_line(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(pool)
    monkeypatch.setattr(pool, "max_restarts", pool.restarts)
    pool.submit(asked(tokenizer, 10))
    os.kill(pids(pool)[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"rollout worker 0 .*; \d+ were replaced before it, and no more will be"):
        finish(pool, [])
    monkeypatch.undo()
    finish(pool, [])


def test_an_engine_that_cannot_be_made_says_why(ray: None, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    missing = replace(tiny_spec, location=tiny_spec.location + "-missing")
    with pytest.raises(UserError, match="tiny-missing"):
        Pool(partial(Transformers, missing, tokenizer, [1]), tokenizer, workers=1, dtype="float32")
