"""From what a recipe says of a drafter to the drafter."""

from __future__ import annotations

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.recipe.schema import Plugin
from rollout.decoding.drafter import Drafter
from rollout.drafters.compressed import Compressed


def make_drafter(asked: Plugin, engine: str, key: str) -> Drafter | Compressed:
    """Without a model. `key`: of the recipe, where it is asked for. Raises UserError where there is none of that name, or not
    with these options, or not for the engine."""
    drafter: Drafter | Compressed = plugins.bind("rollout.drafters", asked.name, asked.options)()
    kind = plugins.find("rollout.engines", engine).verifies
    if kind is None or not isinstance(drafter, kind):
        known = {name: plugins.find("rollout.drafters", name) for name in plugins.names("rollout.drafters")}
        fit = [name for name, each in known.items() if kind is not None and issubclass(each, kind)]
        raise UserError(
            f"{key}: the engine {engine} verifies no drafts of {asked.name}; it does those of "
            f"{', '.join(sorted(fit)) or 'none'}"
        )
    return drafter
