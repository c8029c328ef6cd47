"""A model some of whose matrices are held in another form than numbers in a row; and its folder.

    compressed.safetensors   every tensor that is stored: those of the held matrices, and what else the model has
    compression.json         how to read them, what was done, and SHA-256 of the other files and of itself
    config.json, tokenizer…  as of any checkpoint

What is computed with are the reconstructions: the model in memory is a plain one, and so is what `export` writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from compress import held as held_
from compress.activations import Activations, quantise_inputs
from compress.held import Held
from rlcore.errors import UserError
from rlcore.models import configuration

WEIGHTS, ABOUT, VERSION = "compressed.safetensors", "compression.json", 1


@dataclass(frozen=True)
class Size:
    """Of what is stored, in bits; computed from the tensors, as they lie in the file."""

    held: int  # of the matrices in another form: codes, masks, codebooks, scales, outliers
    weights: int  # how many weights those matrices have
    rest: int  # of all else
    parameters: int  # of the whole model

    @property
    def per_weight(self) -> float:
        """Bits for each weight of the matrices that are compressed."""
        return self.held / max(1, self.weights)


@dataclass(frozen=True)
class CompressedModel:
    """`model`'s matrices are the reconstructions of those in `held`, by the name of the parameter; the rest is stored as it is,
    in `dtype`. Whatever changes `held` makes another one of these, with the same model in it."""

    model: PreTrainedModel
    dtype: torch.dtype
    held: Mapping[str, Held] = field(default_factory=dict)
    activations: Activations | None = None  # what the matrices' inputs are rounded to
    history: tuple[Mapping[str, Any], ...] = ()  # what was done, with its options and seconds

    @torch.no_grad()
    def holding(self, held: Mapping[str, Held]) -> CompressedModel:
        """With these matrices, beside those it has, in their place."""
        for name, weight in held.items():
            self.model.get_parameter(name).copy_(weight.decode())
        return replace(self, held={**self.held, **held})

    def size(self) -> Size:
        matrices = {id(tensor): tensor for weight in self.held.values() for _, tensor in weight.tensors()}
        rest = _rest(self)
        return Size(
            held=8 * sum(tensor.nbytes for tensor in matrices.values()),
            weights=sum(weight.shape[0] * weight.shape[1] for weight in self.held.values()),
            rest=8 * sum(tensor.nbytes for tensor in rest.values()),
            parameters=self.model.num_parameters(),
        )

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stored, weights = _rest(self), {}
        named: dict[int, str] = {}  # the shared ones once
        for name, weight in self.held.items():
            places = {}
            for path, tensor in weight.tensors():
                place = named.setdefault(id(tensor), f"{name}/{path}")
                stored[place] = tensor
                places[path] = place
            weights[name] = {**weight.settings(), "tensors": places}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}, folder / WEIGHTS)
        self.model.config.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        about: dict[str, Any] = {
            "version": VERSION,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": weights,
            "activations": self.activations and self.activations._asdict(),
            "history": list(self.history),
            "sha256": {name: _digest(folder / name) for name in (WEIGHTS, "config.json")},
        }
        (folder / ABOUT).write_text(json.dumps({**about, "digest": _of_text(about)}, indent=1) + "\n", encoding="utf-8")

    def plain_state(self) -> dict[str, Tensor]:
        """What a plain checkpoint holds, by name: tied weights once."""
        state: dict[str, Tensor] = self.model.state_dict()
        tied = set(self.model.all_tied_weights_keys or ())
        return {name: tensor for name, tensor in state.items() if name not in tied}

    @torch.no_grad()
    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> None:
        """A plain checkpoint of the reconstructions, for any engine. Raises UserError where the activations are quantised too,
        which no checkpoint can say."""
        if self.activations is not None:
            raise UserError("a plain checkpoint cannot say that activations are quantised: export it without `activations`")
        self.write(folder, tokenizer, {name: tensor.to(dtype) for name, tensor in self.plain_state().items()}, dtype)

    def write(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Tensor], dtype: torch.dtype, **settings: Any
    ) -> None:
        """A checkpoint with this state, whose configuration is the model's and `settings`."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {**self.model.config.to_dict(), "dtype": str(dtype).removeprefix("torch."), **settings}
        type(self.model.config).from_dict(said).save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def as_stored(model: PreTrainedModel, dtype: torch.dtype, held: Collection[str] = ()) -> None:
    """The weights, but for those that are held otherwise, in the dtype that they are stored in, so that what is measured is
    what is kept."""
    for name, parameter in model.named_parameters():
        if name not in held:
            parameter.copy_(parameter.to(dtype))


def is_compressed(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


@torch.no_grad()
def load(folder: Path, device: str = "cpu") -> CompressedModel:
    """What was saved, to the bit. Raises UserError for a folder that holds none, or files that are not as they were written."""
    about, held, stored = _read(folder, device)
    model = AutoModelForCausalLM.from_config(configuration(str(folder))).float().eval().to(device)
    for name, parameter in model.named_parameters():
        parameter.copy_(held[name].decode() if name in held else stored[name])
    activations = about["activations"] and Activations(**about["activations"])
    compressed = CompressedModel(model, getattr(torch, about["dtype"]), held, activations, tuple(about["history"]))
    if activations is not None:
        quantise_inputs(model, list(held), activations)
    return compressed


def load_held(folder: Path, device: str = "cpu") -> dict[str, Held]:
    """The held matrices of what was saved, without the model. Raises UserError as `load` does."""
    return _read(folder, device)[1]


def _read(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, Held], dict[str, Tensor]]:
    """What compression.json says, the held matrices, and every tensor that is stored."""
    about = verified(folder)
    try:
        stored = load_file(folder / WEIGHTS, device=device)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    held = {}
    for name, settings in about["weights"].items():
        tensors = {path: stored[place] for path, place in settings["tensors"].items()}
        held[name] = held_.read({key: value for key, value in settings.items() if key != "tensors"}, tensors)
    return about, held, stored


def verified(folder: Path) -> dict[str, Any]:
    """compression.json of a folder whose files are as they were written. Raises UserError, naming the file, otherwise."""
    if not is_compressed(folder):
        raise UserError(f"{folder} holds no compressed model: it has no {ABOUT}")
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        digest = about.pop("digest")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"{folder / ABOUT} is broken: make the model anew, or copy it again") from error
    if digest != _of_text(about):
        raise UserError(f"{folder / ABOUT} was changed after it was written: make the model anew, or copy it again")
    if about["version"] != VERSION:
        raise UserError(f"{folder} is of version {about['version']} of the format, and this reads version {VERSION}")
    for name, written in about["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the folder again")
        if _digest(path) != written:
            raise UserError(f"{path} is not what was written (truncated or changed): copy the folder again")
    return {**about, "digest": digest}


def _rest(compressed: CompressedModel) -> dict[str, Tensor]:
    """The parameters that are not held, tied ones once, in the dtype that they are stored in."""
    plain = compressed.model.named_parameters()
    return {name: parameter.detach().to(compressed.dtype) for name, parameter in plain if name not in compressed.held}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_text(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
