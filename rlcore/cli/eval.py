"""`rlcore eval`."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from rewards.verifiable.answer import Answer
from rlcore import models, plugins
from rlcore.cli.output import check_json, write_json
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.evaluation.evaluate import evaluate
from rlcore.grading.pool import GRADER_VERSION
from rlcore.prompts import Prompter, stop_ids
from rlcore.recipe.schema import Prompt, Source
from rlcore.toy import warmstart
from rlcore.types import Sampling
from rollout.engines.transformers import Transformers

CHAT_TEMPLATE = "{problem}\n\nReason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class EvalOptions:
    model: str
    data: str
    samples: int
    limit: int
    seed: int
    temperature: float
    max_new_tokens: int
    template: str  # empty: CHAT_TEMPLATE for chat models, the bare problem for base models
    system: str
    batch_size: int
    dtype: str
    device: str


def run(options: EvalOptions, json_file: str) -> None:
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {options.dtype!r} is neither float32 nor bfloat16")
    check_json(json_file)
    if options.template and "{problem}" not in options.template:
        raise UserError("--template must contain {problem}, where the problem's text goes")
    problems = load_problems([_source(options.data)])[: options.limit or None]
    location = warmstart.resolve(options.model, seed=0)
    tokenizer = models.load_tokenizer(location)
    template = options.template or (CHAT_TEMPLATE if getattr(tokenizer, "chat_template", None) else "{problem}")
    prompt = Prompt(template=template, system=options.system)
    prompter = Prompter(prompt, tokenizer)
    spec = models.ModelSpec(location, options.dtype, options.device)
    engine = Transformers(spec, tokenizer, stop_ids(spec, prompter), batch_size=options.batch_size)
    sampling = Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens)
    grader = Answer()
    try:
        done = evaluate(
            engine, prompter, problems, lambda groups: grader.score(groups, None), options.samples, sampling, options.seed
        )
    finally:
        grader.close()
    summary = done.summary()
    completions = summary.pop("samples")
    result: dict[str, Any] = {
        "accuracy": summary.pop("accuracy"),
        "low": summary.pop("accuracy_low"),
        "high": summary.pop("accuracy_high"),
        **summary,
        "completions": completions,
        **asdict(options),
        "grader": GRADER_VERSION,
        "prompt_hash": hashlib.sha256(json.dumps(prompt.model_dump()).encode()).hexdigest()[:12],
    }
    print(_readable(result, options), file=sys.stderr)
    write_json(result, json_file)


def _source(text: str) -> Source:
    """A source by name or as a YAML mapping; the test split unless it says otherwise."""
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--data {text!r} is neither a name nor a YAML mapping") from error
    fields: Any = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(fields, dict) or "name" not in fields:
        raise UserError(f"--data {text!r} names no source; for example: gsm8k, or '{{name: chain, count: 200}}'")
    source = plugins.find("rlcore.data.sources", str(fields["name"]))
    split = {"split": "test"} if "split" in inspect.signature(source).parameters else {}
    return Source.model_validate(split | fields)


def _readable(result: dict[str, Any], options: EvalOptions) -> str:
    lines = [f"{options.model} on {options.data}: {result['problems']} problems, {options.samples} samples each"]
    lines.append(f"  accuracy  {result['accuracy']:.1%}  (95 % interval {result['low']:.1%} to {result['high']:.1%})")
    for name, value in result.items():
        if "@" in name and not name.endswith(("_low", "_high")):
            lines.append(f"  {name:<9} {value:.1%}  ({result[name + '_low']:.1%} to {result[name + '_high']:.1%})")
    lines.append(
        f"  length {result['length']:.0f} tokens, truncated {result['truncated']:.1%}, invalid {result['invalid']:.1%}"
    )
    return "\n".join(lines)
