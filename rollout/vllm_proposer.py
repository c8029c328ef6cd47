"""Our drafters in a process of vLLM, which asks a class of ours for drafts (its speculative method `custom_class`).

vLLM verifies chains alone: of a drafter's tree it is handed the path of which most is expected to be said. A draft x that was
no random draw is accepted with its probability p(x) under the policy, temperature and truncation included; where it is not,
the token is drawn from p without x (Leviathan et al., arXiv 2211.17192, algorithm 1, with all of q on x). Greedy, x is accepted
where it is the likeliest token. So what is sampled has p's distribution, whatever was drafted.

vLLM does not tell a proposer which row is which. Its model runner knows, and every request carries along what was asked of the
engine: rows are told apart by name, and neither preemption nor prompts that are alike can mix them up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlcore.models import ModelSpec
from rlcore.types import Completion, Request
from rollout.decoding.drafter import Drafter, Row, blamed, proposed

PROPOSER = "rollout.vllm_proposer.Proposer"  # imported by vLLM's workers
ASKED = "asked"  # (name, Request), in the extra arguments of vLLM's sampling parameters


class Proposer:
    """vLLM makes it, and it drafts nothing before it is given a drafter (`host`). What the drafter does wrong is a UserError
    with its name."""

    drafter: Drafter
    at_most: int = 0
    runner: Any

    def __init__(self, vllm_config: Any) -> None:
        self.tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self.longest: int = vllm_config.model_config.max_model_len
        self.vocabulary: int = vllm_config.model_config.get_vocab_size()
        self._rows: dict[str, Row] = {}  # that have begun
        self._passes, self._seconds = 0, 0.0

    def load_model(self, target: torch.nn.Module) -> None:
        """vLLM hands over the policy; drafts are made of tokens alone."""

    def host(self, drafter: Drafter, spec: ModelSpec, at_most: int, runner: Any) -> None:
        """Draft by this drafter for the policy `spec`, as long as vLLM's model runner has no more than `at_most` sequences."""
        drafter.load(spec)
        self.drafter, self.at_most, self.runner = drafter, at_most, runner
        # vLLM would draft for no sequence as long as one is so near this end that the longest draft does not fit; ours keep to
        # the room of their rows.
        runner.effective_drafter_max_model_len = self.longest + self.tokens

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """A draft, maybe an empty one, for every sequence of the batch. `sampled_token_ids`: what the last pass brought each,
        nothing where its prompt is not read to the end. `token_ids_cpu` (sequences, longest): prompts and completions, of which
        the first `num_tokens_no_spec` (sequences,) are said."""
        began = time.perf_counter()
        said = [i for i, tokens in enumerate(sampled_token_ids) if tokens]
        drafts: dict[int, list[int]] = {}
        if said and len(sampled_token_ids) <= self.at_most:
            drafts = self._drafts({i: token_ids_cpu[i, : num_tokens_no_spec[i]].tolist() for i in said})
        self._passes += len(said)
        self._seconds += time.perf_counter() - began
        return [drafts.get(i, []) for i in range(len(sampled_token_ids))]

    @torch.inference_mode()
    def end(self, completions: Mapping[str, Completion]) -> None:
        """Requests, by their names, that are done or interrupted. What a pass said beyond an end is not in them."""
        with blamed(self.drafter):
            for name, completion in completions.items():
                row = self._rows.pop(name, None)
                if row is not None:
                    row.ids, row.finish_reason = [*completion.prompt_ids, *completion.token_ids], completion.finish_reason
                    self.drafter.forget(row)
                elif completion.finish_reason != "interrupted":
                    self.drafter.learn(completion.prompt_ids, completion.token_ids)

    def told(self) -> tuple[int, float]:
        """Since it was asked last: passes of the policy, one for each sequence in each, and the seconds that drafting took."""
        passes, seconds = self._passes, self._seconds
        self._passes, self._seconds = 0, 0.0
        return passes, seconds

    def _drafts(self, texts: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """For sequences by their places in the batch; for none whose text is only scored, or nearly full."""
        rows: dict[int, Row] = {}
        new: dict[str, Row] = {}
        for i, ids in texts.items():
            name, request = self._asked(i)
            if request is None:
                continue
            row = self._rows.get(name) or Row(request, self._limit(request))
            row.ids = ids
            if row.room > 0:
                rows[i] = row
                new |= {} if name in self._rows else {name: row}
        if new:
            with blamed(self.drafter):
                self.drafter.begin(list(new.values()), [])
            self._rows |= new
        trees = proposed(self.drafter, list(rows.values()), self.vocabulary) if rows else []
        return {i: tree.path(self.tokens) for i, tree in zip(rows, trees, strict=True)}

    def _asked(self, i: int) -> tuple[str, Request | None]:
        params = self.runner.requests[self.runner.input_batch.req_ids[i]].sampling_params
        asked: tuple[str, Request | None] = (params.extra_args or {}).get(ASKED, ("", None))
        return asked

    def _limit(self, request: Request) -> int:
        context = self.longest - 1  # see `rollout.engines.vllm`
        return min(request.sampling.max_new_tokens, context - len(request.prompt_ids))
