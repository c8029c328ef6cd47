"""Short-RL's lazy length penalty: shorten only after being right (arXiv 2505.12284).

Among the correct completions of a problem, of lengths ℓ_i between ℓ_min and ℓ_max, with the tolerances τ_ℓ and τ_acc,

    R_i = { 0                                   wrong, or the gate is closed
          { 0.5                                 ℓ_i ≤ ℓ_min + τ_ℓ
          { 0.5 − (ℓ_i − ℓ_min)/(ℓ_max − ℓ_min) beyond
    gate:  acc ≥ MaxACC − τ_acc,   MaxACC ← max(MaxACC, acc) before the comparison,

acc being the share of correct completions in the whole batch as it was sampled, before any filter, without those that could
not be judged. MaxACC is the component's state: it is checkpointed, and evaluation never moves it. (The authors' code adds 1e-5
to the denominator. Beyond the band ℓ_max > ℓ_min, so nothing needs it.)

ℓ is the completion's length in tokens, its end token included. Worked, with τ_ℓ = 100: lengths 300, 350, 500, 900 (correct) and
200 (wrong) give 0.5, 0.5, 0.1667, −0.5 and 0. A single correct completion gets 0.5, and so do all within the band: by design
there is no pressure there. Just past the band the value jumps down, by more than τ_ℓ/(ℓ_max − ℓ_min). When the gate closes the
correct lose up to 0.5 together, which advantages that compare the members of a group do not see. A completion that the token
limit cut after its answer is correct like any other, and likely the longest.

The paper adds R to the rewards for answer and format: as components beside this one, whose `weight` is the factor α (paper: 1).
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.accuracy import known_accuracy
from rlcore.batch import GradedBatch
from rlcore.protocols import StatefulReward
from rlcore.recipe.schema import NonNegativeInt, Share
from rlcore.run.metrics import Max, Mean, Metrics
from rlcore.types import Group, Score, Scored


class ShortRl(StatefulReward):
    """`length_tolerance`: τ_ℓ in tokens; 0 takes the neutral band away (the paper: 100 for mathematics, 200 for logic).
    `accuracy_tolerance`: τ_acc; 1 keeps the gate open at any accuracy. `correct_only`: false lets wrong completions take part
    as if they were correct. Raises UserError in runs that verify nothing."""

    reads_accuracy = True
    reads_length = True
    compares_group = True

    def __init__(
        self, *, length_tolerance: NonNegativeInt, accuracy_tolerance: Share = 0.05, correct_only: bool = True
    ) -> None:
        self._band, self._accuracy_tolerance, self._correct_only = length_tolerance, accuracy_tolerance, correct_only

    def initial_state(self) -> float:
        return 0.0

    def score(self, groups: Sequence[Group], state: float) -> list[Score]:
        """One score per completion, group after group."""
        accuracy, best = _progress(groups, state)
        if not self._opens(accuracy, best):
            closed = Scored(0.0, f"accuracy {accuracy:.3f}, more than {self._accuracy_tolerance:g} below the best {best:.3f}")
            return [closed for group in groups for _ in group.completions]
        return [score for group in groups for score in self._compare(group)]

    def update(self, groups: Sequence[Group], graded: GradedBatch, state: float) -> tuple[float, Metrics]:
        """MaxACC with this batch in it. Reports it, and whether the gate was open."""
        accuracy, best = _progress(groups, state)
        return best, {"best_accuracy": Max(best), "active": Mean(float(self._opens(accuracy, best)), 1)}

    def _opens(self, accuracy: float, best: float) -> bool:
        return accuracy >= best - self._accuracy_tolerance - 1e-9  # 0.55 is 0.05 below 0.6, whatever floats make of it

    def _compare(self, group: Group) -> list[Score]:
        takes_part = [a == 1 or not self._correct_only for a in group.accuracy]
        lengths = [len(completion.token_ids) for completion in group.completions]
        compared = [length for length, part in zip(lengths, takes_part, strict=True) if part]
        return [
            self._score(length, min(compared), max(compared)) if part else Scored(0.0, "not right")
            for length, part in zip(lengths, takes_part, strict=True)
        ]

    def _score(self, length: int, shortest: int, longest: int) -> Score:
        excess = length - shortest
        if excess <= self._band:
            return Scored(0.5, f"{length} tokens, within {self._band} of the shortest {shortest}")
        return Scored(0.5 - excess / (longest - shortest), f"{length} tokens, the shortest {shortest}")


def _progress(groups: Sequence[Group], state: float) -> tuple[float, float]:
    """The batch's accuracy, and MaxACC with it. A batch of which nothing could be judged moves nothing."""
    valid = [accuracy for group in groups for accuracy in known_accuracy("short_rl", group)]
    accuracy = sum(valid) / len(valid) if valid else state
    return accuracy, max(state, accuracy)
