"""Trees against independent completions: the tokens that a step's completions cost, and the time that sampling them takes, with
the same vLLM engine, prompts and number of leaves.

`saved` is the share of the leaves' tokens that was not computed: 0 for independent completions. `ratio` is the time of
independent sampling per token of the completions over that of trees: above 1, trees are faster.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.common import Measure, arguments, finish, timed
from benchmarks.sampler import compare, requests


def side(segment: int, model: str, prompts: int, samples: int, length: int, threads: int) -> Measure:
    """Trees of that segment; independent completions where it is 0."""
    import torch

    from rlcore.models import ModelSpec, load_tokenizer
    from rollout.engines.vllm import Vllm
    from rollout.tree import TreeEngine, computed_tokens

    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(model)
    plain = Vllm(ModelSpec(model), tokenizer, [tokenizer.eos_token_id])
    engine = TreeEngine(plain, leaves=samples, segment=segment, first=2, branches=2) if segment else plain
    asked = requests(tokenizer, prompts, samples, length)

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "generate"):
            leaves = engine.generate(asked)
        result["tokens"] = sum(len(leaf.token_ids) for leaf in leaves)
        result["computed"] = computed_tokens(leaves, segment) if segment else result["tokens"]
        return result

    return measure


def main() -> None:
    options = arguments(__doc__ or "", toy="toy:chain", small="smollm2-135m", warmup=1, repeats=5)
    from rlcore import models
    from rlcore.toy import warmstart

    toy: dict[str, Any] = dict(model=warmstart.resolve(options.toy, 0), prompts=32, samples=8, length=64)
    small: dict[str, Any] = dict(model=models.locate(options.small), prompts=4, samples=8, length=64)
    result = {}
    for name, segment, settings in (("toy", 4, toy), ("toy", 8, toy), ("small", 16, small)):
        print(f"{name}, segments of {segment}", file=sys.stderr)
        sides = {"tree": functools.partial(side, segment), "independent": functools.partial(side, 0)}
        row = compare(sides, options, **settings)
        tree = row["sides"]["tree"]
        result[f"{name}/{segment}"] = {**row, "segment": segment, "saved": 1 - tree["computed"] / tree["tokens"]}
    finish(result, options)


if __name__ == "__main__":
    main()
