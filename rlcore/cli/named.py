"""Plugins on the command line."""

from __future__ import annotations

from typing import Any

import yaml

from rlcore.errors import UserError


def named(text: str, option: str, example: str) -> dict[str, Any]:
    """A plugin by name, or as a YAML mapping with its options."""
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option} {text!r} is neither a name nor a YAML mapping") from error
    fields: Any = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise UserError(f"{option} {text!r} names nothing; for example: {example}, or '{{name: {example}, OPTION: VALUE}}'")
    return fields
