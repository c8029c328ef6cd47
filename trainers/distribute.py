"""The parts of `trainers.build` spread over a Ray cluster: rollout workers in place of the engine, ranks in place of the
learner, judges in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from rewards.judge import Judge
from rewards.process.prime import Prime
from rewards.service import Judges
from rlcore import models
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.schema import RL, Cluster
from rollout.pool import Pool
from trainers import algorithm
from trainers.build import (
    build_codec,
    build_critic,
    build_engine,
    build_implicit,
    build_learner,
    build_policy,
    build_reference,
    build_start,
)
from trainers.group import LearnerGroup, LearnerRank, RemoteReference, RemoteSender
from trainers.ranks import Ranks
from trainers.scorer import Scorer

JOINING_S = 120.0
PASSED_ON = ("HF_", "RLCORE_", "VLLM_", "NCCL_", "TOKENIZERS_", "TRANSFORMERS_")  # how environment variables begin


def refuse_few_gpus(recipe: RL, cluster: Cluster, learned_rewards: int, judging_rewards: int) -> None:
    """Raise UserError where the Ray cluster has fewer GPUs than the recipe asks for, `learned_rewards` of its components with
    ranks of their own and `judging_rewards` with judges, after some patience with nodes that are still to join; a cluster of
    this machine never gets more."""
    import ray

    ranks = cluster.ranks * (1 + recipe.algorithm.has_own_critic + learned_rewards)
    ranks += cluster.reference == "own" and recipe.algorithm.kl.coefficient > 0
    wanted = cluster.workers * cluster.gpus_per_worker + ranks * cluster.gpus_per_rank
    wanted += judging_rewards * cluster.judges * cluster.gpus_per_judge
    alone = ray.util.get_node_ip_address().startswith("127.")
    until = time.monotonic() + (0 if alone else JOINING_S)
    while (there := ray.cluster_resources().get("GPU", 0)) < wanted:
        if time.monotonic() >= until:
            raise UserError(f"the recipe's cluster asks for {wanted:g} GPUs, and the Ray cluster has {there:g}: ask for fewer")
        time.sleep(1)


def build_group(recipe: RL, cluster: Cluster, location: str, ending: ExitStack) -> tuple[LearnerGroup, RemoteReference | None]:
    """The learner, and the reference model where a KL term needs one. Returns before the processes have loaded anything; their
    first call waits for that."""
    ranks = _ranks(recipe, cluster, location, "learner rank", _learner_rank, cluster.ranks)
    ending.callback(ranks.close)
    learner = LearnerGroup(ranks, RemoteSender(ranks, cluster.tensor_parallel) if cluster.transport == "nccl" else None)
    if not recipe.algorithm.kl.coefficient:
        return learner, None
    if cluster.reference == "shared":
        return learner, RemoteReference(ranks, "reference_logprobs")
    own = _ranks(recipe, cluster, location, "reference model", _reference_rank, 1)
    ending.callback(own.close)
    return learner, RemoteReference(own, "logprobs")


def build_critic_group(recipe: RL, cluster: Cluster, location: str, ending: ExitStack) -> LearnerGroup:
    """The critic, on as many ranks of its own as the policy has."""
    ranks = _ranks(recipe, cluster, location, "critic rank", _critic_rank, cluster.ranks)
    ending.callback(ranks.close)
    return LearnerGroup(ranks)


def build_implicit_group(
    recipe: RL, cluster: Cluster, reward: Prime, location: str, ending: ExitStack
) -> tuple[LearnerGroup, RemoteReference]:
    """The implicit reward model on as many ranks of its own as the policy has, its reference in their processes."""
    ranks = _ranks(recipe, cluster, location, "reward model rank", partial(_implicit_rank, reward), cluster.ranks)
    ending.callback(ranks.close)
    return LearnerGroup(ranks), RemoteReference(ranks, "reference_logprobs")


def build_judges(recipe: RL, cluster: Cluster, make: Callable[[], Judge], ending: ExitStack) -> Judges:
    """What `make` makes, in processes of its own, ready to judge."""
    judges = Judges(
        make,
        workers=cluster.judges,
        gpus=cluster.gpus_per_judge,
        environment=_environment(recipe, cluster.judges, cluster.gpus_per_judge),
        deadline_s=cluster.deadline_s,
        max_restarts=cluster.max_restarts,
    )
    ending.callback(judges.close)
    return judges


def build_pool(recipe: RL, cluster: Cluster, location: str, tokenizer: PreTrainedTokenizerBase, prompter: Prompter) -> Pool:
    """The rollout workers, ready to sample."""
    return Pool(
        partial(build_engine, recipe, location, tokenizer, prompter),
        tokenizer,
        workers=cluster.workers,
        dtype=recipe.dtype,
        gpus=cluster.gpus_per_worker,
        environment=_environment(recipe, cluster.workers, cluster.gpus_per_worker),
        deadline_s=cluster.deadline_s,
        max_restarts=cluster.max_restarts,
    )


def _ranks(recipe: RL, cluster: Cluster, location: str, name: str, make: Callable[..., Any], count: int) -> Ranks:
    return Ranks(
        partial(make, recipe, cluster, location),
        name=name,
        count=count,
        gpus=cluster.gpus_per_rank,
        environment=_environment(recipe, count, cluster.gpus_per_rank)
        | {"DS_ACCELERATOR": "cuda" if cluster.gpus_per_rank else "cpu"},
        deadline_s=cluster.deadline_s,
    )


def _learner_rank(recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> LearnerRank:
    from trainers.backends.deepspeed import DeepSpeed

    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    codec = build_codec(recipe, location)
    policy = build_policy(recipe, location)
    backend = partial(DeepSpeed, zero=cluster.zero, offload=cluster.offload)
    bucket_bytes = int(cluster.bucket_mb * 2**20)
    objective = algorithm.objective(recipe)
    learner = build_learner(recipe, policy, tokenizer, objective, backend=backend, bucket_bytes=bucket_bytes, codec=codec)
    shared = cluster.reference == "shared"
    reference = build_reference(recipe, location, policy, learner.module) if shared else None
    return LearnerRank(learner, reference, rank)


def _critic_rank(recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> LearnerRank:
    from trainers.backends.deepspeed import DeepSpeed

    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    backend = partial(DeepSpeed, zero=cluster.zero, offload=cluster.offload)
    return LearnerRank(build_critic(recipe, location, tokenizer, backend=backend), None, rank)


def _implicit_rank(reward: Prime, recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> LearnerRank:
    from trainers.backends.deepspeed import DeepSpeed

    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    backend = partial(DeepSpeed, zero=cluster.zero, offload=cluster.offload)
    learner, reference = build_implicit(recipe, reward, location, tokenizer, backend=backend)
    return LearnerRank(learner, reference, rank)


def _reference_rank(recipe: RL, cluster: Cluster, location: str, rank: int, count: int) -> Scorer:
    return Scorer(build_start(recipe, location), recipe.update, recipe.dtype)


def _environment(recipe: RL, beside: int, gpus: float) -> dict[str, str]:
    """What a process inherits from this one, and its share of the cores: of a machine with so many of its kind. Those that ask
    for no GPU are to see none, and Ray would show them all."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    threads = recipe.threads or max(1, (os.cpu_count() or 1) // beside)
    return inherited | {"OMP_NUM_THREADS": str(threads)} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
