r"""Thoughts that are cut at budgets, with answers asked for at each, behind the ordinary engine protocol: AnytimeReasoner's
rollouts (Qi et al. 2025, arXiv 2505.13438) over any engine, which should have a prefix cache.

Requests of one problem that are submitted together are the rows of its thoughts: for each budget b_1 < … < b_S in turn the
`summaries` that answer after it. A thought is sampled up to b_S, or until it says `ends_thought`; what follows is forced:

    cut at b_s        its first b_s tokens · `interruption` `ends_thought` · `begins_summary` · a summary is sampled
    ended within b_s  all of it                                            · `begins_summary` · a summary is sampled
    never said so     all of it, and that is all: it said its end of sequence instead

A thought that has ended is the same at all later budgets, which have summaries of their own. Every row is an ordinary
completion, whose `cut` names thought and budget. Its loss mask is 1 for its summary and, in the first row of a budget, for what
the thought says between the budget before and this one: each token of a thought is trained once, though many rows begin with
it, and forced tokens never are. (Where the first row cannot be judged, the next of that budget takes its part in the batch:
`rewards.compose`.)

Worked, for budgets 2 and 4 and two summaries: the thought t₁ t₂ t₃ that ends at t₃, forced f (cut) and g (ended), summaries s

    t₁ t₂ f s   1 1 0 1        t₁ t₂ t₃ g s   0 0 1 0 1
    t₁ t₂ f s   0 0 0 1        t₁ t₂ t₃ g s   0 0 0 0 1

A row's random numbers are its own seed's, the thought's are drawn from the seed of its first row, so that both are the same
whatever else is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.protocols import Engine
from rlcore.recipe.schema import Anytime
from rlcore.types import Completion, Cut, Prefix, Request, seed_from
from rollout.around import Around


class Forced(NamedTuple):
    """The tokens between a thought and its summary."""

    cut: tuple[int, ...]  # where a budget cuts it
    ended: tuple[int, ...]  # where it ended by itself


def forced(spec: Anytime, prompter: Prompter, max_new_tokens: int) -> Forced:
    """Raises UserError for what the tokenizer cannot write, and where the longest row has more than `max_new_tokens`."""
    for name in ("interruption", "ends_thought", "begins_summary"):
        text = getattr(spec, name)
        if prompter.tokenizer.unk_token_id in prompter.complete(text, ends=False):
            raise UserError(f"rollout.anytime.{name} is {text!r}, which the model's tokenizer cannot write: set another text")
    end, summary = (
        prompter.complete(text, ends=False) for text in (spec.interruption + spec.ends_thought, spec.begins_summary)
    )
    longest = spec.budgets[-1] + len(end) + len(summary) + spec.summary_tokens
    if longest > max_new_tokens:
        raise UserError(
            f"rollout.anytime: the last budget {spec.budgets[-1]}, {len(end) + len(summary)} forced tokens and summary_tokens "
            f"{spec.summary_tokens} are more than rollout.max_new_tokens {max_new_tokens}: set that to {longest} or more"
        )
    return Forced(end + summary, summary)


class AnytimeEngine(Around):
    """Samples thoughts and their summaries by `engine`. Requests at temperature 0 go through as they are."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, spec: Anytime, forced: Forced) -> None:
        super().__init__(engine)
        self.tokenizer, self.spec, self.forced = tokenizer, spec, forced
        self._thoughts: dict[int, Sequence[Request]] = {}  # under way, by seed: their rows
        self._rows: dict[int, tuple[Request, Cut]] = {}  # whose summaries are under way, by seed: as they were asked for

    def submit(self, requests: Sequence[Request]) -> None:
        for rows in self.divided(requests, self.spec.rows):
            self._think(rows)

    def poll(self) -> list[Completion]:
        finished = []
        for completion in self.engine.poll():
            if rows := self._thoughts.pop(completion.seed, None):
                finished += self._summarise(rows, completion)
            elif row := self._rows.pop(completion.seed, None):
                finished.append(replace(completion, sampling=row[0].sampling, cut=row[1]))
            else:
                finished.append(completion)
        return finished

    def _think(self, rows: Sequence[Request]) -> None:
        first, seed = rows[0], seed_from(rows[0].seed, "thought")
        sampling = replace(first.sampling, max_new_tokens=self.spec.budgets[-1], stop=(self.spec.ends_thought,))
        self._thoughts[seed] = rows
        self.engine.submit([replace(first, seed=seed, sampling=sampling)])

    def _summarise(self, rows: Sequence[Request], thought: Completion) -> list[Completion]:
        """Ask for the summaries of a thought; what is returned are the rows that have none, and are whole."""
        length, stopped = len(thought.token_ids), thought.finish_reason == "stop"
        said = self.spec.ends_thought in str(self.tokenizer.decode(thought.token_ids))
        whole, asking = [], []
        for number, row in enumerate(rows):
            level, summary = divmod(number, self.spec.summaries)
            budget, before = self.spec.budgets[level], self.spec.budgets[level - 1] if level else 0
            cut = Cut(thought.seed, budget, min(length, budget))
            ended = stopped and length <= budget
            known = cut.end if summary else min(cut.end, before)  # tokens that other rows train
            trained = (0,) * known + (1,) * (cut.end - known)
            if ended and not said:
                alone = replace(row, prefix=self._prefix(thought, trained, ()))
                whole.append(replace(alone.completed((), (), self.version, "stop", thought.text), cut=cut))
                continue
            prefix = self._prefix(thought, trained, self.forced.ended if ended else self.forced.cut)
            until = len(prefix.token_ids) + self.spec.summary_tokens
            asking.append(replace(row, prefix=prefix, sampling=replace(row.sampling, max_new_tokens=until)))
            self._rows[row.seed] = row, cut
        self.engine.submit(asking)
        return whole

    def _prefix(self, thought: Completion, trained: tuple[int, ...], forced: tuple[int, ...]) -> Prefix:
        """The beginning of a thought, as far as `trained` goes, and what is forced after it, which was certain."""
        end, count = len(trained), len(forced)
        return Prefix(
            token_ids=thought.token_ids[:end] + forced,
            logprobs=thought.logprobs[:end] + (0.0,) * count,
            versions=thought.versions[:end] + (self.version,) * count,
            loss_mask=trained + (0,) * count,
        )
