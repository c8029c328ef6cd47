"""Decoupled Reward Policy Optimization (arXiv 2510.04474): shorter answers, without a length reward in the advantages.

    s_i = 1/|y_i| Σ_t log π                                       over the tokens of completion i in the loss
    w_i = exp((1 − |y_i|/L_max)/λ)                                L_max is the sampling's max_new_tokens
    J   = Σ_i w_i·s_i / Σ_i w_i − τ·log Σ_j exp(s_j/τ)            of a question: i over its right, j over its wrong completions
    L   = −Σ J / number of questions + sg(β·[K − δ]₊)·K,          K = KL(π_old ‖ π) ≈ mean over tokens of log π_old − log π

The right completions are compared with each other by length alone and with the wrong ones whatever their length, so being long
never pushes a right one down, which it does where GRPO divides a length reward by its spread. A question without either kind
has no J and is counted in the denominator; so is, in each of them, one that mini-batches cut in two. The advantages and
`aggregate` play no part. Completions without a token in the loss are neither right nor wrong.

`prepare` takes J apart where the parameters are: ∂J/∂s_i is w_i/Σw for the right ones and minus a softmax for the wrong, so
per token L is slope·log π + intercept, in gradient and in value. Worked: λ = 0.1 and L_max = 8000 give |y| = 1000, 4000 and
8000 the weights 6311, 148 and 1, relative to each other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rlcore.batch import GradedBatch
from rlcore.recipe.schema import NonNegativeFloat
from rlcore.run.metrics import Mean
from trainers.algorithm import needs
from trainers.objective import Look, Loss, LossInputs, mean
from trainers.ratio import log_ratio


@needs("groups", "accuracy")
class Drpo:
    """`length_temperature`: λ, the smaller the shorter; `temperature`: τ; `kl_limit`: δ; `kl_coefficient`: β."""

    reads_advantages = False

    def __init__(
        self,
        *,
        length_temperature: PositiveFloat = 0.1,
        temperature: PositiveFloat = 10.0,
        kl_limit: NonNegativeFloat = 1e-4,
        kl_coefficient: NonNegativeFloat = 1e3,
    ) -> None:
        self._length_temperature, self._temperature = length_temperature, temperature
        self._kl_limit, self._kl_coefficient = kl_limit, kl_coefficient

    def prepare(self, look: Look, batch: GradedBatch) -> Mapping[str, Tensor]:
        """`slope` and `intercept` of −Σ J / number of questions, and `pull`, how hard K is held down; (n, T) each."""
        inputs, mask = look(), batch.loss_mask
        lengths = mask.sum(1)
        scores = inputs.logprobs.sum(1) / lengths.clamp(min=1)
        slope, intercept = self._contrast(scores, lengths, batch)
        per_token = mask / lengths.clamp(min=1)[:, None]
        tokens = mask.sum().clamp(min=1)
        divergence = -log_ratio(inputs).sum() / tokens
        pull = self._kl_coefficient * (divergence - self._kl_limit).clamp(min=0)
        return {
            "slope": slope[:, None] * per_token,
            "intercept": intercept[:, None] * per_token,
            "pull": pull * mask / tokens,
        }

    def _contrast(self, scores: Tensor, lengths: Tensor, batch: GradedBatch) -> tuple[Tensor, Tensor]:
        """Of each completion (n,): the loss's derivative by s_i, and what derivative · s_i lacks of the loss, which is the
        softmax's entropy: τ·log Σ exp(s/τ) = Σ p·s + τ·H(p)."""
        assert batch.accuracy is not None  # `trainers.plan` refuses the loss where nothing is verified
        slope, intercept = torch.zeros_like(scores), torch.zeros_like(scores)
        questions = batch.group.unique()
        for question in questions:
            answers = (batch.group == question) & (lengths > 0)
            right, wrong = answers & (batch.accuracy == 1), answers & (batch.accuracy == 0)
            if right.any() and wrong.any():
                shortness = 1 - lengths[right] / batch.sampling.max_new_tokens
                slope[right] = -torch.softmax(shortness / self._length_temperature, 0)
                slope[wrong] = torch.softmax(scores[wrong] / self._temperature, 0)
                intercept[wrong] = self._temperature * torch.special.entr(slope[wrong])
        return slope / len(questions), intercept / len(questions)

    def __call__(self, inputs: LossInputs) -> Loss:
        logprobs, distance = inputs.logprobs, log_ratio(inputs)
        slope, intercept, pull = (inputs.prepared[name] for name in ("slope", "intercept", "pull"))
        in_loss = inputs.loss_mask.amax(1)
        contrasted = Mean((slope != 0).any(1).sum().item(), in_loss.sum().item())
        return Loss(
            torch.zeros_like(logprobs),
            {"contrasted": contrasted, "kl/old": mean(-distance.detach(), inputs.loss_mask)},
            normalised=slope * logprobs + intercept - pull * distance,
        )
