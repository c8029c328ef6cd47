"""docs/performance.md from the JSON files that the benchmarks wrote: `report.py FOLDER`, the last step of `make bench`. The
section of a benchmark that left no file there stays as it is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
INTRODUCTION = """# Performance

Written by `make bench`; do not edit. Two sides take turns in processes of their own; times are medians, and what
counts is their ratio: above 1, rlcore is the faster one.
"""


def main(folder: Path) -> None:
    written = sections(PAGE.read_text()) if PAGE.exists() else {}
    for path in folder.glob("*.json"):
        if path.stem in RENDERED:
            heading, render = RENDERED[path.stem]
            result = json.loads(path.read_text())
            about = machine(result.pop("machine"))
            written[heading] = "\n".join([about, "", *render(result)])
    ordered = [(heading, written[heading]) for heading, _ in RENDERED.values() if heading in written]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([INTRODUCTION, *(f"## {heading}\n\n{text}\n" for heading, text in ordered)]))
    print(PAGE)


def sections(page: str) -> dict[str, str]:
    """Heading → what stands below it."""
    _, *parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    return {heading: text.strip("\n") for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def machine(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{about['cpu']}, {about['threads']} {'thread' if about['threads'] == 1 else 'threads'}; {versions}."


def step(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/step_vs_trl.py`. The same model, dtype, micro-batch, threads and reward. The completions of"
    yield "`toy` and `small` have one fixed length; in `toy_own_length` they end where they like, as in training. Memory: peak"
    yield "above weights, gradients and optimiser, ours over TRL's."
    yield ""
    yield from table(
        ("workload", "model", "TRL's step", "ours", "ratio", "generate", "learn", "memory: sample", "memory: learn"),
        [
            (
                name,
                row["model"],
                seconds(theirs(row)["step"]),
                seconds(row["sides"]["rlcore"]["step"]),
                f"**{row['ratio']:.2f}**",
                f"{row['parts']['generate']:.2f}",
                f"{row['parts']['learn']:.2f}",
                f"{row['memory_ratio']['sample']:.2f}",
                f"{row['memory_ratio']['learn']:.2f}",
            )
            for name, row in result.items()
        ],
    )
    yield ""
    yield "Where the time goes, in seconds:"
    yield ""
    yield from table(
        ("workload", "side", "generate", "grade", "learn", "sync"),
        [
            (name, side, *(f"{values[part]:.3f}" if part in values else "" for part in ("generate", "grade", "learn", "sync")))
            for name, row in result.items()
            for side, values in row["sides"].items()
        ],
    )
    yield ""
    for name, row in result.items():
        learn, whole = theirs(row)["learn"], theirs(row)["step"]
        tried = ", ".join(f"{side} {seconds(value)}" for side, value in row["trl_tried"].items())
        yield f"- `{name}`: TRL's variants took {tried} in a first turn. Learning is {learn / whole:.0%} of its"
        yield f"  step: with a learner as fast as TRL's, sampling in no time at all would give a ratio of {whole / learn:.2f}."


def theirs(row: dict[str, Any]) -> dict[str, float]:
    return next(values for side, values in row["sides"].items() if side != "rlcore")


def sampler(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/sampler.py`. Tokens per second; `toy` ends its answers where it likes."
    yield ""
    yield from rates(result, "ours", "theirs")


def rates(result: dict[str, Any], mine: str, other: str) -> Iterator[str]:
    rows = []
    for name, row in result.items():
        found = [f"{side}: {values['tokens'] / values['generate']:,.0f}" for side, values in row["sides"].items()]
        rows.append((name, f"{row['prompts']} x {row['samples']} x {row['length']}", *found, f"**{row['ratio']:.2f}**"))
    yield from table(("workload", "prompts x samples x tokens", mine, other, "ratio"), rows)


def learner(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/learner.py`. Memory: peak above weights, gradients and optimiser, ours over the bare one's."
    yield ""
    rows = [
        (
            row["model"],
            f"{row['completions']} x {row['length']}",
            seconds(row["sides"]["bare"]["update"]),
            seconds(row["sides"]["learner"]["update"]),
            f"**{row['ratio']:.2f}**",
            f"{row['memory_ratio']:.2f}",
        )
        for row in result.values()
    ]
    yield from table(("model", "completions x tokens", "bare", "ours", "ratio", "memory"), rows)


def pool(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/pool.py`. One worker on this machine, the same prompts. Tokens per second; above 1 the pool is faster."
    yield ""
    yield from rates(result["rollouts"], "pool", "bare")
    sync = result["sync"]
    yield ""
    size, bucket, rises = sync["model_bytes"] / 2**20, sync["bucket_bytes"] / 2**20, sync["buckets"]
    yield f"A weight sync of {size:.0f} MiB to it takes {seconds(sync['sync'])}; a plain copy of these bytes in memory"
    yield f"{seconds(sync['copy'])}, and their checksums, which each side makes, {seconds(sync['checksums'])}. Meanwhile the"
    yield f"sender's memory rises by {rises['sender']} buckets of {bucket:.0f} MiB and the worker's by {rises['receiver']},"
    yield "shared memory counted on both sides."


def trees(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/trees.py`. As many completions of the same prompts by the same vLLM engine, as a tree and one by one."
    yield "Saved is the share of their tokens that was not computed, as another had it already; the ratio is of time per token."
    yield ""
    rows = [
        (
            name,
            f"{row['prompts']} x {row['samples']} x {row['length']}",
            str(row["segment"]),
            *(f"{values['tokens']:,.0f} / {values['computed']:,.0f}" for values in row["sides"].values()),
            f"**{row['saved']:.0%}**",
            f"{row['ratio']:.2f}",
        )
        for name, row in result.items()
    ]
    head = ("workload", "prompts x samples x tokens", "segment", "tree: tokens / computed", "one by one", "saved", "ratio")
    yield from table(head, rows)


def modes(result: dict[str, Any]) -> Iterator[str]:
    runs = result["arms"]
    spread = next(iter(runs.values()))[0]["lengths"]
    yield f"`benchmarks/modes.py`: {result['steps']} steps of the toy, with one rollout worker (vLLM) and one learner rank on"
    yield f"two cores. Lengths are long-tailed: median {spread['median']}, 90 % {spread['p90']}, 95 % {spread['p95']}, 99 %"
    yield f"{spread['p99']} tokens."
    yield "Seconds of a step; accuracy on held-out problems after training, with 95 % intervals; one line for each seed."
    yield ""
    yield from table(
        ("mode", "step", "of it generating", "learning", "syncing", "predicted step", "accuracy", "before"),
        [
            (
                arm,
                f"**{seconds(row['step_s'])}**",
                *(seconds(row[f"{name}_s"]) for name in ("generate", "learn", "sync")),
                seconds(result["predicted_step_s"][arm]),
                f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})",
                f"{row['accuracy_before']:.1%}",
            )
            for arm, rows in runs.items()
            for row in rows
        ],
    )


def grading(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/grading.py`."
    yield ""
    yield from table(("what", "measured"), [(name.replace("_", " "), str(value)) for name, value in result.items()])


def process_scoring(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/process_scoring.py`. A step of the quickstart with `answer` alone, and with `process` beside it, whose"
    yield "reward model is one of `prm_chain`, as large as the policy. `quickstart` begins with a toy that blurts out its"
    yield "answers, `steps` with one that writes out its steps. Steps are those of a completion; scoring is what grading takes"
    yield "longer with `process` than without, and its share is that of the step without."
    yield ""
    rows = [
        (
            name,
            f"{row['tokens']:,.0f}",
            f"{row['steps']:.1f}",
            *(seconds(values["step"]) for values in row["sides"].values()),
            seconds(row["share"] * row["sides"]["without"]["step"]),
            f"**{row['share']:.1%}**",
        )
        for name, row in result.items()
    ]
    yield from table(("policy/head", "tokens", "steps", "step without", "step with", "scoring", "share"), rows)


def prepacking(result: dict[str, Any]) -> Iterator[str]:
    yield "`benchmarks/prepacking.py`. Log-normal lengths of 16 to 511 tokens. Prefill: the transformers engine, which packs"
    yield "prompts, against itself with each in a row of its own, padded, and against `model.generate`. Log-probs, and learning"
    yield f"(with gradients): packed, against micro-batches of {result['budget']:,} tokens, sorted by length and padded, as the"
    yield "learner cuts them, and against one padded batch. Ratios above 1: packing is faster. The learner does not pack:"
    yield "sorted by length and well cut, its batches have little padding, and need no mask."
    yield ""
    workloads = {name: row for name, row in result.items() if name != "budget"}
    measured = list(next(iter(workloads.values()))["ratios"])
    rows = [
        (name, row["model"], str(row["sequences"]), *(f"**{row['ratios'][ratio]:.2f}**" for ratio in measured))
        for name, row in workloads.items()
    ]
    yield from table(("workload", "model", "sequences", *measured), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def seconds(value: float) -> str:
    return f"{value:.2f} s"


RENDERED = {
    "step_vs_trl": ("A GRPO step against TRL's GRPOTrainer", step),
    "sampler": ("Sampling against what the engines are built on", sampler),
    "learner": ("The learner against a bare forward and backward pass", learner),
    "pool": ("The pool against vLLM called bare", pool),
    "modes": ("Synchronous and asynchronous", modes),
    "trees": ("Trees against independent completions", trees),
    "grading": ("Grading", grading),
    "process_scoring": ("Process scoring in the loop", process_scoring),
    "prepacking": ("Packing sequences of skewed lengths", prepacking),
}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
