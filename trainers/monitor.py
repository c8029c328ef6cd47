"""Watches a run for rewards that are earned without solving: measures every step's completions, and raises alarms.

The rules are in `trainers.patterns`, the thresholds in the recipe's `monitor` section. What they compare a step with is the
baseline: the mean over the first `baseline` steps of the run, as far as there are any before it, without those in which a rule
holds. A step whose accuracy is above the baseline's by `margin` takes its place: what a policy does that solves more is how it
should be, and what it does later is compared with that. A rule that holds for `patience` steps raises its alarm, once until it
has not held for as many.

Steps are those of `rewards.steps`. The repetition score is exact, and about tokens, never text:

    score = (N − D) / (N − 1)      N: suffixes of the completion of at least `repeated` tokens;  D: different ones among their
                                   first `repeated` tokens

In the sorted list of those suffixes, it is the share of neighbouring pairs whose longest common prefix has `repeated` tokens
or more (equal beginnings are a run in that list, and each run but the first begins with a pair that has less). So it needs no
suffix array, but a set. 0: nothing so long comes twice; 1: one token, over and over; a loop is near 1 if it is short against
the length. Worked, for 2 tokens: a b a b a has the beginnings ab, ba, ab, ba: (4 − 2) / 3.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, pstdev
from typing import Any

from rewards.compose import Graded, Rewards
from rewards.steps import split
from rlcore.grading.extract import ORDER, extract
from rlcore.protocols import LearnedReward
from rlcore.recipe.schema import RL
from rlcore.recipe.schema import Monitor as Settings
from rlcore.run.alarms import Alarm, Sample
from rlcore.run.metrics import Mean, Metrics
from rlcore.types import Completion
from trainers.patterns import PATTERNS, HeldOut, Pattern, Signs, gap, mean, numbers, solves_more

BLANK_LINE = "\n\n"
GREETING = 400  # characters that a step may have which states nothing; longer ones say something
SAMPLES = 3  # that an alarm keeps
LONGEST = 4000  # characters of one; the middle of a longer one is left out

Evaluate = Callable[[int], dict[str, float]]


class Unwatched:
    """A run without a monitor."""

    def hearing(self, evaluate: Evaluate) -> Evaluate:
        return evaluate

    def measure(self, graded: Graded) -> Metrics:
        return {}

    def judge(self, step: int) -> list[Alarm]:
        return []

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        """Nothing to take up."""


def build_monitor(recipe: RL, rewards: Rewards) -> Unwatched:
    """What the recipe's `monitor` says, with what it leaves to the reward components."""
    settings = recipe.monitor
    if settings is None:
        return Unwatched()
    paying = {label: reward for label, reward in rewards.components.items() if reward.pays_steps}
    judged = [label for label, reward in paying.items() if not isinstance(reward, LearnedReward)]
    between = [reward.separator for reward in [*paying.values(), *rewards.components.values()] if reward.separator]
    separator = settings.separator or next(iter(between), BLANK_LINE)
    return Monitor(settings, separator, judged if settings.watch is None else settings.watch)


@dataclass
class _Watch:
    """How one pattern stands."""

    held: int = 0  # steps in a row in which its rule held; not counted down while it rings
    quiet: int = 0  # steps in a row in which it did not
    since: int = 0  # the first of those in which it held
    rings: bool = False


class Monitor(Unwatched):
    """`separator`: between steps. `watched`: components whose pay is held against accuracy."""

    def __init__(self, settings: Settings, separator: str, watched: Sequence[str]) -> None:
        self.settings, self.separator, self.watched = settings, separator, frozenset(watched)
        self._base: list[Signs] = []  # of the steps that make the baseline
        self._best: Signs | None = None  # of the step of the best evaluation
        self._held_out: HeldOut | None = None  # the latest
        self._watches = {name: _Watch() for name in PATTERNS}
        self._now: Signs | None = None
        self._samples: list[Sample] = []  # of this step

    def hearing(self, evaluate: Evaluate) -> Evaluate:
        """The same evaluation, of whose results the monitor hears."""

        def heard(step: int) -> dict[str, float]:
            found = evaluate(step)
            if found:
                self._held_out = HeldOut(*(found[f"eval/accuracy{end}"] for end in ("", "_low", "_high")))
            return found

        return heard

    def measure(self, graded: Graded) -> Metrics:
        """What a step's completions show, before it is judged."""
        self._samples = self._read(graded)
        completions = [c for group in graded.groups for c in group.completions]
        answered = {(row["problem_id"], row["sample"]) for row in graded.ledger if row["verifiable"] and row["judged"]}
        empty = [
            _states_nothing(sample.steps, completion, (sample.problem, sample.sample) in answered)
            for sample, completion in zip(self._samples, completions, strict=True)
        ]
        ended = [not c.truncated and not nothing for c, nothing in zip(completions, empty, strict=True)]
        now = self._now = _signs(self._samples, empty, ended)
        count, steps = len(completions), sum(sample.steps for sample in self._samples)
        metrics: Metrics = {
            "monitor/steps": Mean(steps, count),
            "monitor/tokens_per_step": Mean(sum(sample.tokens for sample in self._samples), steps),
            "monitor/repetition": Mean(now.repetition, 1),
            "monitor/few_steps": Mean(now.few_steps, 1),
            "monitor/empty": Mean(now.empty, 1),
        }
        found = gap(now, mean(self._base or [now]))
        if found is not None and now.accuracy is not None:
            metrics["monitor/gap"] = Mean(found, 1)
        return metrics

    def judge(self, step: int) -> list[Alarm]:
        """The alarms that what was measured of this step raises, and what was heard of evaluations."""
        assert self._now is not None  # `measure` comes first
        now = replace(self._now, held_out=self._held_out)
        base, best = mean(self._base or [now]), self._best or now
        against = {name: best if pattern.since_best else base for name, pattern in PATTERNS.items()}
        holding = {name for name, p in PATTERNS.items() if p.holds(now, against[name], self.settings)}
        raised = [name for name in PATTERNS if self._follow(self._watches[name], step, name in holding)]
        self._learn(now, base, anything=bool(holding))
        return [self._alarm(name, PATTERNS[name], step, now, against[name]) for name in raised]

    def state(self) -> Any:
        return {
            "base": [asdict(signs) for signs in self._base],
            "best": self._best and asdict(self._best),
            "held_out": self._held_out,
            "watches": {name: asdict(watch) for name, watch in self._watches.items()},
        }

    def restore(self, state: Any) -> None:
        """A run that was not watched before begins its baseline now."""
        if state is not None:
            self._base = [_signs_from(signs) for signs in state["base"]]
            self._best = state["best"] and _signs_from(state["best"])
            self._held_out = state["held_out"] and HeldOut(*state["held_out"])
            self._watches = {name: _Watch(**state["watches"].get(name, {})) for name in PATTERNS}

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _read(self, graded: Graded) -> list[Sample]:
        """Of every completion, in their order, the invalid ones too."""
        pay: dict[tuple[str, int], float | None] = {}
        for row in graded.ledger:
            if row["component"] in self.watched:
                key, paid = (row["problem_id"], row["sample"]), row["weighted"]
                known = pay.get(key, 0.0)
                pay[key] = None if paid is None or known is None else known + paid
        return [
            Sample(
                problem=c.problem_id,
                sample=c.sample,
                text=c.text,
                steps=len(split(c.text, self.separator)),
                tokens=len(c.token_ids),
                repetition=repetition(c.token_ids, self.settings.repeated),
                pay=pay.get((c.problem_id, c.sample)),
                accuracy=accuracy,
            )
            for group in graded.groups
            for c, accuracy in zip(group.completions, group.accuracy or [None] * len(group.completions), strict=True)
        ]

    def _follow(self, watch: _Watch, step: int, holds: bool) -> bool:
        """Take note of a step; whether the alarm is to be raised at it."""
        if holds:
            watch.since = watch.since if watch.held else step
            watch.held, watch.quiet = watch.held + 1, 0
        else:
            watch.quiet += 1
            if not watch.rings or watch.quiet >= self.settings.patience:
                watch.held, watch.rings = 0, False
        raised = watch.held >= self.settings.patience and not watch.rings
        watch.rings = watch.rings or raised
        return raised

    def _learn(self, now: Signs, base: Signs, anything: bool) -> None:
        """Take this step into the baseline, or in its place."""
        if self._best is None or _accuracy(now.held_out) > _accuracy(self._best.held_out):
            self._best = now
        if self._base and solves_more(now, base, self.settings):
            self._base = [replace(now, spread=max(now.spread, base.spread))] * self.settings.baseline
        elif len(self._base) < self.settings.baseline and not anything:
            self._base.append(now)

    def _alarm(self, name: str, pattern: Pattern, step: int, now: Signs, base: Signs) -> Alarm:
        worst = sorted(self._samples, key=pattern.shows, reverse=True)[:SAMPLES]
        kept = [replace(sample, text=_shortened(sample.text)) for sample in worst]
        since = self._watches[name].since
        return Alarm(name, step, since, numbers(pattern, now, base), kept, self.settings.on_alarm)


def repetition(token_ids: Sequence[int], repeated: int) -> float:
    """The score of the module's docstring, in [0, 1]; 0 for a completion with fewer than two such suffixes."""
    suffixes = len(token_ids) - repeated + 1
    if suffixes < 2:
        return 0.0
    tokens = array("q", token_ids)
    data, width = tokens.tobytes(), tokens.itemsize
    different = len({data[i : i + repeated * width] for i in range(0, suffixes * width, width)})
    return (suffixes - different) / (suffixes - 1)


def _states_nothing(steps: int, completion: Completion, answered: bool) -> bool:
    """No step, or a single short one that has ended without an answer, to the grader or in the usual places."""
    is_short = steps == 1 and not completion.truncated and len(completion.text) <= GREETING
    return steps == 0 or (is_short and not answered and extract(completion.text, ORDER) is None)


def _signs(samples: Sequence[Sample], empty: Sequence[bool], ended: Sequence[bool]) -> Signs:
    pays = [sample.pay for sample in samples if sample.pay is not None]
    right = [sample.accuracy for sample in samples if sample.accuracy is not None]
    return Signs(
        steps=fmean(sample.steps for sample in samples),
        tokens=fmean(sample.tokens for sample in samples),
        repetition=fmean(sample.repetition for sample in samples),
        few_steps=fmean(sample.steps <= 1 for sample in samples),
        empty=fmean(empty),
        ended=fmean(ended),
        pay=fmean(pays) if pays else None,
        spread=pstdev(pays) or 1.0 if pays else 1.0,
        accuracy=fmean(right) if right else None,
    )


def _signs_from(state: Mapping[str, Any]) -> Signs:
    return Signs(**{**state, "held_out": state["held_out"] and HeldOut(*state["held_out"])})


def _accuracy(held_out: HeldOut | None) -> float:
    return -1.0 if held_out is None else held_out.accuracy


def _shortened(text: str) -> str:
    half = LONGEST // 2
    return (
        text
        if len(text) <= LONGEST
        else f"{text[:half]}\n\n[… {len(text) - LONGEST:,} characters left out …]\n\n{text[-half:]}"
    )
