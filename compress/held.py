"""A weight matrix as a method left it: codes, masks, codebooks, scales. Formats are in `compress/formats`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from rlcore import plugins
from rlcore.errors import UserError


@dataclass(frozen=True)
class Held(ABC):
    """The fields that are tensors are what is stored, to the byte; fields that are themselves `Held` are stored with it; what
    else there is says how to read them."""

    shape: tuple[int, int]  # O outputs, I inputs

    @abstractmethod
    def decode(self) -> Tensor:
        """(O, I) float32: the matrix that the model works with."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Path of fields → tensor. One that several matrices share is the same object in each."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value
            elif isinstance(value, Held):
                yield from ((f"{field.name}/{name}", tensor) for name, tensor in value.tensors())

    def settings(self) -> dict[str, Any]:
        """What stands in compression.json: the format's name and all that is no tensor."""
        said: dict[str, Any] = {"format": Path(type(self).__module__.replace(".", "/")).name}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Held):
                said[field.name] = value.settings()
            elif not isinstance(value, Tensor):
                said[field.name] = value
        return said


def read(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Held:
    """What `settings` and `tensors` of a `Held` were made from. Raises UserError where they do not fit together."""
    kind = plugins.find("compress.formats", str(settings.get("format")))
    found: dict[str, Any] = {}
    for field in fields(kind):
        inner = {name.removeprefix(f"{field.name}/"): t for name, t in tensors.items() if name.startswith(f"{field.name}/")}
        if field.name in tensors:
            found[field.name] = tensors[field.name]
        elif field.name not in settings:
            continue
        elif inner:
            found[field.name] = read(settings[field.name], inner)
        else:
            value = settings[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        held: Held = kind(**found)
    except TypeError as error:
        raise UserError(f"a weight in the format {settings.get('format')!r} is not whole: {error}") from error
    return held
