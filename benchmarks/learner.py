"""The learner against a bare forward and backward pass of the same tokens, with the same optimiser step.

Bare is what one would write by hand: the padded batch through the model, log-softmax of all logits, gather, sum, backward,
AdamW. Ours also cuts, sorts, measures entropies, ratios and mismatch. `ratio` is the bare time over ours. Memory is the peak
above weights, gradients and optimiser.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.common import Measure, Memory, Turns, arguments, finish, timed


def batch_of(vocabulary: int, completions: int, length: int) -> Any:
    import torch

    from rlcore.batch import GradedBatch
    from rlcore.types import Sampling

    generator = torch.Generator().manual_seed(0)
    shape = (completions, length)
    ones, zeros = torch.ones(shape), torch.zeros(shape)
    return GradedBatch(
        prompt_ids=[tuple(range(3, 15))] * completions,
        tokens=torch.randint(3, vocabulary, shape, generator=generator),
        present=ones,
        loss_mask=ones,
        rollout_logprobs=-ones,
        versions=zeros.long(),
        truncated=torch.zeros(completions, dtype=torch.bool),
        sampling=Sampling(),
        group=torch.arange(completions) // 8,
        rewards={"answer": zeros},
        accuracy=torch.zeros(completions),
    )


def ours(model: str, completions: int, length: int, threads: int) -> Measure:
    import torch

    from rlcore.batch import TrainingBatch
    from rlcore.models import ModelSpec, load_tokenizer
    from rlcore.recipe.schema import Optimizer, Update
    from trainers.learner import Learner
    from trainers.losses.ppo_clip import ppo_clip
    from trainers.objective import Objective

    torch.set_num_threads(threads)
    loaded, tokenizer = ModelSpec(model).load(), load_tokenizer(model)
    learner = Learner(
        loaded,
        tokenizer,
        Objective(ppo_clip),
        optimizer=Optimizer(),
        update=Update(tokens_per_microbatch=completions * (length + 12)),
        aggregate="token_mean",
        constant_length=length,
        dtype="float32",
        total_steps=1000,
    )
    graded = batch_of(loaded.config.vocab_size, completions, length)
    advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(1))
    memory = Memory(loaded)

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        memory.forget()
        with timed(result, "update"):
            learner.update(TrainingBatch(graded, advantages, None))
        memory.mark(result, "update")
        return result

    return measure


def bare(model: str, completions: int, length: int, threads: int) -> Measure:
    import torch

    from rlcore.models import ModelSpec

    torch.set_num_threads(threads)
    loaded = ModelSpec(model).load().train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-6, weight_decay=0.0)
    graded = batch_of(loaded.config.vocab_size, completions, length)
    advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(1))
    prompt = torch.tensor(graded.prompt_ids)
    ids = torch.cat([prompt, graded.tokens], 1)
    memory = Memory(loaded)

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        memory.forget()
        with timed(result, "update"):
            optimizer.zero_grad(set_to_none=True)
            logits = loaded(ids, use_cache=False).logits[:, prompt.shape[1] - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(2, graded.tokens[:, :, None])[:, :, 0]
            (-(logprobs * advantages).mean()).backward()
            torch.nn.utils.clip_grad_norm_(loaded.parameters(), 1.0)
            optimizer.step()
        memory.mark(result, "update")
        return result

    return measure


def compare(model: str, options: Any, completions: int, length: int) -> dict[str, Any]:
    from rlcore import models

    settings = dict(model=models.locate(model), completions=completions, length=length, threads=options.threads)
    print(f"{model}: {completions} completions of {length} tokens", file=sys.stderr)
    with Turns({"learner": functools.partial(ours, **settings), "bare": functools.partial(bare, **settings)}) as turns:
        measured = turns.run(options.warmup, options.repeats)
    mine, theirs = measured["learner"], measured["bare"]
    return {
        "model": model,
        "completions": completions,
        "length": length,
        "ratio": theirs["update"] / mine["update"],
        "memory_ratio": mine["update_bytes"] / theirs["update_bytes"],
        "sides": measured,
    }


def main() -> None:
    options = arguments(__doc__ or "", toy="scratch:llama-1m", small="smollm2-135m", warmup=2, repeats=5)
    toy = compare(options.toy, options, completions=128, length=64)
    finish({"toy": toy, "small": compare(options.small, options, completions=8, length=64)}, options)


if __name__ == "__main__":
    main()
