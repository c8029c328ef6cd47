"""Solutions with a verdict on each step: the common form of all step-labelled data.

Made by the readers in `rlcore.data.formats`; what trains and measures process rewards starts from here. As in `Problem`,
`meta` carries what else the data knows, and `meta["unusable"]` why a row of real data should be dropped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StepLabel = Literal["correct", "neutral", "wrong"]  # neutral: not wrong, and no progress either


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """One solution, step by step. `labels` has one entry a step, None where nobody judged it.

    `answer` is the reference answer, None where the data holds none.
    """

    id: str
    problem: str
    answer: str | None
    steps: tuple[str, ...]
    labels: tuple[StepLabel | None, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.steps):
            raise ValueError(f"{self.id} has {len(self.labels)} labels for {len(self.steps)} steps")

    @property
    def first_error(self) -> int | None:
        """The index, from 0, of the first wrong step; None where no step is known to be wrong."""
        return self.labels.index("wrong") if "wrong" in self.labels else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to take one step. `human`: written by the annotator, not by the model. `flagged`: they could not judge it."""

    text: str
    label: StepLabel | None
    human: bool = False
    flagged: bool = False


@dataclass(frozen=True, slots=True)
class AnnotatedStep:
    """The candidates for one step, and the index of the one the solution goes on from; None where it ends undecided."""

    candidates: tuple[Candidate, ...]
    chosen: int | None

    def __post_init__(self) -> None:
        if self.chosen is not None and not 0 <= self.chosen < len(self.candidates):
            raise ValueError(f"candidate {self.chosen} was chosen of {len(self.candidates)}")


@dataclass(frozen=True, slots=True)
class AnnotatedSolution:
    """A solution of which several candidates were judged at each step. Each step but the last has a chosen one, so that what
    precedes the candidates of step i is the first i steps of the `trajectory`."""

    id: str
    problem: str
    answer: str | None
    steps: tuple[AnnotatedStep, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(step.chosen is None for step in self.steps[:-1]):
            raise ValueError(f"{self.id} goes on after a step of which no candidate was chosen")

    @property
    def trajectory(self) -> LabelledSolution:
        """The chosen candidates. An annotator's own step counts as correct unless it was rated: it had to be correct."""
        chosen = [step.candidates[step.chosen] for step in self.steps if step.chosen is not None]
        return LabelledSolution(
            id=self.id,
            problem=self.problem,
            answer=self.answer,
            steps=tuple(candidate.text for candidate in chosen),
            labels=tuple(candidate.label or ("correct" if candidate.human else None) for candidate in chosen),
            meta=self.meta,
        )
