"""Our engines against what they are built on, on the same prompts and settings: the transformers engine against
`model.generate`, the vLLM engine against bare vLLM.

Workloads: a warm-started toy that ends its answers where it likes (what RL samples), a toy whose completions are all 64 tokens
long, and SmolLM2-135M with 32 tokens at most. `ratio` is their time per token over ours: above 1 we are faster.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, Turns, arguments, endless, finish, timed
from rlcore.types import Request, Sampling


def requests(tokenizer: Any, prompts: int, samples: int, length: int) -> list[Request]:
    texts = [f"{i % 10}+{i // 10 % 10}-{i % 7}+3=?\n" for i in range(prompts)]
    ids = [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    sampling = Sampling(max_new_tokens=length)
    return [Request(f"p{i}", k, i * samples + k, ids[i], sampling) for i in range(prompts) for k in range(samples)]


def ours(engine_name: str, model: str, prompts: int, samples: int, length: int, threads: int) -> Measure:
    import torch

    from rlcore import plugins
    from rlcore.models import ModelSpec, load_tokenizer

    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(model)
    engine = plugins.find("rollout.engines", engine_name)(ModelSpec(model), tokenizer, [tokenizer.eos_token_id])
    asked = requests(tokenizer, prompts, samples, length)

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "generate"):
            completions = engine.generate(asked)
        result["tokens"] = sum(len(c.token_ids) for c in completions)
        return result

    return measure


def model_generate(model: str, prompts: int, samples: int, length: int, threads: int) -> Measure:
    import torch

    from rlcore.models import ModelSpec, load_tokenizer

    torch.set_num_threads(threads)
    tokenizer, loaded = load_tokenizer(model), ModelSpec(model).load().eval()
    asked = [list(request.prompt_ids) for request in requests(tokenizer, prompts, samples, length)]
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": asked}, return_tensors="pt").to(loaded.device)
    width = batch["input_ids"].shape[1]

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "generate"):
            ids = loaded.generate(**batch, do_sample=True, top_k=0, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id)[
                :, width:
            ]
        ended = ids == tokenizer.eos_token_id
        result["tokens"] = (ended.cumsum(1) - ended.long() == 0).sum().item()
        return result

    return measure


def bare_vllm(model: str, prompts: int, samples: int, length: int, threads: int) -> Measure:
    """vLLM's own `generate`, with a seed and the sampled tokens' log-probs for each request, as RL needs them."""
    import os

    from rollout.engines.vllm import DEFAULT_CACHE_GB, ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams

    from rlcore.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        logprobs_mode="processed_logprobs",
        kv_cache_memory_bytes=int(DEFAULT_CACHE_GB * 2**30),
        generation_config="vllm",
    )
    asked = requests(tokenizer, prompts, samples, length)
    prompt_ids = [{"prompt_token_ids": list(request.prompt_ids)} for request in asked]
    stop = [tokenizer.eos_token_id]
    params = [SamplingParams(max_tokens=length, seed=r.seed, logprobs=0, stop_token_ids=stop) for r in asked]

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "generate"):
            outputs = llm.generate(prompt_ids, params, use_tqdm=False)
        result["tokens"] = sum(len(output.outputs[0].token_ids) for output in outputs)
        return result

    return measure


def compare(sides: Mapping[str, Any], options: Any, **settings: Any) -> dict[str, Any]:
    bound = {name: functools.partial(side, **settings, threads=options.threads) for name, side in sides.items()}
    with Turns(bound) as turns:
        measured = turns.run(options.warmup, options.repeats)
    mine, theirs = measured.values()
    # Per token: where answers end as they like, the two sides do not sample the same number.
    ratio = theirs["generate"] / theirs["tokens"] / (mine["generate"] / mine["tokens"])
    return {**{k: v for k, v in settings.items() if k != "model"}, "ratio": ratio, "sides": measured}


def main() -> None:
    options = arguments(__doc__ or "", toy="toy:chain", toy_size="scratch:llama-1m", small="smollm2-135m", warmup=2, repeats=5)
    from rlcore import models
    from rlcore.toy import warmstart

    transformers = {"transformers engine": functools.partial(ours, "transformers"), "model.generate": model_generate}
    vllm = {"vllm engine": functools.partial(ours, "vllm"), "vllm": bare_vllm}
    with tempfile.TemporaryDirectory() as folder:
        long = {name: str(endless(name, Path(folder) / name.replace(":", "-"))) for name in (options.toy_size, options.small)}
        own_length = dict(model=warmstart.resolve(options.toy, 0), prompts=32, samples=8, length=64)
        fixed_length = dict(model=long[options.toy_size], prompts=16, samples=8, length=64)
        small = dict(prompts=4, samples=4, length=32)
        workloads = [
            ("transformers/toy", transformers, own_length),
            ("transformers/toy_fixed_length", transformers, fixed_length),
            ("transformers/small", transformers, {**small, "model": long[options.small]}),
            ("vllm/toy", vllm, own_length),
            ("vllm/small", vllm, {**small, "model": models.locate(options.small)}),  # vLLM wants an end token that exists
        ]
        result = {}
        for name, sides, settings in workloads:
            print(name, file=sys.stderr)
            result[name] = compare(sides, options, **settings)
    finish(result, options)


if __name__ == "__main__":
    main()
