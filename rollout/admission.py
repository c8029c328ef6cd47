"""Which requests an engine takes. Shared by the engines that hold a model."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.errors import UserError
from rlcore.types import Request


def refuse_unfit(requests: Sequence[Request], context: int) -> None:
    """Raise UserError for an empty prompt, and for one that does not fit into the context with its longest completion."""
    for request in requests:
        if not request.prompt_ids:
            raise UserError(f"the prompt of {request.problem_id} has no tokens")
        if len(request.prompt_ids) + request.sampling.max_new_tokens > context:
            raise UserError(
                f"the prompt of {request.problem_id} has {len(request.prompt_ids)} tokens; with max_new_tokens "
                f"{request.sampling.max_new_tokens} that is more than the model's context of {context}: "
                "shorten the prompt or lower rollout.max_new_tokens"
            )
