"""How components become a graded batch: weights, gates, invalid completions, the ledger, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from rewards.compose import Rewards, scored
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.recipe.schema import Component
from rlcore.types import Completion, Cut, Group, Invalid, Problem, Sampling, Score, Scored


def completion(problem: str, sample: int, text: str, length: int = 3) -> Completion:
    tokens = tuple(range(5, 5 + length))
    ones, zeros = (1,) * length, (0.0,) * length
    return Completion(problem, sample, sample, (1, 2), tokens, ones, zeros, (0,) * length, Sampling(), "stop", text)


def groups(*texts: Sequence[str]) -> list[Group]:
    return [
        Group(Problem(f"p{g}", "?", "1"), [completion(f"p{g}", i, text, 2 + i) for i, text in enumerate(row)])
        for g, row in enumerate(texts)
    ]


class Told(Reward):
    """Scores a completion with what its text says: a number, or `invalid`."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        texts = [c.text for group in groups for c in group.completions]
        return [Invalid("told so") if text == "invalid" else Scored(float(text), judged=text) for text in texts]


class Half(Told):
    verifiable = False

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(0.5) for group in groups for _ in group.completions]


class Spread(Half):
    """Pays 3 over the first two tokens."""

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [
            Scored(3.0, per_token=(1.0, 2.0) + (0.0,) * (len(c.token_ids) - 2)) for group in groups for c in group.completions
        ]


class Balanced(Half):
    """Takes from one token what it gives another."""

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [
            Scored(0.0, per_token=(1.0, -1.0) + (0.0,) * (len(c.token_ids) - 2)) for group in groups for c in group.completions
        ]


class Measures(Half):
    """Counts the lines of a text, where there are any."""

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        texts = [c.text for group in groups for c in group.completions]
        return [Scored(0.5, measured={"lines": float(text)} if text else {}) for text in texts]


class Misfit(Half):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(1.0, per_token=(1.0,)) for group in groups for c in group.completions]


class Boom(Half):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        raise ZeroDivisionError("boom")


class Bare(Half):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [0.5 for group in groups for _ in group.completions]  # type: ignore[misc]


class Reads(Half):
    """Pays the number of tokens, and keeps what it was asked about."""

    reads_accuracy = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        self.seen = [(tuple(c.text for c in group.completions), group.accuracy) for group in groups]
        return [Scored(float(len(c.token_ids) - 1)) for group in groups for c in group.completions]


class Forgets(Reads):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return super().score(groups, state)[1:]


class Short(Half):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return super().score(groups, state)[1:]


@pytest.fixture
def compose() -> Callable[..., Rewards]:
    def make(*components: dict, max_invalid_fraction: float = 1.0) -> Rewards:
        specs = [Component(**{**c, "name": f"{__name__}:{c['name']}"}) for c in components]
        return Rewards(specs, max_invalid_fraction)

    return make


def test_two_verifiable_components_are_refused_by_name(compose: Callable) -> None:
    """Which of them is the accuracy that filters and evaluation read?"""
    with pytest.raises(UserError, match="'Told' and 'again' are all verifiable"):
        compose({"name": "Told"}, {"name": "Half"}, {"name": "Told", "label": "again"})


def test_a_batch_of_which_nothing_is_verified_has_no_accuracy(compose: Callable) -> None:
    graded = compose({"name": "Half"}).grade(groups(["1", "0"]))
    assert graded.batch.accuracy is None
    assert "accuracy" not in graded.metrics


def test_weighted_values_stand_at_the_last_token(compose: Callable) -> None:
    batch = compose({"name": "Told"}, {"name": "Half", "weight": 0.2}).grade(groups(["1", "0"])).batch
    torch.testing.assert_close(batch.rewards["Told"], torch.tensor([[0.0, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(batch.rewards["Half"], torch.tensor([[0.0, 0.1, 0], [0, 0, 0.1]]))
    torch.testing.assert_close(batch.totals, torch.tensor([1.1, 0.1]))
    assert batch.accuracy.tolist() == [1, 0]


def test_a_components_own_spread_over_tokens_is_kept(compose: Callable) -> None:
    batch = compose({"name": "Told"}, {"name": "Spread", "weight": 2}).grade(groups(["1", "0"])).batch
    torch.testing.assert_close(batch.rewards["Spread"], torch.tensor([[2.0, 4, 0], [2, 4, 0]]))


def test_a_spread_that_sums_to_nothing_is_kept(compose: Callable) -> None:
    batch = compose({"name": "Told"}, {"name": "Balanced", "weight": 2}).grade(groups(["1", "0"])).batch
    torch.testing.assert_close(batch.rewards["Balanced"], torch.tensor([[2.0, -2, 0], [2, -2, 0]]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Misfit", "spread a score over 1 tokens of a completion of 2"),
        ("Boom", r"reward 'Boom' raised ZeroDivisionError: boom \(.*test_compose.py:\d+\)"),
        ("Bare", r"returned 0.5: a score is Scored\(value\) or Invalid\(reason\)"),
    ],
)
def test_a_reward_that_breaks_its_contract_is_named(compose: Callable, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose({"name": "Told"}, {"name": name}).grade(groups(["1", "0"]))


def test_a_closed_gate_pays_nothing(compose: Callable) -> None:
    gated = {"name": "Half", "gate": {"component": "Told", "at_least": 1.0}}
    graded = compose({"name": "Told"}, gated).grade(groups(["1", "0"]))
    assert graded.batch.rewards["Half"].sum(1).tolist() == [0.5, 0.0]
    raw = [row["value"] for row in graded.ledger if row["component"] == "Half"]
    assert raw == [0.5, 0.5]  # the ledger keeps the raw value


def test_a_component_pays_for_its_share_of_the_problems_alone(compose: Callable) -> None:
    """Whole groups are paid or not, the same ones whatever is scored beside them; accuracy is that of all."""
    many = groups(*[["1", "1"]] * 400)
    rewards = compose({"name": "Told", "share": 0.1}, {"name": "Half"})
    graded = rewards.grade(many)
    paid = graded.batch.rewards["Told"].sum(1).view(-1, 2)
    assert (paid[:, 0] == paid[:, 1]).all()
    assert 20 < paid[:, 0].sum() < 60
    assert graded.batch.rewards["Half"].sum() == 400
    assert graded.batch.accuracy.mean() == 1
    again = rewards.grade(many[:7] + many[200:])
    assert torch.equal(again.batch.rewards["Told"].sum(1), torch.cat([paid[:7], paid[200:]]).flatten())


def test_invalid_completions_leave_the_batch_and_are_counted(compose: Callable) -> None:
    """One of the first group leaves; the second group has one valid member left and is dropped; the third stays."""
    graded = compose({"name": "Told"}).grade(groups(["1", "0", "invalid"], ["1", "invalid"], ["0", "0"]))
    assert graded.batch.group.tolist() == [0, 0, 2, 2]
    assert graded.metrics["invalid/fraction"].value == pytest.approx(2 / 7)
    assert graded.metrics["groups/dropped"].value == 1
    assert graded.metrics["accuracy"].value == pytest.approx(2 / 5)
    assert [row["valid"] for row in graded.ledger].count(False) == 2
    assert {row["reason"] for row in graded.ledger if not row["valid"]} == {"told so"}


def test_what_reads_accuracy_is_not_asked_about_what_was_not_verified() -> None:
    """Each score stands where its completion does; a reward that reads no accuracy is asked about all."""
    asked = [replace(g, accuracy=(None, 1.0, None, 0.0)) for g in groups(["a", "b", "c", "d"], ["e", "f", "g", "h"])]
    asked[1] = replace(asked[1], accuracy=(None,) * 4)
    read = Reads()
    assert scored("reads", read, asked, None) == [
        *(Invalid("not verified"), Scored(2.0), Invalid("not verified"), Scored(4.0)),
        *[Invalid("not verified")] * 4,
    ]
    assert read.seen == [(("b", "d"), (1.0, 0.0)), ((), ())]
    assert scored("half", Half(), asked, None) == [Scored(0.5)] * 8
    with pytest.raises(UserError, match="reward 'short' returned 1 scores for 2 completions"):
        scored("short", Forgets(), asked, None)


# -- thoughts cut at budgets ---------------------------------------------------------------------------------------------


def test_a_thought_is_trained_though_its_first_row_could_not_be_judged(compose: Callable) -> None:
    """Rows of two tokens of a thought, one forced and a summary: two thoughts, cut at 1 and at 2, with three summaries each.
    The first row of the first thought at 2 has no verdict: the next one that has carries the second token. Of the second
    thought at 2 nothing can be judged."""
    texts = ["1", "0", "1", "invalid", "invalid", "1", "0", "1", "1", "invalid", "invalid", "invalid"]
    rows = []
    for i, text in enumerate(texts):
        end, first = 1 + i % 6 // 3, i % 3 == 0
        mask = (*(int(first and t == end - 1) for t in range(end)), 0, 1)
        rows.append(replace(completion("p", i, text, end + 2), loss_mask=mask, cut=Cut(i // 6, end, end)))
    batch = compose({"name": "Told"}).grade([Group(Problem("p", "?", "1"), rows)]).batch
    one, none = [1, 0, 1, 0], [0, 0, 1, 0]
    assert batch.loss_mask.int().tolist() == [one, none, none, [0, 1, 0, 1], one, none, none]


def test_a_value_that_is_not_finite_is_invalid(compose: Callable) -> None:
    graded = compose({"name": "Told"}).grade(groups(["nan", "1", "0"]))
    assert len(graded.batch.tokens) == 2
    assert graded.ledger[0]["reason"] == "Told: value is nan"


def test_what_is_measured_beside_a_value_is_told_and_pays_nothing(compose: Callable) -> None:
    """The mean is over the completions that it was measured of; a number that is not finite is a broken grader."""
    graded = compose({"name": "Measures"}).grade(groups(["1", "4", ""], ["1", "inf", ""]))
    assert graded.metrics["Measures/lines"].value == 2
    assert graded.batch.totals.tolist() == [0.5] * 5
    assert [row["measured"] for row in graded.ledger][:3] == ['{"lines": 1.0}', '{"lines": 4.0}', "{}"]
    assert graded.ledger[4]["reason"] == "Measures: lines is inf"
    assert graded.ledger[4]["measured"] == ""


def test_too_many_invalid_completions_abort_with_the_reasons(compose: Callable) -> None:
    with pytest.raises(UserError, match=r"2 of 4 completions could not be graded, .* 0.4: 2 x told so"):
        compose({"name": "Told"}, max_invalid_fraction=0.4).grade(groups(["invalid", "1"], ["invalid", "0"]))


def test_a_wrong_count_is_refused(compose: Callable) -> None:
    with pytest.raises(UserError, match="'Short' returned 3 scores for 4 completions"):
        compose({"name": "Told"}, {"name": "Short"}).grade(groups(["1", "0"], ["1", "0"]))


def test_what_sampling_verified_is_not_scored_again(compose: Callable) -> None:
    rewards = compose({"name": "Told"})
    verified: list[Score] = [Scored(1.0), Scored(1.0)]
    assert rewards.grade(groups(["0", "0"]), verified).batch.accuracy.tolist() == [1, 1]


# -- greedy completions --------------------------------------------------------------------------------------------------


def beside(greedy: Sequence[str], *texts: Sequence[str]) -> list[Group]:
    """Groups with a greedy completion each."""
    pairs = zip(groups(*texts), greedy, strict=True)
    return [replace(group, greedy=completion(group.problem.id, 9, text)) for group, text in pairs]


def test_a_greedy_completion_is_worth_what_a_sampled_one_would_be(compose: Callable) -> None:
    """All components, weighted and gated by its own scores: 2 · 1 + 0.5, and 0 behind a closed gate."""
    rewards = compose({"name": "Told", "weight": 2}, {"name": "Half", "gate": {"component": "Told", "at_least": 1.0}})
    graded = rewards.grade(beside(["1", "0"], ["0", "1"], ["1", "1"]))
    assert graded.batch.greedy is not None
    assert graded.batch.greedy.tolist() == [2.5, 2.5, 0, 0]
    assert graded.batch.totals.tolist() == [0, 2.5, 2.5, 2.5]
    assert graded.metrics["reward/greedy"].value == 1.25


def test_a_greedy_completion_is_not_trained_on_and_counts_for_nothing_else(compose: Callable) -> None:
    """Not in the batch, the ledger, the accuracy or the lengths."""
    rewards = compose({"name": "Told"})
    graded, without = (rewards.grade(asked) for asked in (beside(["1"], ["0", "0"]), groups(["0", "0"])))
    assert graded.batch.tokens.tolist() == without.batch.tokens.tolist()
    assert graded.ledger == without.ledger
    assert {k for k, v in graded.metrics.items() if without.metrics.get(k) != v} == {"reward/greedy", "tokens"}
    assert graded.metrics["tokens"].value > without.metrics["tokens"].value  # they were sampled, and cost what others do
    assert without.batch.greedy is None


def test_what_sampling_verified_is_not_taken_for_the_greedy_completions(compose: Callable) -> None:
    graded = compose({"name": "Told"}).grade(beside(["1"], ["0", "0"]), [Scored(0.0), Scored(0.0)])
    assert graded.batch.greedy is not None
    assert graded.batch.greedy.tolist() == [1, 1]


def test_an_invalid_greedy_completion_drops_its_group_which_is_counted(compose: Callable) -> None:
    """There is nothing to compare its completions with; what was judged of them stays in the ledger."""
    graded = compose({"name": "Told"}).grade(beside(["1", "invalid", "0"], ["1", "0"], ["1", "0"], ["0", "0"]))
    assert graded.batch.group.tolist() == [0, 0, 2, 2]
    assert graded.batch.greedy is not None
    assert graded.batch.greedy.tolist() == [1, 1, 0, 0]
    assert graded.metrics["groups/dropped"].value == 1
    assert graded.metrics["reward/greedy"].value == 0.5
    assert graded.metrics["invalid/fraction"].value == 0
    assert len(graded.ledger) == 6


def test_greedy_completions_that_cannot_be_judged_are_the_graders_failure_too(compose: Callable) -> None:
    rewards = compose({"name": "Told"}, max_invalid_fraction=0.3)
    with pytest.raises(UserError, match="2 of 6 completions could not be graded"):
        rewards.grade(beside(["invalid", "invalid"], ["1", "0"], ["1", "0"]))


def test_a_single_completion_is_compared_with_the_greedy_one(compose: Callable) -> None:
    graded = compose({"name": "Told"}).grade(beside(["0", "invalid"], ["1"], ["1"]))
    assert graded.batch.group.tolist() == [0]
    assert graded.batch.greedy is not None
    assert graded.batch.greedy.tolist() == [0]


def test_where_every_greedy_completion_is_invalid_nothing_is_left(compose: Callable) -> None:
    graded = compose({"name": "Told"}).grade(beside(["invalid"], ["1", "0"]))
    assert len(graded.batch.tokens) == 0
    assert graded.metrics["groups/dropped"].value == 1
    assert graded.metrics["reward/greedy"].count == 0  # and so is not logged
