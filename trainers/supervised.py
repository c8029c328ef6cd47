"""What `job: reward_model` and `job: preference` share: the order of examples, the steps, and which checkpoint is the best.

An epoch is a random order that depends on the seed and the epoch alone, so a resumed run sees what the unbroken one would have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rlcore.batch import TrainingBatch
from rlcore.data.overlap import normalise
from rlcore.run.checkpoint import latest
from rlcore.run.console import say, warn
from rlcore.run.folder import Run
from rlcore.run.metrics import values
from rlcore.types import seed_from
from trainers.learner import Learner


def learn(
    run: Run,
    learner: Learner,
    batches: Iterator[TrainingBatch],
    validated: Callable[[], Mapping[str, float]],
    *,
    step: int,
    until: int,
    validate_every: int,
) -> int:
    """The steps after `step`, an update with the next of the batches each; the step after which it ended."""
    while step < until and run.goes_on(step):
        step += 1
        with run.timed("learn"):
            batch = next(batches)
            learned = learner.update(batch)
        tokens = sum(map(len, batch.graded.prompt_ids)) + int(batch.graded.lengths.sum())
        run.log(step, {**values(learned), "tokens": tokens})
        if step % validate_every == 0 or step == until:
            run.log(step, validated())
        run.checkpoint(step)
    return step


def orders(seed: int, count: int, size: int, after: int) -> Iterator[list[int]]:
    """Which of `count` examples make the batches of `size` that follow step `after`, without end."""
    epoch, skipped = divmod(after, -(-count // size))
    while True:
        order = random.Random(seed_from("epoch", seed, epoch)).sample(range(count), count)
        for first in range(skipped * size, count, size):
            yield order[first : first + size]
        epoch, skipped = epoch + 1, 0


def best(run: Run, learner: str) -> Path:
    """The learner's folder in the checkpoint of `written_step`."""
    return run.folder / "checkpoints" / f"step-{written_step(run)}" / learner


def written_step(run: Run) -> int:
    """That of the best validation, whose weights are written; where no later one was better than that before the first step,
    the last, whatever it is worth."""
    return run.best_step or latest(run.folder / "checkpoints") or 0


def say_written(run: Run) -> None:
    """Which step's weights are written; a warning where training made nothing better."""
    if run.best_step:
        say(f"the weights of step {run.best_step} are written, the first with the best {run.keep.keep_best}")
    elif run.best_step == 0:
        warn(
            f"{run.keep.keep_best} was never above what it was before training: step {written_step(run)}, the last, is "
            "written, and the model that it started from may be better"
        )


def is_held_out(problem: str, share: float) -> bool:
    """Whether a problem is in the validation set; by its text alone, so that one problem is never on both sides."""
    return seed_from("validation", normalise(problem)) % 10_000 < share * 10_000
