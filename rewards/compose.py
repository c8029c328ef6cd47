"""From completions to a graded batch: every component's raw score, kept in the ledger, weighted and gated into rewards.

Order of things: raw scores of the whole global batch → invalid completions leave → gates and weights → tensors. The trainers'
filters come later and read the raw verifiable component, never the weighted sum.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rewards.from_trl import from_trl
from rlcore import plugins
from rlcore.batch import GradedBatch, batch_from, pad
from rlcore.errors import UserError
from rlcore.protocols import LearnedReward, Learner, LearnerLost, Reward, StatefulReward
from rlcore.recipe.schema import Component
from rlcore.run.metrics import Mean, Metrics, merge
from rlcore.types import Completion, Cut, Group, Invalid, Problem, Sampling, Score, Scored, seed_from

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NOT_VERIFIED = Invalid("not verified")  # to components that read accuracy


@dataclass(frozen=True)
class Graded:
    groups: list[Group]  # what was scored, with the accuracy of each completion
    batch: GradedBatch
    ledger: list[dict[str, Any]]  # a row per completion and component, the invalid ones too
    metrics: Metrics


class Rewards:
    """The recipe's reward components together. `states` is checkpointed."""

    def __init__(self, specs: Sequence[Component], max_invalid_fraction: float) -> None:
        self.specs = {spec.label: spec for spec in specs}
        self.components = {spec.label: _component(spec) for spec in specs}
        self.states = {k: c.initial_state() for k, c in self.components.items() if isinstance(c, StatefulReward)}
        verifiable = [label for label, component in self.components.items() if component.verifiable]
        if len(verifiable) > 1:
            named = " and ".join(map(repr, verifiable))
            raise UserError(f"rewards: {named} are all verifiable, and accuracy is the value of one: leave one of them")
        self.verifiable = verifiable[0] if verifiable else None
        self.max_invalid_fraction = max_invalid_fraction

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell the components the policy's tokenizer."""
        for component in self.components.values():
            component.begin(tokenizer)

    def verify(self, groups: Sequence[Group]) -> list[Score]:
        """The raw verifiable component alone, for filters that act while sampling goes on."""
        assert self.verifiable is not None  # `trainers.plan` refuses recipes that would come here without one
        return self._score(self.verifiable, groups)

    def grade(self, groups: Sequence[Group], verified: list[Score] | None = None) -> Graded:
        """Score everything once (`verified`: what `verify` said already) and build the batch of valid completions.

        Raises UserError when a component returns the wrong count, or more completions than allowed are invalid.
        """
        groups, scores = self._scores(groups, verified)
        greedy_scores = self._greedy(groups)
        greedy = None if greedy_scores is None else self._worth(groups, greedy_scores)
        flat = [(g, group.problem, c) for g, group in enumerate(groups) for c in group.completions]
        factors = self._factors([problem for _, problem, _ in flat], scores)
        weighted = _weighted(scores, factors)
        ledger = [
            self._ledger_row(problem, completion, label, scores[label][i], (weighted[i] or {}).get(label))
            for i, (_, problem, completion) in enumerate(flat)
            for label in scores
        ]
        valid = Counter(flat[i][0] for i, w in enumerate(weighted) if w is not None)
        alone = [len(group.completions) == 1 for group in groups]
        compared = [g for g in range(len(groups)) if (valid[g] > 1 or alone[g]) and (greedy is None or greedy[g] is not None)]
        kept = [i for i, w in enumerate(weighted) if w is not None and flat[i][0] in set(compared)]
        refuse_broken(
            [[*row, *(greedy_scores or {}).get(label, [])] for label, row in scores.items()], self.max_invalid_fraction
        )
        dropped = len({g for g, _, _ in flat} - {flat[i][0] for i in kept})
        metrics = self._metrics(scores, weighted, flat, [group.greedy for group in groups if group.greedy], dropped)
        batch = self._batch(flat, kept, scores, factors)
        if greedy is not None:
            batch = replace(batch, greedy=torch.tensor([greedy[flat[i][0]] for i in kept], dtype=torch.float32))
            judged = [value for value in greedy if value is not None]
            metrics["reward/greedy"] = Mean(sum(judged), len(judged))
        return Graded(groups, batch, ledger, metrics)

    def update(self, graded: Graded) -> Metrics:
        """Let the stateful components learn from what they scored; once a step, after scoring."""
        metrics: Metrics = {}
        for label, component in self.components.items():
            if isinstance(component, StatefulReward):
                self.states[label], reported = component.update(graded.groups, graded.batch, self.states[label])
                metrics |= {f"{label}/{name}": metric for name, metric in reported.items()}
        return metrics

    @property
    def learners(self) -> dict[str, Learner]:
        """What components learn with, by the name of its folder in a checkpoint."""
        found = {k: c.learner for k, c in self.components.items() if isinstance(c, LearnedReward)}
        return {f"reward-{label}": learner for label, learner in found.items() if learner is not None}

    def state(self) -> dict[str, Any]:
        return self.states

    def restore(self, state: dict[str, Any]) -> None:
        self.states = state

    def close(self) -> None:
        for component in self.components.values():
            component.close()

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _scores(
        self, groups: Sequence[Group], verified: list[Score] | None = None
    ) -> tuple[list[Group], dict[str, list[Score]]]:
        """Every component's scores, the verifiable one's first, which the others find in the groups."""
        verified = verified if verified is not None or self.verifiable is None else self._score(self.verifiable, groups)
        groups = with_accuracy(groups, verified) if verified is not None else list(groups)
        scores = {
            label: verified if verified is not None and label == self.verifiable else self._score(label, groups)
            for label in self.components
        }
        return groups, scores

    def _greedy(self, groups: Sequence[Group]) -> dict[str, list[Score]] | None:
        """Every component's scores of the groups' greedy completions; None where they have none."""
        asked = [Group(group.problem, [group.greedy]) for group in groups if group.greedy is not None]
        if len(asked) < len(groups) or not groups:
            return None
        return self._scores(asked)[1]

    def _worth(self, groups: Sequence[Group], scores: dict[str, list[Score]]) -> list[float | None]:
        """What the groups' greedy completions are worth in all, None for one that could not be judged."""
        factors = self._factors([group.problem for group in groups], scores)
        return [None if w is None else sum(w.values()) for w in _weighted(scores, factors)]

    def _score(self, label: str, groups: Sequence[Group]) -> list[Score]:
        return scored(label, self.components[label], groups, self.states.get(label))

    def _factors(self, problems: Sequence[Problem], scores: dict[str, list[Score]]) -> dict[str, list[float]]:
        """What each component's raw value counts for each completion, whose problems these are: its weight, or nothing where
        its gate is closed or it does not pay for the problem."""
        return {
            label: [spec.weight * (pays_for(spec, problem) and _is_open(spec, i, scores)) for i, problem in enumerate(problems)]
            for label, spec in self.specs.items()
        }

    def _ledger_row(
        self, problem: Problem, completion: Completion, label: str, score: Score, weighted: float | None
    ) -> dict[str, Any]:
        return {
            "problem_id": problem.id,
            "sample": completion.sample,
            "component": label,
            "verifiable": label == self.verifiable,
            "value": score.value if isinstance(score, Scored) else None,
            "weighted": weighted,
            "valid": isinstance(score, Scored),
            "reason": score.reason,
            "judged": score.judged if isinstance(score, Scored) else "",
            "measured": json.dumps(dict(score.measured)) if isinstance(score, Scored) else "",  # one type in every step's file
            "prompt": problem.prompt,
            "completion": completion.text,
            "answer": problem.answer,
            "length": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }

    def _batch(
        self,
        flat: Sequence[tuple[int, Problem, Completion]],
        kept: Sequence[int],
        scores: dict[str, list[Score]],
        factors: dict[str, list[float]],
    ) -> GradedBatch:
        completions = _each_thought_trained([(group, completion) for group, _, completion in flat], kept)

        def per_token(label: str) -> list[tuple[float, ...]]:
            return [_spread(scores[label][i], factors[label][i], len(flat[i][2].token_ids)) for i in kept]

        accuracy = None if self.verifiable is None else [scores[self.verifiable][i].value for i in kept]  # type: ignore[union-attr]
        return batch_from(
            completions,
            _common([completion.sampling for _, _, completion in flat]),
            group=[flat[i][0] for i in kept],
            rewards={label: pad(per_token(label), torch.float32) for label in self.components},
            process=tuple(label for label, component in self.components.items() if component.pays_steps),
            accuracy=None if accuracy is None else torch.tensor(accuracy, dtype=torch.float32),
        )

    def _metrics(
        self,
        scores: dict[str, list[Score]],
        weighted: Sequence[dict[str, float] | None],
        flat: Sequence[tuple[int, Problem, Completion]],
        greedy: Sequence[Completion],
        dropped: int,
    ) -> Metrics:
        count, completions = len(flat), [completion for _, _, completion in flat]
        summed = [sum(w.values()) for w in weighted if w is not None]
        metrics: Metrics = {
            "reward": Mean(sum(summed), len(summed)),
            "length/mean": Mean(sum(len(c.token_ids) for c in completions), count),
            "length/truncated": Mean(sum(c.truncated for c in completions), count),
            "invalid/fraction": Mean(sum(w is None for w in weighted), count),
            "groups/dropped": Mean(dropped, 1),
            "tokens": Mean(sum(len(c.token_ids) for c in [*completions, *greedy]), 1),
        }
        for label, values in scores.items():
            judged = [s.value for s in values if isinstance(s, Scored)]
            metrics[f"reward/{label}"] = Mean(sum(judged), len(judged))
            metrics |= _measured(label, values)
        if self.verifiable is not None:
            metrics["accuracy"] = metrics[f"reward/{self.verifiable}"]
            metrics |= _accuracy_at_budgets(completions, scores[self.verifiable])
            missing = sum(isinstance(s, Scored) and s.unanswered for s in scores[self.verifiable])
            metrics["answers/missing"] = Mean(missing, count)
        return metrics


def scored(label: str, component: Reward, groups: Sequence[Group], state: Any) -> list[Score]:
    """One checked score per completion: a value that is not finite is Invalid, and a component that reads accuracy is not asked
    about completions that could not be verified, which are Invalid to it. Raises UserError, naming the component, for what a
    reward must not do: raise, return the wrong count or something else than scores, or spread a value wrongly."""
    asked = [_verified(group) for group in groups] if component.reads_accuracy else groups
    wanted = sum(len(group.completions) for group in asked)
    try:
        scores = component.score(asked, state)
    except (UserError, LearnerLost):
        raise
    except Exception as error:  # a user's reward may raise anything; the run stops and says where
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno}"
        raise UserError(f"reward {label!r} raised {type(error).__name__}: {error} ({where})") from error
    if not isinstance(scores, Sequence):
        raise UserError(
            f"reward {label!r} returned {type(scores).__name__}: it must return a list with a score for each completion"
        )
    if stranger := next((s for s in scores if not isinstance(s, Scored | Invalid)), None):
        raise UserError(f"reward {label!r} returned {stranger!r}: a score is Scored(value) or Invalid(reason)")
    if len(scores) != wanted:
        raise UserError(f"reward {label!r} returned {len(scores)} scores for {wanted} completions: it must return one for each")
    if component.reads_accuracy:
        given = iter(scores)
        accuracy = [a for group in groups for a in group.accuracy or [0.0] * len(group.completions)]
        scores = [NOT_VERIFIED if a is None else next(given) for a in accuracy]
    completions = [completion for group in groups for completion in group.completions]
    return [_checked(label, score, len(c.token_ids)) for score, c in zip(scores, completions, strict=True)]


def _verified(group: Group) -> Group:
    """Without the completions that could not be verified."""
    judged = [i for i, accuracy in enumerate(group.accuracy) if accuracy is not None]
    if len(judged) == len(group.accuracy):
        return group
    return replace(
        group,
        completions=[group.completions[i] for i in judged],
        accuracy=tuple(group.accuracy[i] for i in judged),
    )


def refuse_broken(scores: Sequence[Sequence[Score]], max_invalid_fraction: float) -> None:
    """Raise UserError with the reasons where too many completions were judged invalid. `scores` has a row per component, each
    with an entry per completion."""
    invalid = [any(isinstance(score, Invalid) for score in column) for column in zip(*scores, strict=True)]
    if invalid and sum(invalid) / len(invalid) > max_invalid_fraction:
        reasons = Counter(score.reason for row in scores for score in row if isinstance(score, Invalid))
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise UserError(
            f"{sum(invalid)} of {len(invalid)} completions could not be graded, more than max_invalid_fraction "
            f"{max_invalid_fraction}: {told}"
        )


def with_accuracy(groups: Sequence[Group], verified: Sequence[Score]) -> list[Group]:
    """The groups with the verifiable component's raw values in `accuracy`, None where it was invalid."""
    values = iter(score.value if isinstance(score, Scored) else None for score in verified)
    return [replace(group, accuracy=tuple(next(values) for _ in group.completions)) for group in groups]


def _component(spec: Component) -> Reward:
    target = plugins.find("rewards", spec.name)
    if isinstance(target, type) and issubclass(target, Reward):
        component: Reward = plugins.bind("rewards", spec.name, spec.options)()
        return component
    return from_trl(spec.name, target, spec.options)


def _measured(label: str, scores: Sequence[Score]) -> Metrics:
    """The means of what a component measured, each over the completions that it was measured of."""
    told = [score.measured for score in scores if isinstance(score, Scored)]
    return merge({f"{label}/{name}": Mean(value, 1) for name, value in measured.items()} for measured in told)


def _accuracy_at_budgets(completions: Sequence[Completion], scores: Sequence[Score]) -> Metrics:
    """Of completions whose thoughts were cut, at each budget."""
    judged = zip(completions, scores, strict=True)
    told = [(c.cut.budget, score.value) for c, score in judged if c.cut and isinstance(score, Scored)]
    return merge({f"accuracy/{budget}": Mean(value, 1)} for budget, value in told)


def _each_thought_trained(flat: Sequence[tuple[int, Completion]], kept: Sequence[int]) -> list[Completion]:
    """The kept completions. Of those that begin with a thought cut at one place, the first trains what it says
    (`rollout.anytime`); where that one is not kept, the first that is does so."""
    kept_there: dict[tuple[int, Cut], int] = {}
    for i in kept:
        group, completion = flat[i]
        if completion.cut is not None:
            kept_there.setdefault((group, completion.cut), i)
    completions = {i: flat[i][1] for i in kept}
    for i in set(range(len(flat))) - set(kept):
        group, left = flat[i]
        if left.cut is not None and any(left.loss_mask[: left.cut.end]) and (group, left.cut) in kept_there:
            heir = kept_there[group, left.cut]
            mask = left.loss_mask[: left.cut.end] + completions[heir].loss_mask[left.cut.end :]
            completions[heir] = replace(completions[heir], loss_mask=mask)
    return [completions[i] for i in kept]


def _weighted(scores: dict[str, list[Score]], factors: dict[str, list[float]]) -> list[dict[str, float] | None]:
    """Each completion's values by component, as they count; None where a component could not judge it."""
    count = len(next(iter(scores.values())))
    raw = [{label: row[i].value for label, row in scores.items() if isinstance(row[i], Scored)} for i in range(count)]  # type: ignore[union-attr]
    return [
        {label: value * factors[label][i] for label, value in values.items()} if len(values) == len(scores) else None
        for i, values in enumerate(raw)
    ]


def pays_for(spec: Component, problem: Problem) -> bool:
    """Whether a problem is of the component's share: the same ones in every run."""
    return seed_from("share", problem.id) < spec.share * 2**63


def _is_open(spec: Component, i: int, scores: dict[str, list[Score]]) -> bool:
    condition = scores[spec.gate.component][i] if spec.gate else None
    return spec.gate is None or (isinstance(condition, Scored) and condition.value >= spec.gate.at_least)


def _spread(score: Score, factor: float, length: int) -> tuple[float, ...]:
    """A raw value over the completion's tokens, as the component spread it or all at the last token, times `factor`."""
    assert isinstance(score, Scored)
    raw = score.per_token or (0.0,) * (length - 1) + (score.value,)
    return tuple(value * factor for value in raw)


def _checked(label: str, score: Score, length: int) -> Score:
    """The score, or Invalid where its numbers are not finite. Raises UserError for a spread that does not fit."""
    if isinstance(score, Invalid):
        return score
    spread = score.per_token or (score.value,)
    if score.per_token is not None and len(spread) != length:
        raise UserError(f"reward {label!r} spread a score over {len(spread)} tokens of a completion of {length}")
    if not math.isfinite(score.value):
        return Invalid(f"{label}: value is {score.value}")
    if not all(map(math.isfinite, spread)):
        return Invalid(f"{label}: the value of a token is not finite")
    if strange := [name for name, value in score.measured.items() if not math.isfinite(value)]:
        return Invalid(f"{label}: {strange[0]} is {score.measured[strange[0]]}")
    if score.per_token is not None and abs(sum(spread) - score.value) > 1e-4 * (1 + abs(score.value)):
        raise UserError(f"reward {label!r}: the tokens' values sum to {sum(spread):g}, and the value is {score.value:g}")
    return score


def _common(samplings: Sequence[Sampling]) -> Sampling:
    if len(set(samplings)) != 1:
        raise ValueError(f"a batch mixes {len(set(samplings))} ways of sampling; log-probs would not be comparable")
    return samplings[0]
