"""`job: prefill`: what patterns save of the prefill of long prompts, and what they cost.

In every turn, prompts of each length are read densely and by each pattern, one after the other; which comes first moves on from
turn to turn. Of each reading:

share         of the causal blocks, those that were computed, over all heads and layers
seconds       of the prefill; attention_s of its attention, what choosing takes included
processor_s   of the prefill, of all threads: on a CPU that others use as well, this is the steadier measure
divergence    KL( p_dense ‖ p ) of the next token, nats, mean over positions that are spread over the prompt
answers       log-prob, in nats a token, of the numbers that the prompt's end asks for, by the depth at which they stand
recalled      of these, whether every token is the likeliest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.models import ModelSpec, context_of
from rlcore.recipe.schema import DENSE, Prefill
from rlcore.run.console import watched
from rlcore.run.folder import Run
from rlcore.types import seed_from
from rollout.prefill.attention import prefill
from rollout.prefill.pattern import Pattern
from rollout.prefill.patterns.dense import Dense
from rollout.prefill.patterns.share_prefill import SharePrefill
from rollout.prefill.texts import LongPrompt, fillers, long_prompt

TIMES = {"seconds": "speedup", "attention_s": "attention_speedup", "processor_s": "processor_speedup"}  # and what they come to
WARM = 256  # tokens that are read before anything is timed


@dataclass(frozen=True)
class Plan:
    patterns: Mapping[str, Pattern]  # by label, dense first
    prompts: Sequence[Mapping[int, LongPrompt]]  # of each turn, by length


@dataclass(frozen=True)
class Measurement:
    pattern: str
    length: int
    turn: int
    share: float
    seconds: float
    attention_s: float
    processor_s: float
    divergence: float
    answers: Sequence[float]
    recalled: Sequence[bool]


def plan(recipe: Prefill, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Plan:
    """Raises UserError for a pattern that there is not, or not for this model, and for prompts that cannot be made."""
    if (longest := max(recipe.lengths)) > context_of(config):
        raise UserError(f"lengths: {longest} is more than the model's context of {context_of(config)}")
    made = {
        label: plugins.bind("rollout.prefill.patterns", each.name, each.options)() for label, each in recipe.patterns.items()
    }
    for pattern in made.values():
        pattern.begin(config)
    problems = load_problems(recipe.data)
    prompts = []
    for turn in range(recipe.turns):
        seed = seed_from("turn", recipe.seed, turn)
        filler = [token for text in fillers(problems, tokenizer, seed) for token in text]
        prompts.append({n: long_prompt(filler, tokenizer, recipe.depths, n, seed) for n in recipe.lengths})
    return Plan({DENSE: Dense(), **made}, prompts)


def describe(recipe: Prefill, asked: Plan) -> Iterator[str]:
    yield f"patterns: {', '.join(asked.patterns)}"
    yield f"prompts of {', '.join(map(str, recipe.lengths))} tokens, in {recipe.turns} turns: {count(recipe)} prefills"
    yield f"numbers to be recalled of each: {len(recipe.depths)}"


def count(recipe: Prefill) -> int:
    return (1 + len(recipe.patterns)) * len(recipe.lengths) * recipe.turns


def measure(recipe: Prefill, asked: Plan, run: Run, spec: ModelSpec) -> tuple[list[Measurement], dict[str, Any]]:
    """Every reading; and what they come to by pattern and length."""
    model = spec.load().eval()
    found: list[Measurement] = []
    with watched("prefills", count(recipe)) as progress:
        _read(model, Dense(), asked.prompts[0][recipe.lengths[0]].ids[:WARM], [0])
        for turn, prompts in enumerate(asked.prompts):
            seconds: dict[str, float] = {}
            for length, prompt in prompts.items():
                at = [round(i * (length - 1) / recipe.positions) for i in range(1, recipe.positions + 1)]
                of_turn = _turn(model, asked.patterns, prompt, at, turn + recipe.seed, progress)
                found += [Measurement(label, length, turn, **values) for label, values in of_turn.items()]
                seconds |= {f"seconds_{length}/{label}": values["seconds"] for label, values in of_turn.items()}
            run.log(turn + 1, seconds)
    clustered = {p.clusters.seconds for p in asked.patterns.values() if isinstance(p, SharePrefill)}
    return found, {**summary(found), **({"cluster_s": sum(clustered)} if clustered else {})}


def _turn(
    model: PreTrainedModel,
    patterns: Mapping[str, Pattern],
    prompt: LongPrompt,
    at: Sequence[int],
    first: int,
    progress: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """By pattern, in their order; they are read from the `first` on, round and round."""
    labels = list(patterns)
    order = labels[first % len(labels) :] + labels[: first % len(labels)]
    before = [place - 1 for answer in prompt.answers for place in answer]
    said, values = {}, {}
    for label in order:
        read = _read(model, patterns[label], prompt.ids, [*at, *before])
        logprobs = read.logits.float().log_softmax(-1)
        said[label] = logprobs[: len(at)]
        answers, recalled = _answered(logprobs[len(at) :], prompt)
        taken = {name: getattr(read, name) for name in ("share", *TIMES)}
        values[label] = {**taken, "answers": answers, "recalled": recalled}
        progress(1)
    for label in labels:
        each = kl_div(said[label], said[DENSE], log_target=True, reduction="none").sum(1)
        values[label]["divergence"] = float(each.mean(dtype=torch.float64))
    return {label: values[label] for label in labels}


def _read(model: PreTrainedModel, pattern: Pattern, ids: Sequence[int], at: Sequence[int]) -> Any:
    return prefill(model, torch.tensor([ids], device=model.device), pattern, at)


def _answered(logprobs: Tensor, prompt: LongPrompt) -> tuple[list[float], list[bool]]:
    """logprobs (tokens of all answers, V) → of each answer its mean log-prob, and whether greedy decoding finds it."""
    sizes = [len(answer) for answer in prompt.answers]
    places = [place for answer in prompt.answers for place in answer]
    tokens = torch.tensor([prompt.ids[place] for place in places], device=logprobs.device)
    of_tokens, likeliest = logprobs.gather(1, tokens[:, None])[:, 0], logprobs.argmax(1) == tokens
    return (
        [float(part.mean()) for part in of_tokens.split(sizes)],
        [bool(part.all()) for part in likeliest.split(sizes)],
    )


def summary(found: Sequence[Measurement]) -> dict[str, Any]:
    """By quantity, pattern and length: medians over turns of shares, seconds and speed-ups over dense in the same turn, means
    of the rest."""
    dense = {(each.length, each.turn): each for each in found if each.pattern == DENSE}
    told: dict[str, dict[str, dict[str, float]]] = {}
    for pattern, length in dict.fromkeys((each.pattern, each.length) for each in found):
        turns = [each for each in found if (each.pattern, each.length) == (pattern, length)]
        same = [dense[length, each.turn] for each in turns]
        values = {
            "share": median(each.share for each in turns),
            **{time: median(getattr(each, time) for each in turns) for time in TIMES},
            **{
                speedup: median(getattr(base, time) / getattr(each, time) for base, each in zip(same, turns, strict=True))
                for time, speedup in TIMES.items()
            },
            "divergence": fmean(each.divergence for each in turns),
            "answer": fmean(value for each in turns for value in each.answers),
            "recalled": fmean(value for each in turns for value in each.recalled),
        }
        for quantity, value in values.items():
            told.setdefault(quantity, {}).setdefault(pattern, {})[str(length)] = value
    return told
