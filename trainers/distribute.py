"""The parts of `trainers.build` spread over a Ray cluster: rollout workers in place of the engine, ranks in place of the
learner."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlcore import models
from rlcore.prompts import Prompter
from rlcore.recipe.schema import RL, Cluster
from rollout.pool import Pool
from trainers import algorithm
from trainers.build import build_engine, build_learner, build_policy, build_reference
from trainers.group import LearnerGroup, LearnerRank, RemoteScorer, RemoteSender
from trainers.ranks import Ranks
from trainers.scorer import Scorer

PASSED_ON = ("HF_", "RLCORE_", "VLLM_", "NCCL_", "TOKENIZERS_", "TRANSFORMERS_")  # how environment variables begin


def build_group(recipe: RL, cluster: Cluster, location: str) -> tuple[LearnerGroup, RemoteScorer | None]:
    """The learner, and the reference model where a KL term needs one. Returns before the processes have loaded anything; their
    first call waits for that."""
    ranks = _ranks(recipe, cluster, location, _learner_rank, cluster.ranks)
    learner = LearnerGroup(ranks, RemoteSender(ranks, cluster.tensor_parallel) if cluster.transport == "nccl" else None)
    if not recipe.algorithm.kl.coefficient:
        return learner, None
    if cluster.reference == "shared":
        return learner, RemoteScorer(learner.ranks, "reference_logprobs")
    return learner, RemoteScorer(_ranks(recipe, cluster, location, _reference_rank, 1), "logprobs")


def build_pool(recipe: RL, cluster: Cluster, location: str, tokenizer: PreTrainedTokenizerBase, prompter: Prompter) -> Pool:
    """The rollout workers, ready to sample."""
    return Pool(
        partial(build_engine, recipe, location, tokenizer, prompter),
        tokenizer,
        workers=cluster.workers,
        dtype=recipe.dtype,
        gpus=cluster.gpus_per_worker,
        environment=_environment(recipe, cluster.workers),
        deadline_s=cluster.deadline_s,
        max_restarts=cluster.max_restarts,
    )


def _ranks(recipe: RL, cluster: Cluster, location: str, make: Callable[..., Any], count: int) -> Ranks:
    return Ranks(
        partial(make, recipe, cluster, location),
        count=count,
        gpus=cluster.gpus_per_rank,
        environment=_environment(recipe, count) | {"DS_ACCELERATOR": "cuda" if cluster.gpus_per_rank else "cpu"},
        deadline_s=cluster.deadline_s,
    )


def _learner_rank(recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> LearnerRank:
    from trainers.backends.deepspeed import DeepSpeed

    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    policy = build_policy(recipe, location)
    backend = partial(DeepSpeed, zero=cluster.zero, offload=cluster.offload)
    bucket_bytes = int(cluster.bucket_mb * 2**20)
    objective = algorithm.objective(recipe)
    learner = build_learner(recipe, policy, tokenizer, objective, backend=backend, bucket_bytes=bucket_bytes)
    shared = cluster.reference == "shared"
    reference = build_reference(recipe, location, policy, learner.module) if shared else None
    return LearnerRank(learner, reference, rank)


def _reference_rank(recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> Scorer:
    reference = build_reference(recipe, location, build_policy(recipe, location))
    assert reference is not None  # asked for only where there is a KL term
    return reference


def _environment(recipe: RL, beside: int) -> dict[str, str]:
    """What a process inherits from this one, and its share of the cores: of a machine with so many of its kind."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    threads = recipe.threads or max(1, (os.cpu_count() or 1) // beside)
    return inherited | {"OMP_NUM_THREADS": str(threads)}
