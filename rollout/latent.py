"""Which code a model with latent codes (`rlcore.latent`) answers with, request by request; shared by the engines.

expected    Σ_k p(k|x) e_k, the prior's mean: how the model is judged on held-out pairs
sampled     one of the codes, drawn from the prior by the request's seed
k           that one
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlcore.batch import cut_by_length, pad
from rlcore.errors import UserError
from rlcore.latent import LatentCodes, states_after
from rlcore.models import without_weights
from rlcore.types import Code, Request, seed_from

LATENT_ASKED = "log-probs of given tokens depend on the latent code, which is not asked for: sample, or use a plain checkpoint"
LATENT_SYNCED = "a model with latent codes is served, not trained further: give `job: rl` a copy that has no folder `latent`"
CODE_WEIGHTS = "code_weights"  # in vLLM's sampling parameters
TOKENS = 16384  # of prompts that are read together, padding included


class CodeChooser:
    """`decoder` is the backbone that the codes learned with; `usual`: the code of requests that name none, the expected one if
    None. Raises UserError for one that there is not."""

    def __init__(self, latent: LatentCodes, decoder: nn.Module, usual: Code | None) -> None:
        self.device = next(decoder.parameters()).device
        self.latent, self.decoder = latent.to(self.device), decoder
        self.usual: Code = "expected" if usual is None else usual
        self._index(self.usual)

    @torch.inference_mode()
    def weights(self, requests: Sequence[Request]) -> Tensor:
        """(n, K) the share of each code in z."""
        distinct = list(dict.fromkeys(request.prompt_ids for request in requests))
        prior = dict(zip(distinct, self._prior(distinct), strict=True))
        return torch.stack([self._chosen(request, prior[request.prompt_ids]) for request in requests])

    def _prior(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        found = torch.zeros(len(prompts), self.latent.codes, device=self.device)
        for part in cut_by_length({i: len(prompt) for i, prompt in enumerate(prompts)}, TOKENS):
            ids = pad([prompts[i] for i in part], torch.long).to(self.device)
            hidden = self.decoder(ids, use_cache=False).last_hidden_state
            found[part] = self.latent.log_prior(states_after(hidden, [len(prompts[i]) for i in part])).exp()
        return found

    def _chosen(self, request: Request, prior: Tensor) -> Tensor:
        code = self.usual if request.code is None else request.code
        if code == "expected":
            return prior
        if code == "sampled":
            draw = random.Random(seed_from("code", request.seed)).choices(range(len(prior)), prior.tolist())
            return one_hot(torch.tensor(draw[0]), len(prior)).to(prior)
        return one_hot(torch.tensor(self._index(code)), len(prior)).to(prior)

    def _index(self, code: Code) -> int:
        if isinstance(code, int) and not 0 <= code < self.latent.codes:
            raise UserError(f"code {code}: this model has the codes 0 to {self.latent.codes - 1}")
        return code if isinstance(code, int) else 0


def refuse_code(code: Code | None, location: str) -> None:
    """Raise UserError where a code is asked of a model that has none."""
    if code is not None:
        raise UserError(f"code {code!r} is asked of {location}, a model without latent codes")


def language_head(folder: str) -> Tensor:
    """(V, H) of a checkpoint of safetensors, whatever its kind calls it; shared with the embeddings or not."""
    model = without_weights(folder)
    head = model.get_output_embeddings().weight
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is head}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in names & set(tensors.keys()):
                found: Tensor = tensors.get_tensor(name)
                return found
    raise UserError(f"{folder} has no weights of a language head: {', '.join(sorted(names))}")
