"""The plain policy gradient: REINFORCE (Williams 1992), without ratio or clip, as in GPG (Chu et al. 2025, arXiv 2504.02546).

    L = −A·log π        per token; its gradient is −A·∇log π

Right on-policy only: after the first update of a step nothing tells it that the completions are another policy's. Worked: A = 2
and log π = −0.5 give 1, with gradient −2. GPG's scaling of the advantages is not part of it.
"""

from __future__ import annotations

from trainers.algorithm import needs
from trainers.objective import Loss, LossInputs


@needs("on_policy")
def gpg(inputs: LossInputs) -> Loss:
    return Loss(-inputs.advantages * inputs.logprobs, {})
