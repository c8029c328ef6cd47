"""One GRPO step here against one of TRL's GRPOTrainer: the same model, dtype, micro-batch, threads, reward and log interval.

Three workloads: a toy of 0.8 M parameters and SmolLM2-135M whose completions all have the longest length (`common.endless`), so
that a step is the same work on both sides, and the quickstart's toy, which ends its answers where it likes, as in training. TRL
runs with and without its continuous batching, and the faster of the two counts. Memory is the peak of sampling and of learning
above weights, gradients and optimiser (and here the engine's copy of the weights).
"""

from __future__ import annotations

import functools
import json
import queue
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, Memory, Turns, arguments, endless, finish, timed
from rlcore.toy import warmstart

PROMPTS = [f"{a}+{b}-{c}+{d}=?\n" for a in range(10) for b in range(10) for c in range(3) for d in range(3)]


def rlcore_side(model: str, prompts: int, samples: int, length: int, threads: int, micro: int, fixed_length: bool) -> Measure:
    from rlcore.models import load_tokenizer
    from rlcore.recipe.load import load
    from rlcore.run.metrics import Mean, merge, values
    from rollout.sync import push
    from trainers.parts import build_parts
    from trainers.plan import plan

    longest_prompt = max(len(ids) for ids in load_tokenizer(model)(PROMPTS).input_ids)
    problems = Path(tempfile.mkdtemp()) / "problems.jsonl"
    problems.write_text("".join(json.dumps({"prompt": text, "answer": "0"}) + "\n" for text in PROMPTS))
    recipe: Any = load(
        [
            "quickstart",
            f"model={model}",
            f"data=[{{name: file, path: {problems}}}]",
            "eval=null",
            "stop.patience=null",
            "checkpoint.keep_best=null",
            "rewards=[{name: 'common:mean_of_digits'}]",
            f"threads={threads}",
            "dtype=float32",
            f"rollout={{prompts_per_step: {prompts}, samples: {samples}, max_new_tokens: {length}, temperature: 1.0}}",
            f"update={{tokens_per_microbatch: {micro * (longest_prompt + length)}}}",
            "optimizer.learning_rate=1.0e-6",
        ]
    ).recipe
    parts = build_parts(recipe, plan(recipe), model, ExitStack())
    step = 0
    push(parts.learner, parts.engine, 0, None, recipe.dtype)
    memory = Memory(parts.learner.model)

    def measure() -> Mapping[str, float]:
        nonlocal step
        step += 1
        result: dict[str, float] = {}
        memory.forget()
        with timed(result, "step"):
            with timed(result, "generate"):
                rollouts = parts.sampler.collect(step)
            with timed(result, "grade"):
                graded = parts.rewards.grade(rollouts.groups, rollouts.verified)
                changed = parts.rewards.update(graded)
            memory.mark(result, "sample")
            with timed(result, "learn"):
                batch, prepared = parts.prepare(graded.batch)
                learned = parts.learner.update(batch)
            memory.mark(result, "learn")
            with timed(result, "sync"):
                parity = push(parts.learner, parts.engine, step, graded.batch, parts.dtype).parity
            values(merge([graded.metrics, changed, prepared, learned, {"parity": Mean(parity, 1)}]))
        lengths = {len(c.token_ids) for group in rollouts.groups for c in group.completions}
        assert not fixed_length or lengths == {length}
        return result

    return measure


def trl_side(
    model: str, prompts: int, samples: int, length: int, threads: int, micro: int, fixed_length: bool, continuous_batching: bool
) -> Measure:
    """TRL's own `train()`, held before each step until it is this side's turn."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.common import mean_of_digits

    torch.set_num_threads(threads)
    turn: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[dict[str, float]] = queue.Queue()
    result: dict[str, float] = {}
    clock: list[Any] = []

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn.get()
            result.clear()
            memory.forget()
            clock[:] = [timed(result, "step")]
            clock[0].__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock[0].__exit__(None, None, None)
            memory.mark(result, "learn")
            result["learn"] = result["step"] - result["generate"] - result["grade"]
            done.put(dict(result))

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with timed(result, "generate"):
                return super()._generate_single_turn(*args, **kwargs)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with timed(result, "grade"):
                return super()._calculate_rewards(*args, **kwargs)

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            mask = inputs["completion_mask"]
            assert not fixed_length or mask.sum().item() == len(mask) * length
            if "sample_bytes" not in result:
                memory.mark(result, "sample")
            return super()._compute_loss(model, inputs)

    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=mean_of_digits,
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        callbacks=[Gate()],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=prompts * samples // micro,
            num_generations=samples,
            max_completion_length=length,
            max_steps=10**6,
            learning_rate=1e-6,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            beta=0.0,
            temperature=1.0,
            use_transformers_continuous_batching=continuous_batching,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    memory = Memory(trainer.model)
    threading.Thread(target=trainer.train, daemon=True).start()

    def measure() -> Mapping[str, float]:
        turn.put(True)
        return done.get(timeout=1800)

    return measure


def compare(model: str, options: Any, prompts: int, samples: int, micro: int, fixed_length: bool) -> dict[str, Any]:
    settings = dict(prompts=prompts, samples=samples, length=options.length, threads=options.threads, micro=micro)
    print(f"{model}: {prompts * samples} completions of up to {options.length} tokens", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        location = str(endless(model, Path(folder))) if fixed_length else warmstart.resolve(model, 0)
        bind = functools.partial(functools.partial, model=location, fixed_length=fixed_length, **settings)
        trl = {
            "trl": bind(trl_side, continuous_batching=False),
            "trl_continuous": bind(trl_side, continuous_batching=True),
        }
        with Turns(trl) as turns:
            tried = turns.run(warmup=1, repeats=1)
        faster = min(tried, key=lambda side: tried[side]["step"])
        with Turns({"rlcore": bind(rlcore_side), faster: trl[faster]}) as turns:
            measured = turns.run(options.warmup, options.repeats)
    ours, theirs = measured["rlcore"], measured[faster]
    return {
        "model": model,
        "completions": prompts * samples,
        "tokens_at_most": options.length,
        "ratio": theirs["step"] / ours["step"],
        "parts": {part: theirs.get(part, 0.0) / ours[part] for part in ("generate", "grade", "learn")},
        "memory_ratio": {phase: ours[f"{phase}_bytes"] / theirs[f"{phase}_bytes"] for phase in ("sample", "learn")},
        "sides": measured,
        "trl_tried": {side: values["step"] for side, values in tried.items()},
    }


def main() -> None:
    options = arguments(__doc__ or "", warmup=3, repeats=7, length=64)
    result = {
        "toy": compare("scratch:llama-1m", options, prompts=16, samples=8, micro=32, fixed_length=True),
        "toy_own_length": compare("toy:chain", options, prompts=16, samples=8, micro=32, fixed_length=False),
        "small": compare("smollm2-135m", options, prompts=2, samples=4, micro=8, fixed_length=True),
    }
    finish(result, options)


if __name__ == "__main__":
    main()
