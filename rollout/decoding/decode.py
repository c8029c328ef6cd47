"""The loop of speculative decoding: propose → one forward pass of the target over all trees → verify → gather its cache.

Rows may enter and leave between any two rounds. A round draws at least one token for every row; the tokens, log-probs and
random numbers are those of plain decoding, but where a drafter drew at random (see `verify`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.types import FinishReason, Request
from rollout.decoding.drafter import Drafter, Row, blamed, proposed, undrafted
from rollout.decoding.model import BranchedModel
from rollout.decoding.tree import Tree
from rollout.decoding.verify import Walk, verify
from rollout.decoding.worth import Worth
from rollout.sampling import SamplingRows
from rollout.stop_strings import ends_with


class Decoded(NamedTuple):
    """What was sampled for a request, after its forced prefix; `logprobs` as in `rlcore.types.Completion`."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass
class Counts:
    """Of all rounds so far. Prefills are no forwards here; `draft_forwards` are those of the drafter's own model."""

    tokens: int = 0  # sampled
    target_forwards: int = 0
    draft_forwards: int = 0
    draft_read: int = 0  # tokens, by these
    trees: int = 0  # read by the target: one for each row and round
    asked: int = 0  # of these, from the drafter
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0  # of these


def decode(
    model: PreTrainedModel, requests: Sequence[Request], drafter: Drafter, stop_ids: Collection[int]
) -> tuple[list[Decoded], Counts]:
    """Completions of all requests, decoded together; each ends at a stop id, at its `max_new_tokens` or at the end of the
    model's context. Raises UserError as `Decoder` does."""
    decoder = Decoder(model, drafter, stop_ids)
    decoder.enter(requests)
    rows = list(decoder.rows)
    while decoder.rows:
        decoder.round()
    return [_decoded(row) for row in rows], decoder.counts


def _decoded(row: Row) -> Decoded:
    assert row.finish_reason is not None
    return Decoded(tuple(row.sampled), tuple(row.logprobs), row.finish_reason)


class Decoder:
    """Requests under way, a row each. Raises UserError, with the drafter's name, where the drafter fails. `tokenizer`: reads
    completions that have stop strings; without it they are refused. `worth` decides which rounds have drafts; None: all."""

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: Drafter,
        stop_ids: Collection[int],
        tokenizer: PreTrainedTokenizerBase | None = None,
        worth: Worth | None = None,
    ) -> None:
        self.target, self.drafter, self.stop_ids = BranchedModel(model), drafter, frozenset(stop_ids)
        self.tokenizer, self.worth = tokenizer, worth
        self.rows: list[Row] = []  # in the target's order
        self.counts = Counts()
        with blamed(drafter):
            drafter.join(model)

    @torch.inference_mode()
    def enter(self, requests: Sequence[Request]) -> None:
        """Begin rows. Raises UserError for a request that leaves nothing to decode."""
        rows = [self._row(request) for request in requests]
        hidden = self.target.enter([row.ids[:-1] for row in rows])
        with blamed(self.drafter):
            self.drafter.begin(rows, hidden)
        self.rows += rows
        self._settle()

    @torch.inference_mode()
    def round(self) -> list[Row]:
        """One forward pass of the target for all rows, of which there is one at least; those that are done leave, and are
        returned."""
        began, before = time.perf_counter(), self.counts.tokens
        forwards, read_before = self.drafter.forwards, self.drafter.read
        asking = self.worth is None or self.worth.drafts(len(self.rows))
        trees = proposed(self.drafter, self.rows, self.target.vocabulary) if asking else undrafted(self.rows)
        drafted = time.perf_counter()
        read = self.target.read([(tree.tokens, tree.parents) for tree in trees], self.drafter.carried if asking else None)
        walks = verify(read.logits, trees, self._settings, *self._randomness(trees))
        self.target.keep([walk.nodes for walk in walks])

        paths = [walk.nodes[: 1 + self._say(row, walk)] for row, walk in zip(self.rows, walks, strict=True)]
        with blamed(self.drafter):
            self.drafter.observe(self.rows, paths, read)
        done = [row for row in self.rows if row.finish_reason]
        self._leave(done)
        self.counts.target_forwards += 1
        self.counts.trees += len(trees)
        self.counts.asked += asking * len(trees)
        self.counts.draft_forwards += self.drafter.forwards - forwards
        self.counts.draft_read += self.drafter.read - read_before
        self.counts.drafted += sum(len(tree.tokens) - 1 for tree in trees)
        self.counts.draft_seconds += drafted - began
        seconds = time.perf_counter() - began
        self.counts.seconds += seconds
        if self.worth is not None:
            self.worth.note(len(trees), asking, seconds, self.counts.tokens - before)
        return done

    @torch.inference_mode()
    def interrupt(self) -> list[Row]:
        """Stop all rows; they leave as they are."""
        stopped = list(self.rows)
        for row in stopped:
            row.finish_reason = "interrupted"
        self._leave(stopped)
        return stopped

    def synced(self) -> None:
        """The target's weights have changed."""
        with blamed(self.drafter), torch.inference_mode(False), torch.enable_grad():
            self.drafter.synced()

    def _row(self, request: Request) -> Row:
        prompt, sampling = len(request.prompt_ids), request.sampling
        limit = min(sampling.max_new_tokens, self.target.context - prompt)
        if not prompt or limit <= len(request.prefix.token_ids):
            raise UserError(
                f"{request.problem_id}: a prompt of {prompt} tokens leaves nothing to decode, in a context of "
                f"{self.target.context} and with max_new_tokens {sampling.max_new_tokens}"
            )
        if sampling.stop and self.tokenizer is None:
            raise UserError(f"{request.problem_id}: without a tokenizer nothing stops at strings: {sampling.stop}")
        return Row(request, limit)

    def _randomness(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """`u` and `v` of the positions that a walk can draw: (rows, 1 + the depth of the deepest tree)."""
        drawn = torch.tensor([row.drawn for row in self.rows], device=self._u.device)
        deepest = max(tree.depth for tree in trees)
        places = (drawn[:, None] + torch.arange(1 + deepest, device=drawn.device)).clamp(max=self._u.shape[1] - 1)
        return self._u.gather(1, places), self._v.gather(1, places)

    def _say(self, row: Row, walk: Walk) -> int:
        """Add a walk's tokens to its row, up to one that ends it; how many of them were drafted."""
        before = len(row.ids)
        for token, logprob in zip(walk.tokens, walk.logprobs, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            if self._stops(row):
                row.finish_reason = "stop"
            elif row.drawn == row.limit:
                row.finish_reason = "length"
            if row.finish_reason:
                break
        said = len(row.ids) - before
        accepted = min(said, len(walk.nodes) - 1)
        self.counts.tokens += said
        self.counts.accepted += accepted
        return accepted

    def _stops(self, row: Row) -> bool:
        """By its last token."""
        if row.ids[-1] in self.stop_ids:
            return True
        stop = row.request.sampling.stop
        return bool(stop) and self.tokenizer is not None and ends_with(stop, row.tokens, self.tokenizer)

    def _leave(self, done: Collection[Row]) -> None:
        """As in the cache, the last row takes the place of one that leaves."""
        for row in done:
            place = self.rows.index(row)
            self.target.leave(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()
            with blamed(self.drafter):
                self.drafter.forget(row)
        if done:
            self._settle()

    def _settle(self) -> None:
        """What depends on which rows there are."""
        if not self.rows:
            return
        samplings, device = [row.request.sampling for row in self.rows], self.target.model.device
        self._settings = SamplingRows.of(samplings, self.target.vocabulary, device)
        self._u = pad_sequence([torch.from_numpy(row.u) for row in self.rows], batch_first=True).to(device)
        self._v = pad_sequence([torch.from_numpy(row.v) for row in self.rows], batch_first=True).to(device)
