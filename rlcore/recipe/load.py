"""From files and overrides to a validated recipe that knows where each of its values came from.

    load(["grpo_gsm8k", "mine.yaml", "steps=5", "rollout.samples=4"])

Arguments merge left to right: a shipped recipe's name, a YAML file, a run folder (its resolved recipe), or `key.path=value`.
Mappings merge key by key, unless they name another plugin; everything else is replaced.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlcore.errors import UserError, nearest
from rlcore.recipe.schema import JOBS, Recipe

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Loaded:
    recipe: Recipe
    origins: Mapping[Path_, str]  # key path → "file:line", "override" (absent: the schema's default)

    def to_yaml(self, with_origins: bool = False) -> str:
        """The whole resolved recipe; with a comment on each line that says where the value came from, if asked."""
        text = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, width=120)
        if not with_origins:
            return text
        lines = text.splitlines()
        for path, node in _scalars(yaml.compose(text)):
            assert node is not None
            line = node.end_mark.line if node.end_mark.column else node.end_mark.line - 1
            lines[line] = f"{lines[line]:<56}# {_stated(self.origins, path)}"
        return "\n".join(lines) + "\n"


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name. What lies in `repro` are experiments, not recipes."""
    root = Path(str(resources.files("recipes")))
    files = (path for path in sorted(root.rglob("*.yaml")) if path.parent != root / "repro")
    return {str(path.relative_to(root).with_suffix("")): path for path in files}


def load(arguments: Sequence[str]) -> Loaded:
    """Merge and validate. Raises UserError with file and line for anything that is not a recipe."""
    merged, origins = _merged(arguments)
    return Loaded(_validate(merged, origins), origins)


def job(arguments: Sequence[str]) -> str:
    """What job a recipe is of, whatever else it says."""
    return str(_merged(arguments)[0].get("job", "rl"))


def _merged(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[Path_, str]]:
    merged: dict[str, Any] = {}
    origins: dict[Path_, str] = {}
    files = [argument for argument in arguments if "=" not in argument]
    if not files:
        raise UserError(f"no recipe given; shipped recipes: {', '.join(shipped())}")
    for argument in arguments:
        is_override = "=" in argument
        layer, places = _override(argument) if is_override else _read(_locate(argument))
        _merge(merged, layer, origins, places, ())
        if not is_override and _is_run(argument):
            merged["output"] = argument  # a run is gone on with where it lies
    return merged, origins


def _locate(argument: str) -> Path:
    path = Path(argument)
    if _is_run(argument):
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if argument in shipped():
        return shipped()[argument]
    raise UserError(f"no recipe {argument!r}: neither a file nor a run folder nor shipped{nearest(argument, list(shipped()))}")


def _read(path: Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not readable as YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is {type(values).__name__}")
    return values, {p: f"{_readable(path)}:{n.start_mark.line + 1}" for p, n in _nodes(node, ())}


def _is_run(argument: str) -> bool:
    return (Path(argument) / "recipe.yaml").is_file()


def _readable(path: Path) -> str:
    """A shipped recipe by its name below recipes/, any other file as it is."""
    root = Path(str(resources.files("recipes")))
    return str(path.relative_to(root.parent) if path.is_relative_to(root) else path)


def _override(argument: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    dotted, _, text = argument.partition("=")
    keys = dotted.split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {argument!r}: the value is not readable as YAML") from error
    layer: Any = value
    for key in reversed(keys):
        layer = {key: layer}
    given = [path for path, _ in _nodes(yaml.compose(text), tuple(keys))] if text.strip() else []
    return layer, dict.fromkeys([tuple(keys[: i + 1]) for i in range(len(keys))] + given, f"override {argument}")


def _nodes(node: yaml.Node | None, path: Path_) -> Iterator[tuple[Path_, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key
            yield from _nodes(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value
            yield from _nodes(value, (*path, i))


def _scalars(node: yaml.Node | None, path: Path_ = ()) -> Iterator[tuple[Path_, yaml.Node | None]]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _scalars(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode) and node.value:
        for i, value in enumerate(node.value):
            yield from _scalars(value, (*path, i))
    else:
        yield path, node


def _merge(into: dict[str, Any], layer: Mapping[str, Any], origins: dict, places: Mapping[Path_, str], path: Path_) -> None:
    for key, value in layer.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key), str):
            into[key] = {"name": into[key]}  # a plugin by its bare name, which now gets options
        if isinstance(value, dict) and isinstance(into.get(key), dict) and _same_plugin(into[key], value):
            origins.setdefault(here, places.get(here, ""))
            _merge(into[key], value, origins, places, here)
        else:
            for old in [p for p in origins if p[: len(here)] == here]:
                del origins[old]
            into[key] = value
            origins.update({p: place for p, place in places.items() if p[: len(here)] == here})


def _same_plugin(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """A mapping that names another plugin replaces the old one: its options are not the new one's."""
    return "name" not in now or now["name"] == before.get("name")


def _validate(values: dict[str, Any], origins: Mapping[Path_, str]) -> Recipe:
    job = values.get("job", "rl")
    if job not in JOBS:
        raise UserError(f"{_origin(origins, ('job',)) or 'recipe'}: job {job!r} is none of {', '.join(JOBS)}")
    try:
        return JOBS[job].model_validate(values)  # type: ignore[return-value]
    except ValidationError as error:
        raise UserError(" | ".join(_explain(e, JOBS[job], origins) for e in error.errors())) from None


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """The dotted keys in which two resolved recipes differ; lists differ as a whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


def _explain(error: Any, model: type[BaseModel], origins: Mapping[Path_, str]) -> str:
    path: Path_ = tuple(error["loc"])
    where = _origin(origins, path) or "recipe"
    dotted = ".".join(map(str, path)) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}{nearest(str(path[-1]), _keys_at(model, path[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {dotted!r}: {message[0].lower() + message[1:]}" if path else f"{where}: {message}"


def _origin(origins: Mapping[Path_, str], path: Path_) -> str:
    """The place of the key, or of the nearest key above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return ""


def _stated(origins: Mapping[Path_, str], path: Path_) -> str:
    """Where a resolved value was stated: a source may stand without its list, a plugin as its bare name."""
    bare = [path, path[:-1]] if path[-1] == "name" else [path]
    unlisted = [tuple(key for key in way if not isinstance(key, int)) for way in bare]
    return next((origins[way] for way in bare + unlisted if way in origins), "default")


def _keys_at(model: type[BaseModel], path: Path_) -> list[str]:
    """The keys that the schema knows at a place, for the nearest-key hint."""
    annotation: Any = model
    for key in path:
        for candidate in _models(annotation):
            if key in candidate.model_fields:
                annotation = candidate.model_fields[str(key)].annotation
                break
    return [name for candidate in _models(annotation) for name in candidate.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside a type such as `list[Annotated[Source, …]] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for inner in typing.get_args(annotation) for found in _models(inner)]
