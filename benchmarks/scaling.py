"""Scale on paper: throughput, idle workers and staleness against mode and cap, up to 1,024 workers; writes docs/scaling.md.

    python -m benchmarks.scaling                    measures an engine of this machine, then simulates
    python -m benchmarks.scaling --times FILE       takes the times from a JSON file: an earlier run's --json, or your own

Loop, sampler and queue are the real ones, over `benchmarks.simulate`. FILE holds {"times": {"hardware": TEXT, "base_s": …,
"row_s": …, "read_s": …, "sync_s": …}}, in seconds: a round, in which each of n rows gets a token, takes base_s + row_s · n;
read_s a token of a prompt; sync_s new weights.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, finish, processor
from benchmarks.report import table
from benchmarks.simulate import Prediction, predict
from rlcore.recipe.schema import Mode
from rlcore.types import Request, Sampling

DOCS = Path(__file__).parent.parent / "docs"
WORKERS = (1, 4, 16, 64, 256, 1024)
MODES = {
    "sync": Mode(name="sync"),
    "one-step-off": Mode(name="one_step_off"),
    **{f"async {cap}": Mode(name="async", cap=cap) for cap in (1, 2, 4, 8)},
}
SAMPLES = 8  # completions per prompt
PROMPT_TOKENS = 200
BATCHES = (8, 64)  # rows at which rounds are measured


def main() -> None:
    options = arguments(
        (__doc__ or "").split("\n")[0],
        times="",
        rows=8,
        prompts=2,
        median=500,
        sigma=0.9,
        longest=4096,
        pace=1.0,
        model="smollm2-135m",
    )
    times = json.loads(Path(options.times).read_text())["times"] if options.times else measured(options.model)
    lengths = long_tailed(options.median, options.sigma, options.longest)
    setting = Setting(times, lengths, options.pace)
    found = {
        str(workers): {
            name: setting.run(workers, options.rows, options.prompts * workers, mode) for name, mode in MODES.items()
        }
        for workers in WORKERS
    }
    overhead = {name: setting.run(1024, 64, 8192, MODES[name], steps=4) for name in ("sync", "async 1")}
    settings = {name: getattr(options, name) for name in ("rows", "prompts", "median", "sigma", "longest", "pace")}
    result = {
        "times": times,
        "settings": {**settings, "mean_length": statistics.mean(lengths)},
        "found": found,
        "overhead": overhead,
        "render_s": rendering(),
    }
    (DOCS / "scaling.md").write_text("\n".join(page(result)) + "\n")
    plot(found, DOCS / "scaling.svg")
    finish(result, options)


# -- what is measured ----------------------------------------------------------------------------------------------------


def measured(model: str) -> dict[str, Any]:
    """Times of the vLLM engine on this machine."""
    from rlcore.models import ModelSpec, load_tokenizer
    from rlcore.toy import warmstart
    from rollout.engines.vllm import Vllm
    from rollout.sync import weight_update

    spec = ModelSpec(warmstart.resolve(model, 0))
    engine = Vllm(spec, load_tokenizer(spec.location), [])
    some, many = (round_seconds(engine, rows) for rows in BATCHES)
    row = (many - some) / (BATCHES[1] - BATCHES[0])
    weights = dict(spec.load().named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    syncs = [seconds(lambda v=version: engine.sync(weight_update(v, shapes, weights.items))) for version in range(1, 4)]
    times = {
        "hardware": f"vLLM, {model}, {processor()}",
        "base_s": some - BATCHES[0] * row,
        "row_s": row,
        "read_s": max(0.0, read_seconds(engine) - some) / (BATCHES[0] * PROMPT_TOKENS),
        "sync_s": statistics.median(syncs),
    }
    engine.close()
    print(times, file=sys.stderr)
    return times


def round_seconds(engine: Any, rows: int) -> float:
    """The median round with so many rows: a `poll` before which, and in which, none of them ended."""
    sampling = Sampling(max_new_tokens=32)
    rounds: list[float] = []
    for attempt in range(3):
        engine.submit([Request(f"{rows}/{attempt}", k, 1000 * attempt + k, (5, 6, 7), sampling) for k in range(rows)])
        engine.poll()  # reads the prompts
        ended = 0
        while engine.busy:
            began = time.perf_counter()
            ended += len(engine.poll())
            if not ended:
                rounds.append(time.perf_counter() - began)
    return statistics.median(rounds)


def read_seconds(engine: Any) -> float:
    """The median round that reads prompts, new ones each time, and samples their first tokens."""
    rng, once = random.Random(0), Sampling(max_new_tokens=1)

    def prompts() -> list[Request]:
        ids = [tuple(rng.choices(range(5, 15), k=PROMPT_TOKENS)) for _ in range(BATCHES[0])]
        return [Request("read", k, rng.getrandbits(60), prompt, once) for k, prompt in enumerate(ids)]

    return statistics.median(seconds(functools.partial(engine.generate, prompts())) for _ in range(5))


def rendering() -> float:
    """Seconds to render one prompt, which the sampler does too and the simulation leaves out."""
    from rlcore.data.sources.chain import chain
    from rlcore.models import load_tokenizer
    from rlcore.prompts import Prompter
    from rlcore.recipe.schema import Prompt
    from rlcore.toy import warmstart

    prompter = Prompter(Prompt(), load_tokenizer(warmstart.architecture("toy:chain", 0)))
    return statistics.median(seconds(lambda p=problem: prompter.render(p)) for problem in chain(count=1000))


def seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- what is simulated ---------------------------------------------------------------------------------------------------


def long_tailed(median: float, sigma: float, longest: int) -> list[int]:
    """Lengths to draw from: lognormal, cut at the longest."""
    rng = random.Random(0)
    return [min(longest, max(1, round(median * rng.lognormvariate(0, sigma)))) for _ in range(4096)]


@dataclasses.dataclass(frozen=True)
class Setting:
    times: Mapping[str, Any]
    lengths: Sequence[int]
    pace: float  # tokens that the learner takes in while the workers, all rows full, sample one

    def round_s(self, rows: int) -> float:
        return float(self.times["base_s"] + self.times["row_s"] * rows)

    def run(self, workers: int, rows: int, prompts: int, mode: Mode, steps: int = 0) -> dict[str, float]:
        full = workers * rows / self.round_s(rows)  # tokens per second
        found: Prediction = predict(
            self.lengths,
            self.round_s,
            lambda tokens: tokens / (full * self.pace),
            self.times["sync_s"],
            workers,
            rows,
            mode,
            steps or max(8, 4 * mode.staleness),
            prompts,
            SAMPLES,
            read_s=self.times["read_s"],
            prompt_tokens=PROMPT_TOKENS,
        )
        print(f"{workers:5} workers  {mode.name} {mode.staleness}  {found}", file=sys.stderr)
        return dataclasses.asdict(found)


# -- the page ------------------------------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> Iterator[str]:
    times, settings, found = result["times"], result["settings"], result["found"]
    yield "# Scale, on paper"
    yield ""
    yield "Written by `python -m benchmarks.scaling` (`make scaling`); do not edit."
    yield ""
    yield "**Nothing here ran on a thousand machines.** The loop (`trainers/loop.py`), the sampler with its staleness bound"
    yield "(`trainers/sampler.py`), the request queue (`rollout/queue.py`) and the data mixture are the real code. Workers and"
    yield "learner only take time, on a virtual clock (`benchmarks/simulate.py`); what the pool's calls to them cost the driver"
    yield "is not in it."
    yield ""
    yield "## What it assumes"
    yield ""
    base, row, read = (1e3 * times[name] for name in ("base_s", "row_s", "read_s"))
    yield f"- Times of a worker are those of {times['hardware']}. A round, in which each of n rows gets a token, takes"
    yield f"  {base:.1f} + {row:.2f} · n ms; a token that is read {read:.2f} ms, and what was sampled before an interruption"
    yield f"  is read again; new weights {times['sync_s']:.2f} s, however many workers there are."
    yield "- Assumed, not measured: lengths are lognormal, whatever the problem, so that the queue cannot tell which will be"
    yield f"  long: median {settings['median']}, σ {settings['sigma']}, cut at {settings['longest']}, mean"
    yield f"  {settings['mean_length']:.0f}. Prompts have {PROMPT_TOKENS} tokens. The learner grows with the workers: it takes"
    yield f"  in {settings['pace']:g} tokens in the time in which workers with full rows sample one. Nothing fails, and the"
    yield "  network is never full."
    yield f"- Weak scaling: each worker has {settings['rows']} rows, and a step {settings['prompts']} prompts x {SAMPLES}"
    yield "  completions for it."
    yield ""
    yield "![throughput per worker, rows in use and staleness](scaling.svg)"
    yield ""
    yield "## What it predicts"
    yield ""
    yield "Rates and shares of the middle half of a run. *idle*: share of the workers' time without any row; *rows*: share of"
    yield "their rows in use; staleness in weight versions, over tokens."
    yield ""
    yield from table(
        ("workers", "mode", "tokens/s", "against sync", "step", "idle", "rows", "staleness: mean", "max"),
        [
            (
                f"{int(workers):,}",
                mode,
                f"{row['tokens_per_s']:,.0f}",
                f"**{row['tokens_per_s'] / modes['sync']['tokens_per_s']:.2f}**",
                f"{row['step_s']:.1f} s",
                f"{row['idle']:.0%}",
                f"{row['rows']:.0%}",
                f"{row['staleness']:.2f}",
                f"{row['oldest']:.0f}",
            )
            for workers, modes in found.items()
            for mode, row in modes.items()
        ],
    )
    yield ""
    yield "## What to read from it"
    yield ""
    yield from reading(found)
    yield ""
    yield "## What orchestration costs"
    yield ""
    yield "Processor time of loop, sampler, queue and mixture in the driver, all of it counted as if it held up the step (most"
    yield "of it runs while workers sample): 1,024 workers x 64 rows, 8,192 prompts x 8 completions = 65,536 samples a step, of"
    yield f"{settings['mean_length']:.0f} tokens. Rendering the prompts is added as measured with the toy's tokenizer"
    yield f"({1e6 * result['render_s']:.0f} µs each). Not in it: grading, the ledger, and the pool's calls to Ray."
    yield ""
    rows = []
    for mode, row in result["overhead"].items():
        per_sample = row["orchestration_s"] / row["samples"] + result["render_s"] / SAMPLES
        samples = 8192 * SAMPLES  # of a step
        ours, whole = per_sample * samples, row["seconds"] * samples / row["samples"]
        shown = (
            f"{1e6 * per_sample:.0f} µs",
            f"{ours:.2f} s",
            f"{whole:.0f} s",
            f"**{ours / whole:.2%}**",
            f"{100 * ours:.0f} s",
        )
        rows.append((mode, *shown))
    yield from table(("mode", "per sample", "per step", "the step", "share", "below 1 % for steps of more than"), rows)


def reading(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    few, many = found[str(WORKERS[0])], found[str(WORKERS[-1])]
    most = WORKERS[-1]

    def scaled(mode: str) -> str:
        return f"{many[mode]['tokens_per_s'] / most / few[mode]['tokens_per_s']:.0%}"

    def gain(mode: str) -> str:
        return f"{many[mode]['tokens_per_s'] / many['sync']['tokens_per_s']:.2f}"

    assert all(row["oldest"] <= MODES[mode].staleness for modes in found.values() for mode, row in modes.items())
    deepest = list(MODES)[-1]
    yield f"- A synchronous step waits for its longest completion: at {most:,} workers {many['sync']['idle']:.0%} of their time"
    yield f"  goes by without a row, and a worker does {scaled('sync')} of what it does alone; with {deepest}"
    yield f"  {scaled(deepest)}."
    yield f"- At {most:,} workers the throughput over sync is " + ", ".join(f"{gain(m)} ({m})" for m in list(MODES)[1:]) + "."
    yield "  Learning while sampling gives at most 2 with a learner that keeps pace; what is beyond comes from no longer"
    yield "  waiting for the longest completion."
    yield f"- It is paid for in age: tokens are {many['async 1']['staleness']:.2f} versions old on average under cap 1, and"
    yield f"  {many[deepest]['staleness']:.2f} under cap 8. No token of any run was older than its cap."


def plot(found: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    alone = found["1"]["sync"]["tokens_per_s"]
    panels = {
        "tokens/s per worker (1 worker, sync = 1)": lambda workers, row: row["tokens_per_s"] / workers / alone,
        "share of rows in use": lambda _, row: row["rows"],
        "mean staleness, weight versions": lambda _, row: row["staleness"],
    }
    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for axes, (title, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for mode in MODES:
                axes.plot(WORKERS, [value(w, found[str(w)][mode]) for w in WORKERS], marker="o", markersize=3, label=mode)
            axes.set(title=title, xlabel="workers", ylim=(0, None))
            axes.set_xscale("log", base=2)
            axes.set_xticks(WORKERS, [f"{w:,}" for w in WORKERS])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
