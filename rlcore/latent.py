"""Latent preference codes: what is it, of all that answers may be liked for, that decides here? Networks, and their files.

    prior      p(k | x)              = softmax(MLP(h_x))                  before an answer is seen
    posterior  q(k | x, y_w ≻ y_l)   = softmax(MLP([h_{x,y_w}; h_{x,y_l}]))   from what was liked better
    code       z = Σ_k w_k e_k       e_k: the rows of the codebook E (K, H)
    policy     logits_t = W (h_t + z)    the same z at every position; W: the language head

h_x and h_{x,y} are the backbone's last hidden states, after its final norm, at the last token of the prompt and of the answer;
they are made without z. (LPC, arXiv 2505.04993, eqs. 5–11. How it builds its networks could not be found: one hidden layer with
a GELU is ours.) They are kept in the folder `latent` of a plain checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from rlcore.errors import UserError
from rlcore.models import locate

FOLDER = "latent"  # not beside the weights: whoever loads a plain checkpoint takes all *.safetensors there for its weights
WEIGHTS, SIZES = "codes.safetensors", "codes.json"


class LatentCodes(nn.Module):
    """K `codes` for a backbone with states of `hidden` numbers; `width` is that of the networks' hidden layer. Float32."""

    def __init__(self, hidden: int, codes: int, width: int) -> None:
        super().__init__()
        self.sizes = {"hidden": hidden, "codes": codes, "width": width}
        self.prior = _network(hidden, width, codes)
        self.posterior = _network(2 * hidden, width, codes)
        self.codebook = nn.Parameter(torch.zeros(codes, hidden))

    @property
    def codes(self) -> int:
        return len(self.codebook)

    def log_prior(self, prompts: Tensor) -> Tensor:
        """(n, K) from the states (n, H) of prompts."""
        return log_softmax(self.prior(prompts.float()), -1)

    def log_posterior(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(n, K) from the states (n, H) of the better and of the worse answers."""
        return log_softmax(self.posterior(torch.cat([chosen, rejected], -1).float()), -1)

    def logits(self, head: Tensor) -> Tensor:
        """(K, V) what each code adds to the logits, in float32: E·Wᵀ, W (V, H) being the language head's."""
        return self.codebook.to(head.device).float() @ head.float().T

    def save(self, folder: Path) -> None:
        folder = folder / FOLDER
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        (folder / SIZES).write_text(json.dumps(self.sizes) + "\n", encoding="utf-8")


def states_after(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """(n, H) of a backbone's last hidden states (n, T, H), each at the last of so many tokens."""
    return hidden[range(len(lengths)), [length - 1 for length in lengths]]


def is_latent(folder: str) -> bool:
    return (Path(folder) / FOLDER / SIZES).is_file()


def refuse_latent(model: str) -> None:
    """Raise UserError for a model with codes, by its name in a recipe, of a job that would train it without them."""
    if Path(model).is_dir() and is_latent(locate(model)):
        raise UserError(
            f"model {model!r} has latent codes, without which it would be trained on: give a copy that has no folder `latent`"
        )


def load_latent(folder: str) -> LatentCodes | None:
    """What `save` left in a checkpoint's folder, to the bit; None where there is nothing."""
    if not is_latent(folder):
        return None
    latent = LatentCodes(**json.loads((Path(folder) / FOLDER / SIZES).read_text(encoding="utf-8")))
    latent.load_state_dict(load_file(Path(folder) / FOLDER / WEIGHTS))
    return latent.requires_grad_(False).eval()


def _network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
