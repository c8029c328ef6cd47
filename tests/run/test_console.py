"""What a step's line tells."""

from __future__ import annotations

import pytest

from rlcore.run.console import readable


def test_a_step_tells_what_became_of_the_drafts() -> None:
    told = readable({"reward": 0.5, "drafter/accepted": 0.873, "drafter/tokens_per_pass": 3.62, "drafter/seconds": 0.4})
    assert told == "reward 0.5  drafts accepted 0.873  tok/pass 3.62"


@pytest.mark.parametrize("on", [0.0, 1.0])
def test_a_step_that_a_compressed_copy_sampled_tells_how_far_it_was_and_what_it_saved(on: float) -> None:
    metrics = {"reward": 0.5, "compression/on": on, "kl/rollout_k3": 0.031, "compression/bytes_saved": 1234.0}
    told = readable({**metrics, "importance/capped": 0.02})
    assert ("KL to the copy 0.031  bytes saved 1234" in told) == bool(on)
    assert "capped 0.02" in told
