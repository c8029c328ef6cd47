"""Which requests an engine takes. Shared by the engines that hold a model."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.errors import UserError
from rlcore.prompts import refuse_long
from rlcore.types import Request


def refuse_unfit(requests: Sequence[Request], context: int) -> None:
    """Raise UserError for an empty prompt, and for one that does not fit into the context with its longest completion."""
    for request in requests:
        if not request.prompt_ids:
            raise UserError(f"the prompt of {request.problem_id} has no tokens")
        refuse_long(request.problem_id, len(request.prompt_ids), request.sampling.max_new_tokens, context)
