"""Top-H (Potraghloo et al. 2025, arXiv 2509.02510): the most likely tokens, as many as have a bounded entropy.

Let p_1 ≥ p_2 ≥ … be a distribution, Γ_k = Σ_{i≤k} p_i and h_k = −Σ_{i≤k} p_i ln p_i. The largest k is kept with

    h_k / Γ_k + ln Γ_k ≤ α · H(p)      normalised: the entropy of the k tokens once renormalised, the rule of the paper
    h_k ≤ α · h_100                    as its authors' code has it (github.com/ErfanBaghaei/Top-H-Decoding)

and never less than 1. Both left sides rise with k. The first does: with λ = p_{k+1} / Γ_{k+1} the entropy goes from H to
(1 − λ)H + b(λ), b the entropy of a coin, and b(λ)/λ ≥ ln 1/λ ≥ ln(k + 1) > H, as token k + 1 is no likelier than any before it.
Where the model is in doubt much is left, and little where it is sure; but of a sure one whose other tokens are many and all
unlikely, some of those, that min-p would cut: a share of their entropy is theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEARCHED = 100  # tokens, by the authors' code


def kept(probabilities: Tensor, alpha: Tensor, normalized: Tensor) -> Tensor:
    """(R,) how many of the most likely tokens stay, of probabilities (R, V) that fall along each row; `alpha` (R,) in (0, 1],
    where 1 keeps all of them, and `normalized` (R,) bool."""
    information = torch.special.entr(probabilities).cumsum(-1)  # h_k
    mass = probabilities.cumsum(-1)
    entropy = torch.where(normalized[:, None], information / mass + mass.log(), information)
    whole = torch.where(normalized, information[:, -1], information[:, :SEARCHED][:, -1])
    count = (entropy <= (alpha * whole)[:, None]).sum(-1).clamp(min=1)
    return torch.where(alpha < 1, count, probabilities.shape[-1])
