"""A step of the quickstart with and without process scoring: what `process` adds to it, beside `answer`.

The reward model is one that `prm_chain` trains on the quickstart's toy, of the same size as the policy, for a moment: what it
says takes no part in the time. The component's weight is 0, so that both sides sample, learn and sync the same. `quickstart`
begins with its own toy, which mostly blurts out an answer; `steps` with the toy that writes out every step, as policies do
after training. `share` is the time that scoring adds over the step without it.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, Turns, arguments, finish, timed

HEADS = {"text": {}, "token": {"head": "token", "judging.template": "{problem}\n{steps}"}}
MODELS = {"quickstart": "toy:chain", "steps": "toy:chain-steps"}


def trained(head: str, folder: Path) -> Path:
    """A run of `prm_chain`, cut short."""
    from rlcore import jobs
    from rlcore.recipe.load import load

    settings = {"output": folder, "data.count": 200, "epochs": 1, "batch_size": 32, **HEADS[head]}
    jobs.run(load(["prm_chain", *(f"{key}={json.dumps(str(value))}" for key, value in settings.items())]), resume=False)
    return folder


def side(model: str, process: Mapping[str, Any] | None, threads: int) -> Measure:
    import torch

    from rlcore.recipe.load import load
    from rlcore.run.metrics import Mean, merge, values
    from rlcore.toy import warmstart
    from rollout.sync import push
    from trainers.parts import build_parts
    from trainers.plan import plan

    torch.set_num_threads(threads)
    rewards = ["answer"] if process is None else ["answer", process]
    recipe: Any = load(["quickstart", f"model={model}", f"threads={threads}", f"rewards={json.dumps(rewards)}"]).recipe
    parts = build_parts(recipe, plan(recipe), warmstart.resolve(model, 0), ExitStack())
    push(parts.learner, parts.engine, 0, None, recipe.dtype)
    step = 0

    def measure() -> Mapping[str, float]:
        nonlocal step
        step += 1
        result: dict[str, float] = {}
        with timed(result, "step"):
            with timed(result, "generate"):
                rollouts = parts.sampler.collect(step)
            with timed(result, "grade"):
                graded = parts.rewards.grade(rollouts.groups, rollouts.verified)
                changed = parts.rewards.update(graded)
            with timed(result, "learn"):
                batch, prepared = parts.prepare(graded.batch)
                learned = parts.learner.update(batch)
            with timed(result, "sync"):
                parity = push(parts.learner, parts.engine, step, graded.batch, parts.dtype).parity
            told = values(merge([graded.metrics, changed, prepared, learned, {"parity": Mean(parity, 1)}]))
        return {**result, "tokens": told["tokens"], "steps": told.get("process/steps", 0.0)}

    return measure


def compare(name: str, judge: Path, head: str, options: Any) -> dict[str, Any]:
    print(f"{name}, head: {head}", file=sys.stderr)
    process = {"name": "process", "judge": str(judge), "separator": "\n", "weight": 0}
    bind = functools.partial(functools.partial, side, model=MODELS[name], threads=options.threads)
    with Turns({"without": bind(process=None), "with": bind(process=process)}) as turns:
        measured = turns.run(options.warmup, options.repeats)
    without, scored = measured["without"], measured["with"]
    assert without["tokens"] == scored["tokens"]
    return {
        "model": MODELS[name],
        "head": head,
        "tokens": scored["tokens"],
        "steps": scored["steps"],
        "share": (scored["grade"] - without["grade"]) / without["step"],
        "sides": measured,
    }


def main() -> None:
    options = arguments(__doc__ or "", warmup=3, repeats=9)
    with tempfile.TemporaryDirectory() as folder:
        judges = {head: trained(head, Path(folder) / head) for head in HEADS}
        result = {f"{name}/{head}": compare(name, judge, head, options) for name in MODELS for head, judge in judges.items()}
    finish(result, options)


if __name__ == "__main__":
    main()
