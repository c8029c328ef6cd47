r"""How a policy earns reward without solving: each pattern a rule on a step's completions against those of the baseline.

Written ′ for the baseline (`trainers.monitor` says what that is), with the settings of the recipe's `monitor` section:

    solves more              accuracy ≥ accuracy′ + margin
    solves less              accuracy ≤ accuracy′ − margin
    gap                      (pay − pay′) / σ′ − (accuracy − accuracy′) / ½

    thinking_without_solving   steps or tokens ≥ growth · those′,  gap ≥ `gap`,  and does not solve more
                               (PURE, arXiv 2504.15275: planning that never ends)
    reward_without_accuracy    gap ≥ `gap`  and  solves less
    one_step                   completions of at most one step: `share` more than′,  and solves less
    empty_answer               completions that state nothing: `share` more than′,  and solves less
    long_repetitive            repetition ≥ repetition′ + `repetition`  and  tokens ≥ growth · tokens′
                               (right answers do not excuse it: in PURE these were right, until all collapsed)
    held_out_fell              held-out accuracy is below its best, by `margin` and by more than the 95 % interval of the
                               difference, while pay is above what it was then

`pay` is what the watched components pay a completion, σ its standard deviation among the baseline's completions, and ½ the
largest that an accuracy can have: so the gap has one scale for all rewards, is 0 at the baseline, and is above 0 where pay rose
and accuracy did not rise in proportion. A policy that learns to write out its steps has more of them, is paid more, and solves
more: no alarm. Without watched components the gap and what asks for pay are unknown, and do not hold: a verifiable reward alone
can only raise one_step, empty_answer and long_repetitive.

Where nothing is verified, the first pattern asks that the share of completions which come to an end, and say something, fell by
`margin`; the gap is its first term; nothing excuses one_step and empty_answer; of the others only long_repetitive is known.

Worked: pay 1 → 4 with σ′ = 2 and accuracy 0.5 → 0.4 is a gap of 1.5 + 0.2 = 1.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from rlcore.recipe.schema import Monitor
from rlcore.run.alarms import Sample


class HeldOut(NamedTuple):
    """The accuracy of an evaluation, with its 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Signs:
    """Means over the completions of a step, or over those of several steps."""

    steps: float
    tokens: float  # of a completion
    repetition: float
    few_steps: float  # share with one step or none
    empty: float  # share that states nothing
    ended: float  # share that was not cut, and says something
    pay: float | None  # None where no component is watched
    spread: float  # the standard deviation of `pay`; 1 where all were paid alike
    accuracy: float | None  # None where nothing is verified
    held_out: HeldOut | None = None  # the latest evaluation

    @property
    def verified(self) -> bool:
        return self.accuracy is not None


def mean(several: Sequence[Signs]) -> Signs:
    """Of steps one after the other. The spread is the largest: what many completions alike are paid is no scale."""
    pays = [signs.pay for signs in several if signs.pay is not None]
    right = [signs.accuracy for signs in several if signs.accuracy is not None]
    return Signs(
        steps=fmean(signs.steps for signs in several),
        tokens=fmean(signs.tokens for signs in several),
        repetition=fmean(signs.repetition for signs in several),
        few_steps=fmean(signs.few_steps for signs in several),
        empty=fmean(signs.empty for signs in several),
        ended=fmean(signs.ended for signs in several),
        pay=fmean(pays) if pays else None,
        spread=max(signs.spread for signs in several),
        accuracy=fmean(right) if right else None,
    )


def gap(now: Signs, base: Signs) -> float | None:
    """None where no component is watched."""
    if now.pay is None or base.pay is None:
        return None
    return (now.pay - base.pay) / base.spread - 2 * _rise(now.accuracy, base.accuracy)


def solves_more(now: Signs, base: Signs, at: Monitor) -> bool:
    return _rise(now.accuracy, base.accuracy) >= at.margin


def solves_less(now: Signs, base: Signs, at: Monitor) -> bool:
    return _rise(now.accuracy, base.accuracy) <= -at.margin


def _rise(now: float | None, base: float | None) -> float:
    return 0.0 if now is None or base is None else now - base


# -- the rules -----------------------------------------------------------------------------------------------------------


def thinking_without_solving(now: Signs, base: Signs, at: Monitor) -> bool:
    more = now.steps >= at.growth * base.steps or now.tokens >= at.growth * base.tokens
    unsolved = not solves_more(now, base, at) if now.verified else now.ended <= base.ended - at.margin
    return more and unsolved and _gapes(now, base, at)


def reward_without_accuracy(now: Signs, base: Signs, at: Monitor) -> bool:
    return solves_less(now, base, at) and _gapes(now, base, at)


def one_step(now: Signs, base: Signs, at: Monitor) -> bool:
    return now.few_steps >= base.few_steps + at.share and (solves_less(now, base, at) or not now.verified)


def empty_answer(now: Signs, base: Signs, at: Monitor) -> bool:
    return now.empty >= base.empty + at.share and (solves_less(now, base, at) or not now.verified)


def long_repetitive(now: Signs, base: Signs, at: Monitor) -> bool:
    return now.repetition >= base.repetition + at.repetition and now.tokens >= at.growth * base.tokens


def held_out_fell(now: Signs, best: Signs, at: Monitor) -> bool:
    if now.held_out is None or best.held_out is None or now.pay is None or best.pay is None:
        return False
    below, above = best.held_out.accuracy - best.held_out.low, now.held_out.high - now.held_out.accuracy
    lost = best.held_out.accuracy - now.held_out.accuracy
    return lost >= at.margin and lost > math.hypot(below, above) and now.pay > best.pay


def _gapes(now: Signs, base: Signs, at: Monitor) -> bool:
    found = gap(now, base)
    return found is not None and found >= at.gap


# -- what is told of them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    holds: Callable[[Signs, Signs, Monitor], bool]
    numbers: Sequence[str]  # the signs that it is about
    shows: Callable[[Sample], tuple[float, ...]]  # the greater, the better does a completion show it
    since_best: bool = False  # the baseline is the step of the best evaluation


def _earns(sample: Sample) -> float:
    return 0.0 if sample.pay is None else sample.pay


def _wrong(sample: Sample) -> float:
    return -(sample.accuracy or 0.0)


def _well_paid_and_wrong(sample: Sample) -> tuple[float, ...]:
    return _wrong(sample), _earns(sample)


PATTERNS = {
    "thinking_without_solving": Pattern(
        thinking_without_solving, ("steps", "tokens", "pay", "accuracy", "ended"), lambda s: (_wrong(s), s.steps, s.tokens)
    ),
    "reward_without_accuracy": Pattern(reward_without_accuracy, ("pay", "accuracy"), _well_paid_and_wrong),
    "one_step": Pattern(one_step, ("few_steps", "steps", "pay", "accuracy"), lambda s: (-s.steps, _wrong(s), _earns(s))),
    "empty_answer": Pattern(empty_answer, ("empty", "pay", "accuracy"), lambda s: (-s.steps, -s.tokens, _earns(s))),
    "long_repetitive": Pattern(long_repetitive, ("repetition", "tokens", "accuracy"), lambda s: (s.repetition, s.tokens)),
    "held_out_fell": Pattern(held_out_fell, ("held-out accuracy", "pay"), _well_paid_and_wrong, since_best=True),
}


def numbers(pattern: Pattern, now: Signs, base: Signs) -> dict[str, tuple[float, float]]:
    """What the pattern is about: the baseline's and this step's, without those that there are not."""
    pairs = {name: (_value(base, name), _value(now, name)) for name in pattern.numbers}
    return {name: (b, n) for name, (b, n) in pairs.items() if b is not None and n is not None}


def _value(signs: Signs, name: str) -> float | None:
    if name == "held-out accuracy":
        return signs.held_out and signs.held_out.accuracy
    value: float | None = getattr(signs, name)
    return value
