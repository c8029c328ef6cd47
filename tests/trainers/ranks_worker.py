"""What each rank of `test_backends.py` does: `python ranks_worker.py FOLDER RANK WORLD`. Reads cases.json, writes what came
out."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rlcore.batch import TrainingBatch
from rlcore.models import load_tokenizer
from rlcore.recipe.load import load
from rlcore.run.metrics import Max, Metrics
from trainers import algorithm
from trainers.backends.torch import Torch
from trainers.build import build_learner, build_policy, build_reference


def run(case: dict[str, Any], model: str, batches: list[TrainingBatch], folder: Path, write: bool) -> None:
    """Some updates, from a checkpoint or the start; then everything a driver could ask of the learner."""
    recipe: Any = load(["quickstart", f"model={model}", "device=cpu", "eval=null", *case["overrides"]]).recipe
    policy = build_policy(recipe, model)
    if case["zero"] is None:
        backend: Any = Torch
    else:
        from trainers.backends.deepspeed import DeepSpeed

        backend = partial(DeepSpeed, zero=case["zero"], offload=False)
    learner = build_learner(
        recipe, policy, load_tokenizer(model), algorithm.objective(recipe), backend=backend, bucket_bytes=9000
    )
    reference = build_reference(recipe, model, policy, learner.module)
    if case["load"]:
        learner.load(folder.parent / case["load"])
    metrics = [learner.update(batch) for batch in batches[slice(*case["steps"])]]
    update = learner.weights(7)
    sent = {name: tensor.clone() for bucket in update.buckets for name, tensor in bucket.tensors.items()}
    assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == update.manifest.shapes
    if write:
        folder.mkdir()
    learner.save(folder)
    logprobs = {"logprobs": learner.logprobs(batches[0].graded)}
    if reference is not None:
        logprobs["reference"] = reference.logprobs(batches[0].graded)
    if write:
        save_file(sent, folder / "sent.safetensors")
        save_file(logprobs, folder / "logprobs.safetensors")
    report = folder.with_name(f"{folder.name}.metrics.{dist.get_rank() if dist.is_initialized() else 0}.json")
    report.write_text(json.dumps([plain(step) for step in metrics]))


def plain(metrics: Metrics) -> dict[str, list[float]]:
    return {name: [m.value] if isinstance(m, Max) else [m.total, m.count] for name, m in metrics.items()}


def main(folder: Path, rank: int, world: int) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    with torch.serialization.safe_globals([]):
        batches = torch.load(folder / "batches.pt", weights_only=False)  # written by the test itself
    for case in json.loads((folder / "cases.json").read_text()):
        if world == 1 or case["zero"] is not None:
            run(case, str(folder / "model"), batches, folder / case["name"], write=rank == 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
