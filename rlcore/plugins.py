"""How a name in a recipe becomes code: the folder is the registry.

`find("trainers.advantages", "grpo")` imports `trainers/advantages/grpo.py` and returns the object in it that carries the
file's name (`grpo`, or `Grpo` for a class). A name with a colon, `my_package.my_file:object`, is imported as it is, so a user's
own file needs no registration.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rlcore.errors import UserError, nearest


def names(package: str) -> dict[str, str]:
    """Plugin name → module path. Imports none of the modules.

    Where the folder has sub-folders (`rewards`), its plugins are the modules in those, and what stands beside them are their
    helpers; otherwise they are the modules in the folder. Sub-folders that the package sets APART have none of its plugins:
    they are registries of another kind, or helpers. Raises ValueError for two files of one name.
    """
    root = importlib.import_module(package)
    apart = tuple(f"{package}.{folder}." for folder in getattr(root, "APART", ()))
    found = [info for info in pkgutil.walk_packages(root.__path__, f"{package}.") if not f"{info.name}.".startswith(apart)]
    nested = any(info.ispkg for info in found)
    plugins: dict[str, str] = {}
    for module in (info.name for info in found if not info.ispkg):
        folder, _, name = module.rpartition(".")
        if nested and folder == package:
            continue
        if name in plugins:
            raise ValueError(f"{plugins[name]} and {module} are both the plugin {name!r}: rename one of the files")
        plugins[name] = module
    return plugins


def find(package: str, name: str) -> Any:
    """The object that `name` means in `package`. Raises UserError for a name that is not there."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot import {name!r}: {error}; is its folder on PYTHONPATH?") from error
    known = names(package)
    if name not in known:
        raise UserError(f"there is no {name!r} in {package.replace('.', '/')}{nearest(name, list(known))}")
    module = importlib.import_module(known[name])
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        if not key.startswith("__") and key.replace("_", "").lower() == wanted:
            return value
    raise UserError(f"{known[name]} is no plugin: it holds nothing called {name!r}")


def bind(package: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """`find`, with the recipe's options bound as keyword arguments, read and bounded as their annotations say
    (`Annotated[float, pydantic.Field(gt=0)]`). Raises UserError for an option it does not take, or not with such a value."""
    target = find(package, name)
    keywords = [p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return with_options(name, target, options, keywords)


def with_options(
    name: str, target: Callable[..., Any], options: Mapping[str, Any], parameters: Sequence[inspect.Parameter]
) -> Callable[..., Any]:
    """`target` with the options bound, of which `parameters` are what there is. Raises UserError, naming `name`, for any other
    option and where one without a default is missing."""
    taken = [p.name for p in parameters]
    for option in options:
        if option not in taken:
            raise UserError(f"{name!r} has no option {option!r}{nearest(option, taken) if taken else '; it takes none'}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise UserError(f"{name!r} needs the option {', '.join(map(repr, missing))}")
    return functools.partial(target, **_read(name, target, options))


def _read(name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the target's annotations have them (YAML's `3e-4` is a string); as they are where it has none."""
    try:
        parameters = inspect.signature(target, eval_str=True).parameters
    except NameError:  # a stranger's annotation, of what is imported for type checkers only
        parameters = inspect.signature(target).parameters
    hints = {
        p.name: p.annotation for p in parameters.values() if not isinstance(p.annotation, str) and p.annotation is not p.empty
    }
    read = {}
    for option, value in options.items():
        kind = TypeAdapter(hints.get(option, Any), config=ConfigDict(arbitrary_types_allowed=True))
        try:
            read[option] = kind.validate_python(value)
        except ValidationError as error:
            raise UserError(f"{name!r}: {option} cannot be {value!r}: {_told(error)}") from error
    return read


def _told(error: ValidationError) -> str:
    message = error.errors()[0]["msg"]
    return message[0].lower() + message[1:]
