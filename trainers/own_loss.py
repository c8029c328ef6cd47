"""Supervised fine-tuning on the loss that the model's own `forward` returns, for a model that adds a term to the cross-entropy.

TRL's SFTTrainer computes the cross-entropy from the hidden states and calls no forward of ours; the only other term that it
knows is Mixtral's. For a Mixture-of-Modules (`compress.architectures.mixture_of_modules`):

    L = L_LM + load_balance_weight · L_LB
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Trainer
from trl import SFTTrainer


class OwnLoss(SFTTrainer):
    """The log has the two terms apart. Steps are taken on one batch: L_LB is not divided over accumulated ones."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, True, num_items_in_batch)
        for term in ("cross_entropy", "load_balance"):
            self._metrics["train"][term].append(outputs[term].item())
        return (loss, outputs) if return_outputs else loss
