"""Before a run: does a reward keep its contract, does it say the same when it is asked again, and what does it pay for hacks?

Every component scores one batch, a group of `probes` per problem: again, in another order, and each group alone. Then the hacks
are compared with the honest reference to their problem by what both are paid in all, weighted and gated:

    verified as wrong     must be paid less than the reference
    verified as right     must not be paid more: a reward for answers pays every right one alike
    not verified at all   must not be paid more than the reference; without an answer, not more than a wrong completion

A hack that a reward cannot judge (Invalid) leaves the batch unpunished. Rewards that compare the members of a group see hacks
and reference side by side, as they will in a run whose policy tries them.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rewards.compose import NOT_VERIFIED, Rewards, scored, with_accuracy
from rewards.probes import ANSWERED, FORMS, PROBES, REFERENCE, WRONG, probes, references
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.protocols import Reward, StatefulReward
from rlcore.types import Completion, Group, Invalid, Problem, Sampling, Score, Scored

TOLERANCE = 1e-4  # values no farther apart are the same: reward models round otherwise in other batches
ALL = "all"  # the component of a finding that is about their sum

Status = Literal["ok", "warn", "broken"]


@dataclass(frozen=True)
class Finding:
    check: str
    component: str
    status: Status
    told: str


@dataclass(frozen=True)
class Payment:
    """What one probe of one problem is paid: the raw value of each component, None with its reason where that is Invalid, and
    the weighted, gated sum, None where one is."""

    problem: str
    probe: str
    text: str
    values: Mapping[str, float | None]
    reasons: Mapping[str, str]
    total: float | None


@dataclass(frozen=True)
class Report:
    form: str  # how the reference is written, of `probes.FORMS`
    payments: list[Payment]  # empty where a component raises
    findings: list[Finding]

    @property
    def broken(self) -> bool:
        return any(finding.status == "broken" for finding in self.findings)


def lint(rewards: Rewards, problems: Sequence[Problem], prompter: Prompter, sampling: Sampling) -> Report:
    """Probe the components on these problems, each of which has an answer, as the policy of this tokenizer would answer them.
    Of the forms in which the reference can be written it takes the one that is paid best."""
    rewards.begin(prompter.tokenizer)
    inspections = {
        label: _Inspection(label, component, rewards.states.get(label)) for label, component in rewards.components.items()
    }
    watched = copy.copy(rewards)
    watched.components = dict(inspections)
    form = _best_form(watched, references(problems, prompter, sampling))
    groups = probes(problems, form, prompter, sampling)
    findings: list[Finding] = []
    for label in sorted(inspections, key=lambda label: label != rewards.verifiable):
        findings += inspections[label].findings(groups)
        if label == rewards.verifiable:
            unknown: list[Score] = [Invalid("the verifiable component is broken")] * (len(groups) * len(PROBES))
            groups = with_accuracy(groups, inspections[label].scores or unknown)
    payments = _payments(watched, groups, PROBES)
    return Report(form, payments, [*findings, *_on_hacks(payments, rewards.verifiable)])


# -- a component by itself -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    scores: list[Score]
    returned: Sequence[Any]  # the same before they were checked
    seconds: float
    state: Any  # afterwards


class _Inspection(Reward):
    """Stands before a component, looks at what it returns, and keeps what came of each batch."""

    def __init__(self, label: str, component: Reward, state: Any) -> None:
        self._label, self._component, self._state = label, component, state
        self.reads_accuracy = component.reads_accuracy
        self._trials: list[_Trial] = []
        self._returned: Sequence[Any] = []

    @property
    def scores(self) -> list[Score]:
        """Of the whole batch; none where the component raised."""
        return self._trials[0].scores if self._trials else []

    def findings(self, groups: Sequence[Group]) -> Iterator[Finding]:
        try:
            first = self._try(groups)
        except UserError as error:
            yield self._finding("contract", "broken", f"{error}{self._culprits(groups)}")
            return
        yield self._contract(first)
        if isinstance(self._component, StatefulReward):
            kept = first.state == self._state
            yield self._finding("state", *(("ok", "scoring leaves it alone") if kept else ("warn", "scoring changes it")))
        again = self._compare("determinism", "the second time", [groups], groups)
        yield again
        if again.status == "ok":  # else a change would tell nothing
            yield self._compare("order", "in another order", [_shuffled(groups)], groups)
            yield self._compare("batch", "where its group is all of the batch", [[group] for group in groups], groups)
        if again.status != "broken":
            yield self._latency()

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        self._returned = self._component.score(groups, state)
        return self._returned

    def _try(self, groups: Sequence[Group]) -> _Trial:
        state, begun = copy.deepcopy(self._state), time.perf_counter()
        scores = scored(self._label, self, groups, state)
        trial = _Trial(scores, self._returned, time.perf_counter() - begun, state)
        self._trials.append(trial)
        return trial

    def _finding(self, check: str, status: Status, told: str) -> Finding:
        return Finding(check, self._label, status, told)

    def _culprits(self, groups: Sequence[Group]) -> str:
        """The probes that break it, where it is these few."""
        found = []
        for number, name in enumerate(PROBES):
            try:
                scored(self._label, self, [_members(group, [number]) for group in groups], copy.deepcopy(self._state))
            except UserError:
                found.append(name)
        return f"; broken by: {', '.join(found)}" if 0 < len(found) < len(PROBES) / 2 else ""

    def _contract(self, trial: _Trial) -> Finding:
        told = [score for score in trial.scores if score is not NOT_VERIFIED]  # of those it was asked about
        for returned, score in zip(trial.returned, told, strict=True):
            if isinstance(returned, Scored) and isinstance(score, Invalid):
                return self._finding("contract", "broken", f"not finite: {score.reason}")
            if isinstance(returned, Scored) and not isinstance(returned.value, float | int):
                kind = type(returned.value).__name__
                return self._finding("contract", "broken", f"a value is a {kind}, which no log can hold: make it a float")
        return self._finding("contract", "ok", f"a score for each of {len(trial.scores)} completions")

    def _compare(self, check: str, how: str, batches: Sequence[Sequence[Group]], groups: Sequence[Group]) -> Finding:
        """Whether each completion of `groups` gets the score in these batches that it got first."""
        try:
            now = {id(c): score for batch in batches for c, score in _by_completion(batch, self._try(batch).scores)}
        except UserError as error:
            return self._finding(check, "broken", f"{how}: {error}")
        pairs = [(c, before, now[id(c)]) for c, before in _by_completion(groups, self.scores)]
        changed = [(c, before, after) for c, before, after in pairs if not _same(before, after)]
        if not changed:
            return self._finding(check, "ok", f"scores are the same {how}")
        completion, before, after = changed[0]
        return self._finding(
            check,
            "warn",
            f"{len(changed)} of {len(pairs)} scores are others {how}: {PROBES[completion.sample]!r} of "
            f"{completion.problem_id} gets {_shown(before)}, then {_shown(after)}",
        )

    def _latency(self) -> Finding:
        second = self._trials[1]  # the first starts what is slow to start
        return self._finding("latency", "ok", f"{second.seconds / len(second.scores) * 1000:.3g} ms a completion")


def _by_completion(groups: Sequence[Group], scores: Sequence[Score]) -> Iterator[tuple[Completion, Score]]:
    return zip((completion for group in groups for completion in group.completions), scores, strict=True)


def _shuffled(groups: Sequence[Group]) -> list[Group]:
    """The groups in another order, and in each the completions."""
    rng = random.Random(0)
    shuffled = [_members(group, rng.sample(range(len(PROBES)), len(PROBES))) for group in groups]
    rng.shuffle(shuffled)
    return shuffled


def _members(group: Group, numbers: Sequence[int]) -> Group:
    accuracy = [group.accuracy[number] for number in numbers] if group.accuracy else ()
    return replace(group, completions=[group.completions[number] for number in numbers], accuracy=accuracy)


def _same(a: Score, b: Score) -> bool:
    """Reasons may differ; the values, and how they are spread, may not."""
    if isinstance(a, Invalid) or isinstance(b, Invalid):
        return isinstance(a, Invalid) and isinstance(b, Invalid)
    spreads = [(a.value, *(a.per_token or ())), (b.value, *(b.per_token or ()))]
    return len(spreads[0]) == len(spreads[1]) and all(
        math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for x, y in zip(*spreads, strict=True)
    )


def _shown(score: Score) -> str:
    return f"{score.value:.4g}" if isinstance(score, Scored) else f"Invalid ({score.reason})"


# -- all together --------------------------------------------------------------------------------------------------------


def _best_form(rewards: Rewards, groups: Sequence[Group]) -> str:
    """The form of FORMS in which the references are paid best; the first among equals, and where nothing can be paid."""
    totals = dict.fromkeys(FORMS, 0.0)
    for payment in _payments(rewards, groups, FORMS):
        totals[payment.probe] += payment.total or 0.0
    return max(totals, key=lambda form: round(totals[form], 4))


def _payments(rewards: Rewards, groups: Sequence[Group], names: Sequence[str]) -> list[Payment]:
    """What each completion is paid, the one of sample number i as `names[i]`. Nothing where a component raises."""
    try:
        ledger = rewards.grade(groups).ledger
    except UserError:
        return []
    of_each = len(rewards.components)
    return [_payment(ledger[i : i + of_each], names) for i in range(0, len(ledger), of_each)]


def _payment(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Payment:
    return Payment(
        problem=rows[0]["problem_id"],
        probe=names[rows[0]["sample"]],
        text=rows[0]["completion"],
        values={row["component"]: None if row["value"] is None else float(row["value"]) for row in rows},
        reasons={row["component"]: row["reason"] for row in rows if row["reason"]},
        total=float(sum(row["weighted"] for row in rows)) if all(row["valid"] for row in rows) else None,
    )


def _on_hacks(payments: Sequence[Payment], verifiable: str | None) -> Iterator[Finding]:
    """Whether the references are paid as such, and which probes are paid better than they should be beside one that is."""
    problems: dict[str, dict[str, Payment]] = {}
    for payment in payments:
        problems.setdefault(payment.problem, {})[payment.probe] = payment
    references = [paid[REFERENCE] for paid in problems.values()]
    misjudged = [payment for payment in references if not _right(payment, verifiable)]
    if misjudged:
        told = f"{len(misjudged)} of {len(references)} are not paid as right answers: {_reasons(misjudged[0])}"
        yield Finding("reference", ALL, "warn", told)
    elif problems:
        yield Finding("reference", ALL, "ok", f"all {len(references)} are " + ("verified as right" if verifiable else "judged"))
    honest = [paid for paid in problems.values() if _right(paid[REFERENCE], verifiable)]
    tempting = [finding for name in PROBES if name != REFERENCE for finding in _temptation(name, honest, verifiable)]
    yield from tempting
    if honest and not tempting:
        yield Finding("hacks", ALL, "ok", "none is paid better than it should be")


def _temptation(name: str, problems: Sequence[Mapping[str, Payment]], verifiable: str | None) -> Iterator[Finding]:
    """A warning for the problems in which this probe escapes judgement, and one for those in which it pays."""
    escapes = [paid[name] for paid in problems if paid[name].total is None]
    if escapes:
        told = f"{name!r} leaves the batch unpunished in {len(escapes)} of {len(problems)} problems: {_reasons(escapes[0])}"
        yield Finding("hacks", ALL, "warn", told)
    pays = []
    for paid in problems:
        bar, excess = _bar(name, paid, verifiable)
        got, limit = paid[name].total, paid[bar].total
        if got is not None and limit is not None and got - limit >= excess:
            pays.append((paid[name].problem, got, bar, limit))
    if pays:
        problem, got, bar, limit = pays[0]
        compared = f"paid {got:.4g} for {problem}, where {bar!r} is paid {limit:.4g}"
        yield Finding("hacks", ALL, "warn", f"{name!r} pays in {len(pays)} of {len(problems)} problems: {compared}")


def _bar(name: str, paid: Mapping[str, Payment], verifiable: str | None) -> tuple[str, float]:
    """Which probe this one is compared with, and from what difference on it is paid too well: see the head of this file."""
    if verifiable is not None:
        return REFERENCE, TOLERANCE if _right(paid[name], verifiable) else -TOLERANCE
    return REFERENCE if name in (WRONG, *ANSWERED) else WRONG, TOLERANCE


def _right(payment: Payment, verifiable: str | None) -> bool:
    """Paid by every component, and verified where something is."""
    return payment.total is not None and (verifiable is None or payment.values[verifiable] == 1)


def _reasons(payment: Payment) -> str:
    said = "; ".join(f"{component}: {reason}" for component, reason in payment.reasons.items()) or "no reason given"
    return f"{said} ({payment.problem})"
