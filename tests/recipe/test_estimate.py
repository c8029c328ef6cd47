"""Memory by hand: a model of round numbers, each line multiplied out here as it is in no code."""

from __future__ import annotations

import pytest

from rlcore.recipe.estimate import Shape, memory, pairs_memory
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Preference
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm

SHAPE = Shape(parameters=1000, layers=2, hidden=10, vocabulary=50, kv_width=4)
BASE = [
    "quickstart",
    "eval=null",
    "dtype=bfloat16",
    "rollout={prompts_per_step: 3, samples: 2, max_new_tokens: 20, engine: {name: transformers, batch_size: 4}}",
    "update={tokens_per_microbatch: 100, logits_chunk: 30}",
    "algorithm.kl.coefficient=0.1",
]


@pytest.mark.parametrize(
    ("trained", "different"),
    [
        ("lora=null", {}),
        (
            "lora={rank: 2}",  # 18 · 2 · 10 · 2 = 720 parameters in the adapters
            {
                "trained weights": 6880,  # 4 · (1000 + 720)
                "gradients and optimiser": 8640,  # 12 · 720
                "reference model": 0,  # the policy with its adapters switched off
            },
        ),
        (
            "lora={rank: 2, serve: adapter}",
            {
                "trained weights": 6880,
                "gradients and optimiser": 8640,
                "copy of the weights for a sync": 1440,  # 2 bytes · 720
                "reference model": 0,
            },
        ),
        (
            "outliers={share: 0.05}",
            {
                "trained weights": 4200,  # 4 · (1000 + 50)
                "gradients and optimiser": 600,  # 12 · 50
                "weights with the outliers": 2000,  # 2 bytes · 1000
                "copy of the weights for a sync": 300,  # (2 bytes and 4 of the place) · 50
                "reference model": 0,
            },
        ),
    ],
)
def test_memory_of_a_worked_example(trained: str, different: dict[str, int]) -> None:
    """The longest sequence is 5 + 20 tokens; four of the six are decoded together."""
    recipe = load([*BASE, "quantised_base=rtn", trained]).recipe
    assert isinstance(recipe, RL)
    expected = {
        "trained weights": 4000,  # 4 bytes · 1000
        "gradients and optimiser": 12000,  # a gradient and two moments: 3 · 4 · 1000
        "rollout copy of the weights": 2000,  # 2 bytes · 1000
        "copy of the weights for a sync": 2000,  # as served: 2 bytes · 1000
        "reference model": 4000,  # 4 · 1000
        "key-value cache": 3200,  # 4 rows · 25 tokens · 2 layers · keys and values of 4 · 2 bytes
        "activations of a micro-batch": 80000,  # 100 tokens · 2 layers · 20 vectors of 10 · 2 bytes
        "logits of a chunk": 18000,  # logits, their softmax and gradient: 3 · 30 positions · 50 · 4 bytes
    }
    assert memory(recipe, SHAPE, 5, Transformers) == {"this process": expected | different}


def test_a_draft_model_is_a_second_copy_for_the_rollouts() -> None:
    """Its keys and values are in vLLM's cache, which is as large as it is said to be."""
    drafter = "rollout.drafter={name: compressed, methods: rtn}"
    without, drafted = (load([*BASE, "rollout.engine=vllm", *more]).recipe for more in ([], [drafter]))
    assert isinstance(without, RL)
    assert isinstance(drafted, RL)
    expected = memory(without, SHAPE, 5, Vllm)["this process"] | {"draft model": 2000}  # 2 bytes · 1000
    assert memory(drafted, SHAPE, 5, Vllm, drafting=1000) == {"this process": expected}


def test_a_reward_that_learns_takes_a_second_model_to_train_and_its_reference() -> None:
    recipe = load(BASE).recipe
    assert isinstance(recipe, RL)
    without, both = (memory(recipe, SHAPE, 5, Transformers, learned)["this process"] for learned in ((), ("mine",)))
    assert both == without | {
        "mine's model": 4000,
        "mine's reference": 4000,
        "mine's gradients and optimiser": 12000,
        "mine's activations of a micro-batch": 80000,
        "mine's logits of a chunk": 18000,
    }


@pytest.mark.parametrize(
    ("zero", "weights", "rest"),
    [
        (0, 4000, 12000),
        (1, 4000, 7000),  # a gradient; of two moments and the weights that are stepped, half: 4 · 1000 + 12 · 1000 / 4
        (2, 4000, 4000),  # of all that, a quarter
        (3, 1000, 4000),
    ],
)
def test_memory_of_the_processes_of_a_cluster(zero: int, weights: int, rest: int) -> None:
    recipe = load([*BASE, f"cluster={{workers: 3, ranks: 4, zero: {zero}, bucket_mb: 0.0005, reference: own}}"]).recipe
    assert isinstance(recipe, RL)
    assert memory(recipe, SHAPE, 5, Transformers) == {
        "each of 3 workers": {"rollout copy of the weights": 2000, "key-value cache": 1600},  # 2 rows
        "each of 4 ranks": {
            "trained weights": weights,
            "gradients and optimiser": rest,
            "copy of the weights for a sync": 1048,  # two buckets of 524 bytes
            "activations of a micro-batch": 80000,
            "logits of a chunk": 18000,
        },
        "the reference model's process": {"reference model": 4000},
    }


def test_models_that_a_reward_holds_are_in_the_process_that_launches() -> None:
    for cluster, alone in (("cluster=null", False), ("cluster={workers: 2}", True)):
        recipe = load([*BASE, cluster]).recipe
        assert isinstance(recipe, RL)
        found = memory(recipe, SHAPE, 5, Transformers, loaded={"liked": 7})["this process"]
        assert found["liked's models"] == 7
        assert (len(found) == 1) is alone


@pytest.mark.parametrize(("longest", "held"), [(25, 100), (60, 120)])
def test_memory_of_learning_from_pairs(longest: int, held: int) -> None:
    """A micro-batch holds a pair at least: two answers of the longest, each after its prompt."""
    update = "update={tokens_per_microbatch: 100, logits_chunk: 30}"
    recipe = load(["lpc_chain", "dtype=bfloat16", update]).recipe
    assert isinstance(recipe, Preference)
    assert pairs_memory(recipe, SHAPE, longest) == {
        "this process": {
            "trained weights": 4000,  # 4 bytes · 1000
            "gradients and optimiser": 12000,  # 3 · 4 · 1000
            "activations of a micro-batch": held * 2 * 20 * 10 * 2,  # tokens · layers · vectors of 10 · 2 bytes
            "logits of a chunk": 18000,  # 3 · 30 positions · 50 · 4 bytes
        }
    }
