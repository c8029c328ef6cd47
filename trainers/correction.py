"""What a token's policy loss is multiplied by, because another policy than the learner's sampled it: an engine of other
precision or kernels, a truncated distribution, weights of some steps ago. Used by `trainers.objective`; the recipe's section is
`rlcore.recipe.schema.Correction`.

Three policies: the sampler's π_rollout, the learner's before the step's first update π_old, and the one being trained π.

    form        L_t is PPO's with    ρ_t
    decoupled   π / π_old            π_old / π_rollout    π_old bounds the step, ρ corrects for the sampler
    bypass      π / π_rollout        π / π_rollout        PPO's ratio corrects, and its clip bounds it: no pass for π_old

    level       sequence: ρ_t = Π_u ρ_u over the completion's tokens u in the loss. The log of either is clamped to ±20.
    action      truncate: w_t = min(ρ_t, cap)    mask: w_t = ρ_t, in bypass 1, and 0 outside [floor, cap]    none: w_t = 1

    loss = Σ_t weight_t · (w_t · L_t + KL_t),    without gradient through w

A token of weight 0 stays in the denominators, which are made from the mini-batch's loss mask before any ratio is known: what is
masked makes the step smaller, and neither micro-batches nor ranks change it. The KL term is not weighted.

Decoupled PPO: Hilton et al. 2022 (arXiv 2110.00641), for language models AReaL (Fu et al. 2025, arXiv 2505.24298). Truncation
(TIS): Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; TRL's `token_truncate` and
`sequence_truncate`, verl's `rollout_is`. Masking: of tokens IcePop (Ling Team 2025, arXiv 2510.18855), of completions MIS (Liu
et al. 2025, "When speed kills stability"); TRL's `token_mask` and `sequence_mask`, with these denominators. Bypass, and masking
there by π / π_rollout: verl's `bypass_mode` and `rollout_rs`; but what `rollout_rs` rejects leaves its denominators too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.recipe.schema import Correction


def importance_weights(log_ratio: Tensor, loss_mask: Tensor, correction: Correction | None) -> tuple[Tensor, Tensor]:
    """From log ρ of the tokens (b, t): w (b, t) without gradient, and the bool (b, t) of those whose ρ was out of bounds."""
    if correction is None or correction.action is None:
        return torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool)
    log_ratio = log_ratio.detach()
    if correction.level == "sequence":
        log_ratio = (log_ratio * loss_mask).sum(1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.clamp(-20, 20).exp()
    outside = (ratio > correction.cap) | (ratio < (correction.floor or 0))
    if correction.action == "truncate":
        return ratio.clamp(max=correction.cap), outside
    weights = torch.ones_like(ratio) if correction.form == "bypass" else ratio
    return weights.masked_fill(outside, 0), outside
