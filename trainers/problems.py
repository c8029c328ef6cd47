"""Which problems come next: the Mixture's in its order, unless the recipe chooses by how often they are solved.

A problem's success rate p is the mean raw accuracy of the latest group that was sampled of it.

    curriculum   `candidates`·n problems are held, and a round takes the n of them with the smallest |p − target|. One that was
                 never measured counts as at the target, and of equals the oldest goes first: so each is measured in the end.
                 What is not taken stays held if it was never measured, else it waits until the Mixture comes round to it
    replay       a problem with p = 0 comes back after `after` steps or more, those first that wait longest, as at most the
                 `share` of a round; it is measured again, and leaves once it is solved

Groups that are all right or all wrong teach a group-relative advantage nothing, and a success rate of a half most. SPEED-RL
(Zhang et al. 2025, arXiv 2506.09016) tries prompts with a few samples and trains on those of intermediate pass rate; Kimi k1.5
(arXiv 2501.12599, "prioritized sampling") draws problems by 1 − p. Ours pays for no extra samples: it goes by the latest
group, and so chooses from the second epoch over the problems on.

Worked: the target is 0.5, there are two candidates for each place, and A (p = 1), B (0.25), C (never measured) and D (0.75) are
held, in this order. A round of two takes C and B; A and D are let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.batch import GradedBatch
from rlcore.data.mixture import Mixture
from rlcore.recipe.schema import Curriculum, Replay
from rlcore.run.metrics import Mean, Metrics, merge
from rlcore.types import Problem
from trainers.groups import group_mean


class Problems:
    """Of a Mixture. It counts steps by `measured`, which is called once in each."""

    def __init__(self, mixture: Mixture, curriculum: Curriculum | None, replay: Replay | None) -> None:
        self.mixture, self.curriculum, self.replay = mixture, curriculum, replay
        self.by_id = {problem.id: problem for problem in mixture.problems}
        self._step = 0
        self._rates: dict[str, float] = {}
        self._held: dict[str, Problem] = {}  # the oldest first
        self._unsolved: dict[str, int] = {}  # with the step that found them so, the longest waiting first
        self._taken: Metrics = {}  # since the last report

    def next(self, n: int) -> list[Problem]:
        """The n problems of a round; none of them twice, unless there are hardly more than n."""
        waited = self._waited()
        room = min(len(waited), self.replay.most(n) if self.replay else 0)
        drawn = self._drawn(n - room)
        due = [name for name in waited if name not in {problem.id for problem in drawn}][:room]
        drawn += self._drawn(n - len(due) - len(drawn))
        known = [self._rates[problem.id] for problem in drawn if problem.id in self._rates]
        rate: Metrics = {"curriculum/rate": Mean(sum(known), len(known))} if self.curriculum else {}
        share: Metrics = {"replay/share": Mean(len(due), n)} if self.replay else {}
        self._taken = merge([self._taken, rate | share])
        problems = [self.by_id[name] for name in due] + drawn
        for problem in problems:
            self._unsolved.pop(problem.id, None)  # until its group says so again
        return problems

    def measured(self, rates: Mapping[str, float]) -> None:
        """A step found these success rates, by problem id."""
        self._step += 1
        if self.curriculum:
            self._rates |= rates
        for name, rate in rates.items() if self.replay else ():
            self._unsolved.pop(name, None)
            if rate == 0:
                self._unsolved[name] = self._step

    def report(self) -> Metrics:
        """Of what was taken since the last report; nothing where the recipe does not choose."""
        taken, self._taken = self._taken, {}
        return taken | ({"replay/waiting": Mean(len(self._unsolved), 1)} if self.replay else {})

    def state(self) -> Any:
        return {
            "mixture": self.mixture.state(),
            "step": self._step,
            "rates": self._rates,
            "held": list(self._held),
            "unsolved": list(self._unsolved.items()),
        }

    def restore(self, state: Any) -> None:
        self.mixture.restore(state["mixture"])
        self._step, self._rates = state["step"], dict(state["rates"])
        self._held = {name: self.by_id[name] for name in state["held"]}
        self._unsolved = dict(state["unsolved"])

    def _waited(self) -> list[str]:
        """The unsolved problems that may come back in the next step."""
        after = self.replay.after if self.replay else 0
        return [name for name, step in self._unsolved.items() if self._step + 1 - step >= after]

    def _drawn(self, n: int) -> list[Problem]:
        """The n that the curriculum takes, or the Mixture's next."""
        if self.curriculum is None:
            return self.mixture.next(n)
        for problem in self.mixture.next(max(0, self.curriculum.candidates * n - len(self._held))):
            self._held.setdefault(problem.id, problem)  # one that is held already came round again before its turn
        nearest = [self._held.pop(name) for name in sorted(self._held, key=self._distance)[:n]]
        # Else those furthest from the target would fill the hold, and leave nothing to choose.
        self._held = {name: problem for name, problem in self._held.items() if name not in self._rates}
        return nearest + self.mixture.next(n - len(nearest))  # which are too few where there are fewer problems than n

    def _distance(self, name: str) -> float:
        assert self.curriculum is not None
        return abs(self._rates.get(name, self.curriculum.target) - self.curriculum.target)


def success_rates(batch: GradedBatch, names: Sequence[str]) -> dict[str, float]:
    """The mean raw accuracy of each problem, of which `names` has the id by the number of its group; of a problem with two
    groups that of the later. Problems of which nothing could be judged are not among them."""
    assert batch.accuracy is not None
    means = group_mean(batch.accuracy.double(), batch.group)
    return {names[group]: mean for group, mean in zip(batch.group.tolist(), means.tolist(), strict=True)}
