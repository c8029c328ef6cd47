r"""From the scores of a completion's steps to what each step is paid: the process transforms.

p_1 … p_n are the steps' probabilities of being right, r_i = 2·p_i − 1 = P(right) − P(wrong), in [−1, 1].

    sum          r_i
    mean         r_i / n
    last         r_n at the last step
    product      Π p_i at the last step (Lightman et al. 2023, arXiv 2305.20050)
    min          w_i · r_i,  w = softmax(−r / T)       Σ ≈ min r_i (PURE: Cheng et al. 2025, arXiv 2504.15275, §3.2)
    strict_min   r_w at w = argmin r, 0 elsewhere      its limit T → 0: what comes after the worst step is paid nothing
    clip         min(r_i − η, 0)                       (Gao et al. 2024, arXiv 2410.15115)
    delta        r_i − r_{i+1};  r_{n−1};  0 at n      what is earned from step i on telescopes to r_i
    clip_delta   clip, then delta
    renorm       p_i + a − 1,  a = 1 for a right answer, 0 for a wrong one (PPR's ReNorm: Xu et al. 2025, arXiv 2509.25598)

The sum pays for every further step that looks right, and is known to be hacked: it is here as a control. clip and delta are
their paper's answers to that. delta leaves the last step to the reward for success. renorm, whose formula is known here from
reviews of the paper, has the outcome's sign at every step: within [−1, 0] where the answer is wrong, else within [0, 1], and
there it pays for further steps as the sum does.

Worked: r = 0.9, −0.2, 0.5 with T = 0.1 has min 1.5e-5, −0.1998, 4.6e-4; r = 0.9, 0.95, 0.6, 0.85, 0.99 has delta −0.05, 0.35,
−0.25, 0.85, 0, with η = 0.8 clip 0, 0, −0.2, 0, 0 and clip_delta 0, 0.2, −0.2, 0, 0; p = 0.9, 0.4 has renorm 0.9, 0.4 where the
answer is right, else −0.1, −0.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Credit = Literal["sum", "mean", "last", "product", "min", "strict_min", "clip", "delta", "clip_delta", "renorm"]


def paid(
    credit: Credit, probabilities: Sequence[float], *, temperature: float, threshold: float, accuracy: float | None = None
) -> list[float]:
    """What each step is paid; nothing for no steps. `temperature` is T, of min; `threshold` is η, of clip; `accuracy` is a,
    which renorm cannot do without."""
    if not probabilities:
        return []
    rewards, last = [2 * p - 1 for p in probabilities], len(probabilities) - 1
    match credit:
        case "sum":
            return rewards
        case "mean":
            return [r / len(rewards) for r in rewards]
        case "last":
            return [0.0] * last + [rewards[-1]]
        case "product":
            return [0.0] * last + [math.prod(probabilities)]
        case "min":
            return _soft_min(rewards, temperature)
        case "strict_min":
            worst = rewards.index(min(rewards))
            return [r if i == worst else 0.0 for i, r in enumerate(rewards)]
        case "clip":
            return _clip(rewards, threshold)
        case "delta":
            return _delta(rewards)
        case "clip_delta":
            return _delta(_clip(rewards, threshold))
        case "renorm":
            assert accuracy is not None
            return [p + accuracy - 1 for p in probabilities]


def _soft_min(rewards: Sequence[float], temperature: float) -> list[float]:
    weights = [math.exp((min(rewards) - r) / temperature) for r in rewards]
    return [r * w / sum(weights) for r, w in zip(rewards, weights, strict=True)]


def _clip(rewards: Sequence[float], threshold: float) -> list[float]:
    return [min(r - threshold, 0.0) for r in rewards]


def _delta(rewards: Sequence[float]) -> list[float]:
    kept = list(rewards[:-1])  # the last step's is the reward for success
    return [r - following for r, following in zip(kept, [*kept[1:], 0.0], strict=False)] + [0.0]
