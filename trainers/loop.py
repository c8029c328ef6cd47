"""The loop. Sample, grade, learn, sync — and again. Everything a recipe can choose is behind one of these verbs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rewards.compose import Rewards
from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.protocols import Engine, Learner
from rlcore.run.folder import Run
from rlcore.run.metrics import Max, Mean, Metrics, union, values
from rollout.sync import push
from trainers.compression import Uncompressed
from trainers.monitor import Unwatched
from trainers.sampler import Sampler


@dataclass(frozen=True)
class Parts:
    sampler: Sampler
    engine: Engine
    rewards: Rewards
    prepare: Callable[[GradedBatch], tuple[TrainingBatch, Metrics]]
    learner: Learner
    dtype: str
    monitor: Unwatched = field(default_factory=Unwatched)
    compression: Uncompressed = field(default_factory=Uncompressed)
    evaluate: Callable[[int], dict[str, float]] = lambda _: {}  # {} where no evaluation is due at this step


def train(parts: Parts, run: Run) -> int:
    """Train until the recipe says stop; returns the last step. A resumed run takes up where its last checkpoint stands."""
    with run.interruptible():
        return _train(parts, run)


def _train(parts: Parts, run: Run) -> int:
    step = run.restore()
    push(parts.learner, parts.engine, step, None, parts.dtype)
    if step == 0:
        run.log(0, parts.evaluate(0))
    while run.goes_on(step):
        step += 1
        with run.timed("generate"):
            rollouts = parts.sampler.collect(step)
        with parts.sampler.going_on():
            with run.timed("grade"):
                graded = parts.rewards.grade(rollouts.groups, rollouts.verified)
                changed = parts.rewards.update(graded)
                watched = parts.monitor.measure(graded)
            with run.timed("learn"):
                batch, prepared = parts.prepare(graded.batch)
                learned = parts.learner.update(batch)
        with run.timed("generate"):  # what this mode waits for before the weights change
            parts.sampler.pause()
        with run.timed("sync"):
            pushed = push(parts.learner, parts.engine, step, graded.batch, parts.dtype)
        run.ledger(step, graded.ledger)
        metrics: list[Metrics] = [rollouts.metrics, parts.engine.metrics(), graded.metrics, changed, watched, prepared, learned]
        metrics.append({"parity": Mean(pushed.parity, 1), "sync/bytes": Max(pushed.size)})
        found = values(union(metrics))
        run.log(step, found | parts.compression.measure(step, found, run.seconds))
        run.log(step, parts.evaluate(step))
        run.heed(step, parts.monitor.judge(step))
        run.checkpoint(step)
    if run.rolled_back:
        push(parts.learner, parts.engine, step + 1, None, parts.dtype)  # so that the policy which is left is the one evaluated
    return run.rolled_back or step
