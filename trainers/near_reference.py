r"""Supervised fine-tuning that stays near the model that it began with: how a policy learns from its own best steps.

    L = L_LM + λ · log(1 + KL),        KL = 1/B · Σ_i Σ_t KL(π_ref(· | y_{i,<t}) ‖ π(· | y_{i,<t}))

B solutions in the batch, t over the tokens that are learned; π_ref is the model as it was before the first step. The sum over
tokens grows with a solution's length, and the logarithm keeps it from outweighing the likelihood (HRM's self-training: Wang et
al. 2025, arXiv 2503.13551, λ = 0.1).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from trainers.sft import IGNORED


class NearReference(SFTTrainer):
    """`coefficient` is λ. With adapters the reference is the model without them, else a copy."""

    def __init__(self, model: Any, *, coefficient: float, **settings: Any) -> None:
        # copied first: TRL gives the model a `forward` that is bound to it, and a copy's would still be the model's own
        self.reference = None if isinstance(model, PeftModel) else copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model, **settings)
        self.coefficient = coefficient

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        read = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORED
        outputs = model(**read)
        logits = outputs.logits[:, :-1][learned]
        likelihood = cross_entropy(logits.float(), labels[learned])
        kl = divergence(self._reference_logits(model, read)[:, :-1][learned], logits) / len(labels)
        self._metrics["train"]["kl"].append(kl.item())
        loss = likelihood + self.coefficient * torch.log1p(kl)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _reference_logits(self, model: Any, read: dict[str, Tensor]) -> Tensor:
        if self.reference is not None:
            logits: Tensor = self.reference(**read).logits
            return logits
        with model.disable_adapter():
            adapted: Tensor = model(**read).logits
        return adapted


def divergence(reference: Tensor, policy: Tensor) -> Tensor:
    """Σ KL(reference ‖ policy) over rows of logits (n, vocabulary): a scalar."""
    p, q = reference.float().log_softmax(-1), policy.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum()
