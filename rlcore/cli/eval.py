"""`rlcore eval`."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards.verifiable.answer import Answer
from rlcore import models, plugins
from rlcore.cli.named import named
from rlcore.cli.output import check_json, write_json
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.evaluation.evaluate import Evaluation, Verify, evaluate
from rlcore.grading.pool import GRADER_VERSION
from rlcore.length_budget import for_evaluation
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Plugin, Preference, Prompt, Recipe, Sft, Source
from rlcore.toy import warmstart
from rlcore.types import Problem, Sampling

MAX_NEW_TOKENS = 512
CHAT_TEMPLATE = "{problem}\n\nReason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class EvalOptions:
    model: str
    data: str
    samples: int
    limit: int
    seed: int
    temperature: float
    # None: the run's where the model is a checkpoint of one, else a default
    max_new_tokens: int | None
    template: str | None
    system: str | None
    engine: str
    dtype: str
    device: str
    max_invalid_fraction: float
    # as in `rlcore.types.Sampling`
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    top_h: float = 1.0
    top_h_normalized: bool = False

    def sampling(self, max_new_tokens: int) -> Sampling:
        drawn = ("temperature", "top_p", "top_k", "min_p", "top_h", "top_h_normalized")
        return Sampling(**{name: getattr(self, name) for name in drawn}, max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class Asking:
    """Who is asked what, and how: all that sampling and grading take."""

    problems: list[Problem]
    prompter: Prompter
    engine: Engine
    sampling: Sampling
    verify: Verify
    stated: dict[str, Any]  # what was used, for the result

    def evaluate(self, options: EvalOptions) -> Evaluation:
        return evaluate(
            self.engine,
            self.prompter,
            self.problems,
            self.verify,
            options.samples,
            self.sampling,
            options.seed,
            options.max_invalid_fraction,
        )


@contextmanager
def asking(options: EvalOptions) -> Iterator[Asking]:
    """The model is loaded; afterwards everything is released. Raises UserError for options that cannot be met, most of them
    before that."""
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {options.dtype!r} is neither float32 nor bfloat16")
    if options.template is not None and "{problem}" not in options.template:
        raise UserError("--template must contain {problem}, where the problem's text goes")
    if options.top_h_normalized and options.top_h == 1:
        raise UserError("--top-h-normalized says how --top-h is reckoned: give that, below 1")
    plugin = Plugin.model_validate(named(options.engine, "--engine", "transformers"))
    make = plugins.bind("rollout.engines", plugin.name, plugin.options)
    problems = load_problems([_source(options.data)])[: options.limit or None]
    location = warmstart.resolve(options.model, seed=0)
    tokenizer = models.load_tokenizer(location)
    trained = _trained(options.model)
    prompt = _prompt(options, trained, chat=bool(getattr(tokenizer, "chat_template", None)))
    problems = _budgeted(problems, prompt, trained, options)
    prompter = Prompter(prompt, tokenizer)
    usual = trained.rollout.max_new_tokens if isinstance(trained, RL) else _room(problems, prompter, models.context(location))
    max_new_tokens = options.max_new_tokens or usual
    spec = models.ModelSpec(location, options.dtype, options.device)
    engine: Engine = make(spec, tokenizer, stop_ids(spec, prompter))
    stated = {
        **asdict(options),
        "max_new_tokens": max_new_tokens,
        "template": prompt.template,
        "system": prompt.system,
        "engine": plugin.model_dump(),
        "grader": GRADER_VERSION,
        "prompt_hash": hashlib.sha256(json.dumps(prompt.model_dump()).encode()).hexdigest()[:12],
    }
    grader = Answer()
    try:
        yield Asking(
            problems, prompter, engine, options.sampling(max_new_tokens), lambda groups: grader.score(groups, None), stated
        )
    finally:
        engine.close()
        grader.close()


def run(options: EvalOptions, json_file: str) -> None:
    check_json(json_file)
    with asking(options) as asked:
        done = asked.evaluate(options)
    summary = done.summary()
    completions = summary.pop("samples")
    result: dict[str, Any] = {
        "accuracy": summary.pop("accuracy"),
        "low": summary.pop("accuracy_low"),
        "high": summary.pop("accuracy_high"),
        **summary,
        "completions": completions,
        **asked.stated,
    }
    print(_readable(result, options), file=sys.stderr)
    write_json(result, json_file)


def _trained(model: str) -> Recipe | None:
    """The recipe of the run that the model is a checkpoint of, if it lies in a run folder."""
    place = Path(model).absolute()
    above = [place, *place.parents] if place.is_dir() else []
    runs = [folder for folder in above if (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()]
    return load([str(runs[0] / "recipe.yaml")]).recipe if runs else None


def _prompt(options: EvalOptions, trained: Recipe | None, chat: bool) -> Prompt:
    """What the model was trained with, else a default; as far as no option says other."""
    prompt = (
        trained.prompt
        if isinstance(trained, RL | Sft | Preference)
        else Prompt(template=CHAT_TEMPLATE if chat else "{problem}")
    )
    given = {"template": options.template, "system": options.system}
    return prompt.model_copy(update={name: text for name, text in given.items() if text is not None})


def _room(problems: Sequence[Problem], prompter: Prompter, context: int) -> int:
    """MAX_NEW_TOKENS, or what the longest prompt leaves of the context where that is less."""
    return max(1, min(MAX_NEW_TOKENS, context - max(len(prompter.render(problem)) for problem in problems)))


def _budgeted(problems: list[Problem], prompt: Prompt, trained: Recipe | None, options: EvalOptions) -> list[Problem]:
    """Where the prompt tells a length budget: the one that the run's evaluation after the checkpoint's step has."""
    if not prompt.tells_budget:
        return problems
    if not isinstance(trained, RL) or trained.length_budget is None:
        raise UserError("the template tells {budget}, and this model is of no run that gives budgets: write a number there")
    place = Path(options.model).absolute()
    names = (re.fullmatch(r"step-(\d+)", folder.name) for folder in (place, *place.parents))
    step = next((int(name[1]) for name in names if name), trained.steps)
    return [for_evaluation(problem, trained.length_budget, options.seed, step) for problem in problems]


def _source(text: str) -> Source:
    """The test split, unless the text says otherwise."""
    fields = named(text, "--data", "gsm8k")
    source = plugins.find("rlcore.data.sources", fields["name"])
    split = {"split": "test"} if "split" in inspect.signature(source).parameters else {}
    return Source.model_validate(split | fields)


def _readable(result: dict[str, Any], options: EvalOptions) -> str:
    lines = [f"{options.model} on {options.data}: {result['problems']} problems, {options.samples} samples each"]
    lines.append(f"  accuracy  {result['accuracy']:.1%}  (95 % interval {result['low']:.1%} to {result['high']:.1%})")
    for name, value in result.items():
        if "@" in name and not name.endswith(("_low", "_high")):
            lines.append(f"  {name:<9} {value:.1%}  ({result[name + '_low']:.1%} to {result[name + '_high']:.1%})")
    if "problems_fully_judged" in result:
        lines.append(
            f"  all samples judged of {result['problems_fully_judged']} problems, which alone count for @{options.samples}"
        )
    lines.append(
        f"  length {result['length']:.0f} tokens, truncated {result['truncated']:.1%}, invalid {result['invalid']:.1%}"
    )
    return "\n".join(lines)
