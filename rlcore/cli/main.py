"""The command line: `rlcore VERB`. A file per verb; each is imported only when it is called, so that `--help` is quick."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rlcore import __version__
from rlcore.errors import UserError

app = typer.Typer(
    name="rlcore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[str, typer.Option("--json", metavar="FILE", help="Write the result as JSON ('-': standard output).")]
Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network: local files and caches only.")]
FROM_RUN = "Default: that of the run whose checkpoint this is."
# How a model is asked, the same for every verb that samples
Data = Annotated[str, typer.Option(help="A data source, e.g. gsm8k, math500, '{name: chain, count: 200}'.")]
Limit = Annotated[int, typer.Option(min=0, help="Only the first problems (0: all).")]
Seed = Annotated[int, typer.Option(help="Decides every random number.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help=f"Longer completions are cut off. {FROM_RUN}")]
Template = Annotated[str | None, typer.Option(help=f"What the user says; {{problem}} is the problem's text. {FROM_RUN}")]
System = Annotated[str | None, typer.Option(help=f"System message. {FROM_RUN}")]
Engine = Annotated[str, typer.Option(help="As a recipe's rollout.engine: vllm, '{name: vllm, kv_cache_gb: 4}'.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
MaxInvalid = Annotated[float, typer.Option(min=0, max=1, help="More ungradable than this is an error.")]
# How reward models are measured on what it samples
Policy = Annotated[str, typer.Option(help="What samples: a folder, run checkpoint, hub id, smollm2-135m or toy:NAME.")]
Warmth = Annotated[float, typer.Option("--temperature", min=0.01, help="Of the policy.")]
Aggregate = Annotated[str, typer.Option(help="A solution's score, of those of its steps: min, last, product, soft_min.")]
Separator = Annotated[str, typer.Option(help="What stands between steps.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"rlcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """RL post-training of reasoning models in which a reward is a first-class, inspectable thing."""


@app.command()
def train(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Merged left to right.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and train nothing.")] = False,
    cluster: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Run on Ray: auto (RAY_ADDRESS, or this machine), local, HOST:PORT.")
    ] = "",
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Run a recipe: a shipped one by name, a YAML file, or a run folder, with overrides such as steps=5."""
    _environment(offline)
    from rlcore.cli.train import dry_run as show
    from rlcore.cli.train import train as launch

    arguments = [*recipe, f"cluster.address={cluster}"] if cluster else recipe
    show(arguments) if dry_run else launch(arguments, resume, json)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Option(help="A folder, run checkpoint, hub id, smollm2-135m or toy:NAME.")],
    data: Data,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem (pass@k, maj@k).")] = 1,
    limit: Limit = 0,
    seed: Seed = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Of the likeliest tokens, those that make up this share.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only so many of the likeliest tokens (0: all).")] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="Tokens this likely, relative to the likeliest.")] = 0.0,
    top_h: Annotated[float, typer.Option(min=1e-6, max=1, help="Likeliest tokens, up to this share of the entropy.")] = 1.0,
    top_h_normalized: Annotated[
        bool, typer.Option("--top-h-normalized", help="Entropy of what is left, renormalised.")
    ] = False,
    max_new_tokens: MaxNewTokens = None,
    template: Template = None,
    system: System = None,
    engine: Engine = "transformers",
    dtype: Dtype = "float32",
    device: Device = "auto",
    max_invalid_fraction: MaxInvalid = 0.2,
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure a model: accuracy with its 95 % interval, pass@k, maj@k, lengths."""
    _environment(offline)
    from rlcore.cli.eval import EvalOptions, run

    options = EvalOptions(
        model=model,
        data=data,
        samples=samples,
        limit=limit,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        top_h=top_h,
        top_h_normalized=top_h_normalized,
        max_new_tokens=max_new_tokens,
        template=template,
        system=system,
        engine=engine,
        dtype=dtype,
        device=device,
        max_invalid_fraction=max_invalid_fraction,
    )
    run(options, json)


@app.command()
def report(run: Annotated[str, typer.Argument(help="A run folder.")], json: Json = "") -> None:
    """Write a run's report.html: curves, reward components, and a browser of its samples."""
    from rlcore.cli.report import run as write

    write(run, json)


@app.command()
def repro(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment by name, or a YAML file.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="Only the first so many seeds. Default: all.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one CPU thread each.")] = 2,
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Run a paper's experiment, every arm with every seed, and write what came of its claims to docs/results."""
    _environment(offline)
    from rlcore.cli.repro import run as reproduce

    reproduce(experiment, seeds, jobs, json)


reward_app = typer.Typer(no_args_is_help=True, help="Check rewards, and measure reward models.")
app.add_typer(reward_app, name="reward")


@reward_app.command("eval")
def evaluate_reward(
    model: Annotated[str, typer.Option(help="A run folder of `job: reward_model`; with --judge, a folder or hub id.")],
    data: Annotated[str, typer.Option(help="Judged solutions: '{name: prmbench, path: FILE}', processbench, prm800k.")],
    judge: Annotated[
        str, typer.Option(help="What make it is: trained, qwen_math_prm, '{name: eurus_prm, reference: FOLDER}'.")
    ] = "trained",
    threshold: Annotated[float, typer.Option(help="P(right) below which a step is taken for wrong.")] = 0.5,
    keep_trained_on: Annotated[bool, typer.Option("--keep-trained-on", help="Also problems that it was trained on.")] = False,
    plot: Annotated[str, typer.Option(metavar="FILE", help="Draw its calibration (.svg, .png).")] = "",
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure how well a reward model finds wrong steps: PRMBench's and ProcessBench's scores, AUC, calibration."""
    _environment(offline)
    from rlcore.cli.reward import evaluate

    evaluate(model, data, threshold, keep_trained_on, plot, json, judge)


@reward_app.command("lint")
def lint_rewards(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Of `job: rl`, as for train.")],
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Probe a recipe's rewards before a run: contract, determinism, order, speed, and what they pay for cheap hacks."""
    _environment(offline)
    from rlcore.cli.lint import run as lint

    lint(recipe, json)


@reward_app.command("best-of-n")
def best_of_n(
    policy: Policy,
    judge: Annotated[
        list[str],
        typer.Option(metavar="NAME=SPEC", help="Any name, and the reward model: prm=runs/prm, t='{name: chain_truth}'."),
    ],
    data: Data,
    n: Annotated[str, typer.Option(help="Solutions, or candidates for a step, to choose from.")] = "1,2,4,8,16,24",
    method: Annotated[str, typer.Option(help="whole, stepwise, or both.")] = "whole,stepwise",
    aggregate: Aggregate = "min",
    separator: Separator = "\\n\\n",
    height: Annotated[int, typer.Option(min=1, help="Most steps of a solution that is chosen step by step.")] = 100,
    limit: Limit = 0,
    seed: Seed = 0,
    temperature: Warmth = 1.0,
    max_new_tokens: MaxNewTokens = None,
    template: Template = None,
    system: System = None,
    engine: Engine = "transformers",
    dtype: Dtype = "float32",
    device: Device = "auto",
    max_invalid_fraction: MaxInvalid = 0.2,
    plot: Annotated[str, typer.Option(metavar="FILE", help="Draw accuracy by N (.svg, .png).")] = "",
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure what reward models make of N samples: whole solutions, and greedily step by step, beside pass@N and majority."""
    _environment(offline)
    from rlcore.cli.best_of_n import measure_best_of_n
    from rlcore.cli.eval import EvalOptions

    options = EvalOptions(
        model=policy,
        data=data,
        samples=1,
        limit=limit,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        template=template,
        system=system,
        engine=engine,
        dtype=dtype,
        device=device,
        max_invalid_fraction=max_invalid_fraction,
    )
    measure_best_of_n(
        options,
        judges=judge,
        counts=n,
        methods=method,
        aggregate=aggregate,
        separator=separator,
        height=height,
        plot=plot,
        json_file=json,
    )


@reward_app.command("early-rejection")
def early_rejection(
    policy: Policy,
    judge: Annotated[str, typer.Option(help="A reward model: runs/prm, or '{name: qwen_math_prm, model: FOLDER}'.")],
    data: Data,
    samples: Annotated[int, typer.Option(min=2, help="Solutions that are begun of a problem.")] = 16,
    after: Annotated[str, typer.Option(help="So much of each is judged before most are rejected.")] = "1,2,3",
    unit: Annotated[str, typer.Option(help="steps or tokens.")] = "steps",
    keep: Annotated[str, typer.Option(help="The share that is finished.")] = "0.125,0.25,0.5",
    aggregate: Aggregate = "min",
    separator: Separator = "\\n\\n",
    limit: Limit = 0,
    seed: Seed = 0,
    temperature: Warmth = 1.0,
    max_new_tokens: MaxNewTokens = None,
    template: Template = None,
    system: System = None,
    engine: Engine = "transformers",
    dtype: Dtype = "float32",
    device: Device = "auto",
    max_invalid_fraction: MaxInvalid = 0.2,
    plot: Annotated[str, typer.Option(metavar="FILE", help="Draw accuracy by tokens saved (.svg, .png).")] = "",
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure what is saved and lost where solutions that a reward model dislikes early are not finished."""
    _environment(offline)
    from rlcore.cli.best_of_n import measure_early_rejection
    from rlcore.cli.eval import EvalOptions

    options = EvalOptions(
        model=policy,
        data=data,
        samples=samples,
        limit=limit,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        template=template,
        system=system,
        engine=engine,
        dtype=dtype,
        device=device,
        max_invalid_fraction=max_invalid_fraction,
    )
    measure_early_rejection(
        options,
        judge=judge,
        after=after,
        unit=unit,  # type: ignore[arg-type]  # it is checked there
        keep=keep,
        aggregate=aggregate,
        separator=separator,
        plot=plot,
        json_file=json,
    )


class _RecipeOrVerb(TyperGroup):
    """`rlcore compress RECIPE` beside `rlcore compress report RUN`: what is no verb is a recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args.insert(0, "run")
        return super().parse_args(ctx, args)


compress_app = typer.Typer(cls=_RecipeOrVerb, no_args_is_help=True, help="Make a model cheaper to run: RECIPE, or:")
app.add_typer(compress_app, name="compress")


@compress_app.command("run")
def compress(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Of `job: compress`, as for train.")],
    resume: Annotated[bool, typer.Option("--resume", help="Do nothing where it is done; else begin anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Compress a model by a recipe, measure it, and keep it: what `rlcore compress RECIPE` does."""
    _environment(offline)
    from rlcore.cli.compress import run
    from rlcore.cli.train import dry_run as show

    show(recipe) if dry_run else run(recipe, resume, json)


@compress_app.command("sensitivity")
def sensitivity(
    recipe: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Of `job: sensitivity`, as for train.")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Do nothing where it is done; else begin anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be measured, and measure nothing.")] = False,
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure what perturbations of equal norm cost a model, and what quantisers cost beside them."""
    _environment(offline)
    from rlcore.cli.compress import sensitivity as run
    from rlcore.cli.train import dry_run as show

    show(recipe) if dry_run else run(recipe, resume, json)


@compress_app.command("report")
def report_compressed(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders of `job: compress`.")],
    plot: Annotated[str, typer.Option(metavar="FILE", help="Draw quality by size, and each layer's error (.svg, .png).")] = "",
    json: Json = "",
) -> None:
    """Hold compressed models against each other: bits, perplexity, accuracy, cost."""
    from rlcore.cli.compress import report

    report(runs, plot, json)


@compress_app.command("export")
def export_compressed(
    model: Annotated[str, typer.Argument(help="A run folder of `job: compress`, or its model folder.")],
    folder: Annotated[str, typer.Argument(help="Where the plain checkpoint goes; must not exist.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    compressed_tensors: Annotated[
        bool,
        typer.Option("--compressed-tensors", help="In that format, for vLLM's kernels: 4 or 8 bits of rtn, clipped."),
    ] = False,
    json: Json = "",
) -> None:
    """Write a compressed model as a plain checkpoint for any engine, or in the format of compressed-tensors."""
    from rlcore.cli.compress import export

    export(model, folder, dtype, compressed_tensors, json)


decode_app = typer.Typer(no_args_is_help=True, help="What decoding costs, and what saves of it.")
app.add_typer(decode_app, name="decode")


@decode_app.command("bench")
def decode_bench(
    recipe: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Of `job: decode_bench`, as for train.")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Do nothing where it is done; else begin anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be measured, and measure nothing.")] = False,
    offline: Offline = False,
    json: Json = "",
) -> None:
    """Measure drafters against decoding without drafts: passes, seconds, memory, and whether completions are the same."""
    _environment(offline)
    from rlcore.cli.decode import bench
    from rlcore.cli.train import dry_run as show

    show(recipe) if dry_run else bench(recipe, resume, json)


@app.command()
def doctor(json: Json = "") -> None:
    """Try out what this machine has: packages, GPUs, memory, disk, Ray, ranks that sum, a vLLM generation."""
    _environment(offline=True)
    from rlcore.cli.doctor import run as examine

    examine(json)


def _environment(offline: bool) -> None:
    """Settings that libraries read when they are imported."""
    # OpenMP threads that spin at a barrier take a busy machine's cores from those they wait for: measured on two cores, a job
    # beside another ran at half speed. Alone, the shorter spin costs 15 %.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline"}


def main() -> None:
    """Entry point. Errors that are meant for the user become one line and exit status 1; Ctrl-C gives 130, by Typer."""
    sys.path.append("")  # a user's own rewards and losses are found in the current folder
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        sys.exit(
            f"error: {error.strerror}: {error.filename or 'while writing'}; free space or choose another place, then --resume"
        )


if __name__ == "__main__":
    main()
