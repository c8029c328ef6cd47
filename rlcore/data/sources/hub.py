"""A dataset of the Hugging Face hub, or one in its local cache."""

from __future__ import annotations

from rlcore.data.rows import rows_of_hub
from rlcore.types import Problem


def hub(
    *,
    dataset: str,
    config: str | None = None,
    split: str = "train",
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """`prompt`, `answer` and `solution` name the fields."""
    remedy = "check its name, config and split, and the network; or download it and use the source 'file'"
    return [
        Problem(
            id=f"{dataset}/{split}/{row.number}",
            prompt=row.text(prompt),
            answer=row.answer(answer),
            meta={"solution": row.text(solution)} if solution else {},
        )
        for row in rows_of_hub(dataset, config, split, limit, remedy=remedy)
    ]
