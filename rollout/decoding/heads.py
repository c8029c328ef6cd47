"""Heads: what predicts several tokens ahead at once, from a target's own states. Kinds of them are in `rollout.heads`, the
`heads` drafter guesses by them, and `rollout.decoding.teach` trains them. The target itself stays as it is.

Of the target's state at token n, which predicts x_{n+1}, heads make k more,

    h̃_{n+i} for i = 1 … k,  of which  p̃_i(· | n) = softmax(LMHead(h̃_{n+i}))  predicts x_{n+i+1},

by the target's own LM head. On disk heads are a folder: `heads.json` says what they are, `heads.safetensors` holds them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rlcore import plugins
from rlcore.errors import UserError

ABOUT, WEIGHTS = "heads.json", "heads.safetensors"


class Heads(nn.Module, ABC):
    """k heads on a model of hidden size H; `steps` is k. Parameters are float32."""

    def __init__(self, config: PretrainedConfig, steps: int) -> None:
        super().__init__()
        self.width, self.steps = int(config.hidden_size), steps

    @abstractmethod
    def forward(self, model: PreTrainedModel, ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """For whole sequences (b, T), padded on the right: the target's last hidden states (b, T, H), without gradient, and
        those that the heads make at each token from `first` on, (b, T − first, k, H), with the gradient of the heads. The last
        ones of a sequence lead beyond it."""


class Pointwise(Heads):
    """Heads that look at the target's last hidden state alone."""

    @abstractmethod
    def ahead(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…, k, H)."""

    def forward(self, model: PreTrainedModel, ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
        return hidden, self.ahead(hidden[:, first:])


class Carried(Heads):
    """Heads whose states the target carries along: pseudo states of tokens that are to come, which come in after `layers` and
    go through all those above beside the real ones,

        h̃_{n+i}^{t_i} = W_i h_n^{t_i} + b_i                                                  t_1 ≤ … ≤ t_k are `layers`
        h̃_{n+i}^{l}   = Layer_l(h̃_{n+i}^{l−1})    for l > t_i, at position n+i, which attends to the real tokens up to n and to
                                                   the pseudo states j ≤ i of the same n

    (Wu et al. 2024, arXiv 2404.12022, and 2410.20488). Real tokens attend to no pseudo state, so that what the target says is
    untouched. W_i begins as the identity and b_i as 0: what is transferred first is the state itself.

    Raises UserError where a layer is not below the top of the model.
    """

    def __init__(self, config: PretrainedConfig, layers: Sequence[int]) -> None:
        super().__init__(config, len(layers))
        if layers[-1] >= config.num_hidden_layers:
            raise UserError(
                f"states cannot come in after layer {layers[-1]} of a model that has {config.num_hidden_layers}: nothing would "
                "work on them; set a lower `layer`"
            )
        self.layers = tuple(layers)
        self.maps = nn.ModuleList(nn.Linear(self.width, self.width) for _ in layers)
        for each in self.maps:
            assert isinstance(each, nn.Linear)
            nn.init.eye_(each.weight)
            nn.init.zeros_(each.bias)

    def forward(self, model: PreTrainedModel, ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
        rows, tokens = ids.shape
        place = torch.arange(tokens, device=ids.device)
        at = torch.cat([place, *[place[first:]] * self.steps])  # the token that a state is of, or grows from
        step = torch.tensor(
            [0] * tokens + [i for i in range(1, 1 + self.steps) for _ in range(tokens - first)], device=ids.device
        )
        real = (step == 0) & (at <= at[:, None])
        pseudo = (step > 0) & (step <= step[:, None]) & (at == at[:, None])
        seen = (real | pseudo).expand(rows, 1, -1, -1)
        with self.carrying(model, slice(first, tokens), (at + step).expand(rows, -1), seen):
            hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
        return hidden[:, :tokens].detach(), hidden[:, tokens:].unflatten(1, (self.steps, -1)).transpose(1, 2)

    @contextmanager
    def carrying(
        self,
        model: PreTrainedModel,
        grown: slice,
        positions: Tensor,
        seen: Tensor,
        grows: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[None]:
        """Within it, a forward pass over N tokens a row takes up the pseudo states of M of them, `grown`, so that its last
        hidden states are (b, N + k · M, H): the real ones, those of step 1, of step 2 … `positions` (b, N + k · M) and `seen`
        (b, 1, N + k · M, columns), whether a state attends to a column, of which the last are those of the pseudo states.
        `grows` hears how many states a row has from each of `layers` on. Raises UserError for a model whose decoder is not
        built of layers that share their positions."""
        decoder = model.get_decoder()
        if not all(hasattr(decoder, part) for part in ("layers", "rotary_emb")):
            raise UserError(f"{model.name_or_path}: its layers cannot be given more states than it was asked for")
        before = seen.shape[-1] - seen.shape[-2]  # columns of what was read earlier
        rotary: list[tuple[Tensor, Tensor]] = []

        def grow(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden, *rest = args
            if new := [each for each, after in zip(self.maps, self.layers, strict=True) if after == layer]:
                states = hidden[:, grown]
                hidden = torch.cat([hidden, *(each(states.to(each.weight.dtype)).to(states.dtype) for each in new)], 1)
                grows(hidden.shape[1])
            if not rotary:
                rotary.append(decoder.rotary_emb(hidden, position_ids=positions))
            now = hidden.shape[1]
            return (hidden, *rest), kwargs | {
                "attention_mask": seen[:, :, :now, : before + now],
                "position_ids": positions[:, :now],
                "position_embeddings": tuple(part[:, :now] for part in rotary[0]),
            }

        hooks = [
            decoder.layers[layer].register_forward_pre_hook(_of_layer(grow, layer), with_kwargs=True)
            for layer in range(self.layers[0], len(decoder.layers))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _of_layer(grow: Callable[..., Any], layer: int) -> Callable[..., Any]:
    return lambda module, args, kwargs: grow(layer, args, kwargs)


def usual_layer(config: PretrainedConfig) -> int:
    """After three quarters of the layers: high enough to know what comes, low enough to say it well."""
    return min(round(0.75 * config.num_hidden_layers), config.num_hidden_layers - 1)


# -- on disk ---------------------------------------------------------------------------------------------------------------


def make(config: PretrainedConfig, name: str, options: dict[str, Any]) -> Heads:
    """Untrained heads of a kind in `rollout.heads`, for a model of this `config`. Raises UserError where there is none."""
    made: Heads = plugins.bind("rollout.heads", name, options)(config)
    return made


def save(heads: Heads, name: str, options: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in heads.state_dict().items()}, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps({"name": name, "options": options}) + "\n", encoding="utf-8")


def load(folder: str, config: PretrainedConfig) -> Heads:
    """Raises UserError where the folder has no heads, and where they are not for a model of this `config`."""
    try:
        about = json.loads(Path(folder, ABOUT).read_text(encoding="utf-8"))
        heads = make(config, about["name"], about["options"])
        heads.load_state_dict(load_file(Path(folder, WEIGHTS)))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no heads that can be read: {error}; they are made by a recipe of job: heads"
        ) from error
    except RuntimeError as error:  # of load_state_dict
        raise UserError(f"the heads in {folder} are of another model, whose states have another size") from error
    return heads
