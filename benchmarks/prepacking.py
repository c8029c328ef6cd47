"""Packing sequences of very different lengths (`rlcore.packing`) against padding them: log-normal lengths, of 16 to 511 tokens.

prefill     the transformers engine, asked for one token after each prompt, against itself with each prompt in a row of its own,
            padded, and against `model.generate`
logprobs    log-probs of the second half of each sequence, packed, against the learner's: sorted by length, cut into
            micro-batches (`rlcore.batch.cut_by_length`) and padded; and against one padded pass
learning    the same with gradients

`ratio` is the padded side's time over that of packing: above 1, packing is faster.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, Turns, arguments, endless, finish, timed

MEDIAN, SPREAD, SHORTEST, LONGEST = 64, 1.0, 16, 511  # tokens; of the logarithm, in nats


def skewed(count: int, vocabulary: int) -> list[tuple[int, ...]]:
    import numpy as np

    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(MEDIAN), SPREAD, count)), SHORTEST, LONGEST).astype(int)
    return [tuple(map(int, generator.integers(3, vocabulary, length))) for length in lengths]


def engine(packs: bool, model: str, count: int, threads: int) -> Measure:
    import torch

    from rlcore import packing
    from rlcore.models import ModelSpec, load_tokenizer
    from rlcore.types import Request, Sampling
    from rollout.engines.transformers import Transformers

    torch.set_num_threads(threads)
    if not packs:
        packing.first_fit = lambda lengths: [[i] for i in range(len(lengths))]
    tokenizer = load_tokenizer(model)
    made = Transformers(ModelSpec(model), tokenizer, [tokenizer.eos_token_id])
    prompts = skewed(count, made.model.config.vocab_size)
    asked = [Request(f"p{i}", 0, i, ids, Sampling(max_new_tokens=1)) for i, ids in enumerate(prompts)]

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "prefill"):
            made.generate(asked)
        return result

    return measure


def model_generate(model: str, count: int, threads: int) -> Measure:
    import torch

    from rlcore.models import ModelSpec, load_tokenizer

    torch.set_num_threads(threads)
    tokenizer, loaded = load_tokenizer(model), ModelSpec(model).load().eval()
    tokenizer.padding_side = "left"
    prompts = [list(ids) for ids in skewed(count, loaded.config.vocab_size)]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(loaded.device)

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "prefill"):
            loaded.generate(**batch, do_sample=True, top_k=0, max_new_tokens=1, pad_token_id=tokenizer.pad_token_id)
        return result

    return measure


def learner(cut: str, model: str, count: int, budget: int, threads: int) -> Measure:
    """`cut`: packed, sorted or whole."""
    import torch

    from rlcore.batch import cut_by_length
    from rlcore.models import ModelSpec

    torch.set_num_threads(threads)
    loaded = ModelSpec(model).load()
    sequences = skewed(count, loaded.config.vocab_size)
    lengths = {i: len(ids) for i, ids in enumerate(sequences)}
    parts = {"packed": _bounded(sequences, budget), "sorted": list(cut_by_length(lengths, budget)), "whole": [list(lengths)]}[
        cut
    ]
    one = _packed if cut == "packed" else _padded

    def measure() -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "logprobs"), torch.no_grad():
            for part in parts:
                one(loaded, [sequences[i] for i in part])
        with timed(result, "learning"):
            for part in parts:
                one(loaded, [sequences[i] for i in part]).sum().backward()
        loaded.zero_grad(set_to_none=True)
        return result

    return measure


def _bounded(sequences: Sequence[tuple[int, ...]], budget: int) -> list[list[int]]:
    """Longest first, as many at a time as have `budget` tokens in all."""
    parts: list[list[int]] = []
    spent = budget
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        if spent + len(sequences[i]) > budget:
            parts.append([])
            spent = 0
        parts[-1].append(i)
        spent += len(sequences[i])
    return parts


def _halves(sequences: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [ids[: len(ids) // 2] for ids in sequences], [ids[len(ids) // 2 :] for ids in sequences]


def _padded(model: Any, sequences: Sequence[tuple[int, ...]]) -> Any:
    import torch

    from rlcore.batch import pad
    from trainers.logprobs import token_logprobs

    prompts, tokens = _halves(sequences)
    return token_logprobs(model, prompts, pad(tokens, torch.long), [len(t) for t in tokens], 1.0, 1)[0]


def _packed(model: Any, sequences: Sequence[tuple[int, ...]]) -> Any:
    import torch

    from rlcore.batch import pad
    from rlcore.packing import pack
    from trainers.logprobs import predicting, token_logprobs_after

    prompts, tokens = _halves(sequences)
    packed = pack(sequences, model.device)
    hidden = model.get_decoder()(
        packed.ids, position_ids=packed.positions, attention_mask=packed.mask, use_cache=False
    ).last_hidden_state
    column = torch.arange(int(packed.length.max()), device=model.device).clamp(max=packed.ids.shape[1] - 1)
    unpacked = hidden[packed.row[:, None], (packed.start[:, None] + column).clamp(max=hidden.shape[1] - 1)]
    picked, where = predicting(unpacked, prompts, [len(t) for t in tokens])
    return token_logprobs_after(model, picked, where, pad(tokens, torch.long), 1.0, 1)[0]


def turns(sides: Mapping[str, Any], options: Any, **settings: Any) -> dict[str, dict[str, float]]:
    bound = {name: functools.partial(side, **settings, threads=options.threads) for name, side in sides.items()}
    with Turns(bound) as running:
        return running.run(options.warmup, options.repeats)


def compare(model: str, options: Any, count: int) -> dict[str, Any]:
    print(f"{model}: {count} sequences", file=sys.stderr)
    asked = {"packed": functools.partial(engine, True), "padded": functools.partial(engine, False), "generate": model_generate}
    prefill = turns(asked, options, model=model, count=count)
    cuts = {cut: functools.partial(learner, cut) for cut in ("packed", "sorted", "whole")}
    learned = turns(cuts, options, model=model, count=count, budget=options.budget)
    ratios = {
        f"{name} against {side}": learned[side][name] / learned["packed"][name]
        for name in ("logprobs", "learning")
        for side in ("sorted", "whole")
    }
    for side in ("padded", "generate"):
        ratios[f"prefill against {side}"] = prefill[side]["prefill"] / prefill["packed"]["prefill"]
    return {"sequences": count, "ratios": ratios, "prefill": prefill, "learner": learned}


def main() -> None:
    options = arguments(__doc__ or "", toy="scratch:llama-1m", small="smollm2-135m", budget=16384, warmup=1, repeats=5)
    result: dict[str, Any] = {"budget": options.budget}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, count in (("toy", options.toy, 128), ("small", options.small, 32)):
            if model:
                result[name] = {"model": model, **compare(str(endless(model, Path(folder) / name)), options, count)}
    finish(result, options)


if __name__ == "__main__":
    main()
