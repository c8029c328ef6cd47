"""Greedy stepwise best-of-N (Wang et al. 2025, arXiv 2503.13551): of N candidates for the next step the reward model picks one,
the solution goes on from it, and so on until it ends.

The candidates after the same steps of a problem are the same, number by number, whoever asks: a larger N chooses among those of
a smaller one and more, and two reward models choose among the same. So curves do not differ by the luck of their sampling, and
nothing is sampled twice. All solutions take a step together, in one batch of the engine and one of the reward model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewards.judge import Judge
from rewards.judged_text import Asked
from rlcore.evaluation.best_of_n import judged_once, steps_of
from rlcore.prompts import Prompter
from rlcore.protocols import Engine, Progress, no_progress
from rlcore.types import Completion, FinishReason, Problem, Request, Sampling, seed_from


@dataclass(frozen=True)
class Begun:
    """A solution as far as it goes."""

    problem: Problem
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    steps: tuple[str, ...] = ()
    ended: FinishReason | None = None  # None: it goes on


class Candidates:
    """Next steps, sampled from the engine as they are asked for and then kept. A step ends at the separator; a solution as the
    model ends it, or with the last token that `sampling` allows to all of it."""

    def __init__(self, engine: Engine, prompter: Prompter, sampling: Sampling, separator: str, seed: int) -> None:
        self.engine, self.prompter, self.sampling = engine, prompter, sampling
        self.separator, self.seed = separator, seed
        self._known: dict[tuple[str, tuple[int, ...]], list[Begun]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}

    def after(self, asked: Sequence[tuple[Begun, int]], progress: Progress = no_progress) -> list[list[Begun]]:
        """For each solution and number so many ways to go on from it."""
        wanted: dict[tuple[str, tuple[int, ...]], tuple[Begun, int]] = {}
        for begun, count in asked:
            key = (begun.problem.id, begun.token_ids)
            wanted[key] = (begun, max(count, wanted.get(key, (begun, 0))[1]))
        new = [(begun, k) for key, (begun, count) in wanted.items() for k in range(len(self._known.setdefault(key, [])), count)]
        done = self.engine.generate([self._request(begun, k) for begun, k in new], progress)
        for (begun, _), completion in zip(new, done, strict=True):
            self._known[begun.problem.id, begun.token_ids].append(self._longer(begun, completion))
        return [self._known[begun.problem.id, begun.token_ids][:count] for begun, count in asked]

    def completion(self, begun: Begun, sample: int) -> Completion:
        """The solution in the form in which graders take it; one that was not brought to its end as cut off."""
        text = self.prompter.tokenizer.decode(begun.token_ids, skip_special_tokens=True)
        request = Request(begun.problem.id, sample, self.seed, self._prompt(begun.problem), self.sampling)
        return request.completed(begun.token_ids, begun.logprobs, self.engine.version, begun.ended or "length", text)

    def _request(self, begun: Begun, number: int) -> Request:
        # What stands already is part of the prompt: as a forced prefix, its separators would stop the completion.
        prompt_ids = self._prompt(begun.problem) + begun.token_ids
        left = self.sampling.max_new_tokens - len(begun.token_ids)
        seed = seed_from("stepwise", self.seed, begun.problem.id, begun.token_ids, number)
        sampling = replace(self.sampling, max_new_tokens=left, stop=(self.separator,))
        return Request(begun.problem.id, number, seed, prompt_ids, sampling)

    def _prompt(self, problem: Problem) -> tuple[int, ...]:
        if problem.id not in self._prompts:
            self._prompts[problem.id] = self.prompter.render(problem)
        return self._prompts[problem.id]

    def _longer(self, begun: Begun, step: Completion) -> Begun:
        token_ids = begun.token_ids + step.token_ids
        said = self.prompter.tokenizer.decode(step.token_ids, skip_special_tokens=True)
        at_separator = self.separator in said and len(token_ids) < self.sampling.max_new_tokens
        ended = None if at_separator else "length" if self.separator in said else step.finish_reason
        steps = (*begun.steps, *steps_of(step.text, self.separator))
        return Begun(begun.problem, token_ids, begun.logprobs + step.logprobs, steps, ended)


def stepwise(
    candidates: Candidates,
    judge: Judge,
    problems: Sequence[Problem],
    counts: Sequence[int],
    height: int,
    progress: Progress = no_progress,
) -> dict[int, list[Begun]]:
    """For each N the solution of each problem, with `height` steps at most. Of candidates that are judged alike the first is
    taken, and one that says nothing only where all do. `progress` hears how many solutions have ended."""
    walks = [(n, Begun(problem)) for n in counts for problem in problems]
    for _ in range(height):
        going = [i for i, (_, begun) in enumerate(walks) if begun.ended is None]
        if not going:
            break
        offered = candidates.after([(walks[i][1], walks[i][0]) for i in going])
        more = [(len(walks[i][1].steps), some) for i, some in zip(going, offered, strict=True)]
        scores = judged_once(judge, [_asked(each) for before, some in more for each in some if len(each.steps) > before])
        for i, (before, some) in zip(going, more, strict=True):
            worth = [scores[_asked(each)] if len(each.steps) > before else -math.inf for each in some]
            walks[i] = (walks[i][0], some[worth.index(max(worth))])
        progress(sum(walks[i][1].ended is not None for i in going))
    return {n: [begun for count, begun in walks if count == n] for n in counts}


def _asked(begun: Begun) -> Asked:
    return Asked(begun.problem.prompt, begun.steps[:-1], begun.steps[-1:])
