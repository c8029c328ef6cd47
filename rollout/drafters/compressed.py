"""A compressed copy of the policy drafts for it: vLLM's speculative decoding, in which the draft model is the policy itself
after `methods`, decoded to dense weights. At every weight sync each engine compresses what it received (`rollout.vllm_copy`),
so that no byte more is sent, and the copy is never older than the policy.

A draft x ~ q is accepted with probability min(1, p(x) / q(x)), p being the policy's distribution, temperature and truncation
included; where it is not, the token is drawn from max(0, p − q), normalised (Leviathan et al., arXiv 2211.17192, algorithm 1).
So the share of drafts that is accepted is Σ min(p, q), 1 minus the total variation distance: near 1 for a copy that is near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt

from compress.codec import Codec, bound, codec
from rlcore.models import ModelSpec, without_weights
from rlcore.recipe.schema import Methods


class Compressed:
    """`methods`, `keep_dense` and `reassign` are those of `rollout.compression`; `tokens` are drafted for each pass of the
    policy. Raises UserError for methods that cannot be done to weights that keep changing."""

    def __init__(
        self,
        *,
        methods: Methods,
        keep_dense: Sequence[str] = ("lm_head",),
        reassign: NonNegativeInt = 0,
        tokens: PositiveInt = 3,
    ) -> None:
        self.methods = [(method.name, method.options) for method in methods]
        self.keep_dense, self.reassign, self.tokens = keep_dense, reassign, tokens
        bound(self.methods, reassign)

    def codec(self, spec: ModelSpec) -> Codec:
        """What compresses the policy's weights. Methods that are fitted are fitted to those at the spec's location."""
        return codec(
            self.methods,
            self.keep_dense,
            getattr(torch, spec.dtype),
            shapes=partial(without_weights, spec.location, spec.trust_remote_code),
            start=replace(spec, dtype="float32").load,
            reassign=self.reassign,
        )

    def speculation(self, spec: ModelSpec) -> dict[str, Any]:
        """The fields of vLLM's SpeculativeConfig. Drafts are drawn from the copy's distribution: of its likeliest tokens,
        vLLM's default, the policy accepts p(x) only, however near the copy is."""
        return {
            "method": "draft_model",
            "model": spec.location,
            "num_speculative_tokens": self.tokens,
            "draft_sample_method": "probabilistic",
        }
