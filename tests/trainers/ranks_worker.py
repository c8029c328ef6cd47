"""What each rank of `test_backends.py` does: `python ranks_worker.py FOLDER RANK WORLD` runs what cases.json says, and leaves
what came out in a folder for each case."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rlcore.batch import TrainingBatch
from rlcore.errors import UserError
from rlcore.models import load_tokenizer
from rlcore.recipe.load import load
from rlcore.run.metrics import Max, Metrics
from tests.conftest import batch_of
from trainers import algorithm
from trainers.backends.torch import Torch
from trainers.build import build_learner, build_policy, build_reference
from trainers.learner import Learner
from trainers.quantised_base import start_of
from trainers.scorer import rank


def run(case: dict[str, Any], folder: Path) -> None:
    """Some updates, from a checkpoint or the start; then everything a driver could ask of the learner."""
    model, own, steps = str(folder / "model"), folder / case["name"], batches()
    usual = [f"model={model}", f"output={folder}", "device=cpu", "eval=null"]
    recipe: Any = load(["quickstart", *usual, *case["overrides"]]).recipe
    model = start_of(recipe, model)  # in this folder, by the first case that has one
    policy = build_policy(recipe, model)
    if case["zero"] is None:
        backend: Any = Torch
    else:
        from trainers.backends.deepspeed import DeepSpeed

        backend = partial(DeepSpeed, zero=case["zero"], offload=case["offload"])
    learner = build_learner(
        recipe, policy, load_tokenizer(model), algorithm.objective(recipe), backend=backend, bucket_bytes=9000
    )
    reference = build_reference(recipe, model, policy, learner.module)
    if case["load"]:
        learner.load(folder / case["load"])
    metrics = [learner.update(batch) for batch in steps[slice(*case["steps"])]]
    update = learner.weights(7)
    sent = {name: tensor.clone() for bucket in update.buckets for name, tensor in bucket.tensors.items()}
    assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == update.manifest.shapes
    own.mkdir(exist_ok=True)
    learner.save(own)
    logprobs = {"logprobs": learner.logprobs(steps[0].graded)}
    if reference is not None:
        logprobs["reference"] = reference.logprobs(steps[0].graded)
    (own / f"metrics.{rank()}.json").write_text(json.dumps([plain(step) for step in metrics]))
    (own / f"poisoned.{rank()}.json").write_text(json.dumps(poisoned(learner, steps[0])))
    if not rank():
        save_file(sent, own / "sent.safetensors")
        save_file(logprobs, own / "logprobs.safetensors")


def poisoned(learner: Learner, batch: TrainingBatch) -> dict[str, Any]:
    """What an update whose gradient is not finite says, and which weights it changes."""

    def checksums() -> dict[str, int]:
        return {name: value for bucket in learner.weights(8).buckets for name, value in bucket.checksums.items()}

    before, said = checksums(), ""
    try:
        learner.update(replace(batch, advantages=batch.advantages * torch.nan))
    except UserError as error:
        said = str(error)
    return {"said": said, "changed": [name for name, value in checksums().items() if value != before[name]]}


def plain(metrics: Metrics) -> dict[str, list[float]]:
    return {name: [m.value] if isinstance(m, Max) else [m.total, m.count] for name, m in metrics.items()}


def batches() -> list[TrainingBatch]:
    """Five steps of nine completions of other lengths, but for one that has a single completion: fewer than ranks."""
    made = []
    for seed in range(5):
        lengths = [1 + (7 * i + 3 * seed) % 13 for i in range(1 if seed == 3 else 9)]
        graded = batch_of([float(i % 2) for i in range(len(lengths))], [i // 3 for i in range(len(lengths))], lengths, seed)
        advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(seed)) * graded.present
        made.append(TrainingBatch(graded, advantages, graded.rollout_logprobs))
    return made


def keep_whole_only_what_is_small() -> None:
    """ZeRO-3 leaves tensors of less than 1e5 elements whole on every rank: all that a tiny model has. Here its norms only."""
    import deepspeed

    real = deepspeed.initialize

    def initialize(*, config: dict[str, Any], **rest: Any) -> Any:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 1000
        return real(config=config, **rest)

    deepspeed.initialize = initialize


def main(folder: Path, number: int, world: int) -> None:
    keep_whole_only_what_is_small()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    for case in json.loads((folder / "cases.json").read_text()):
        run(case, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
