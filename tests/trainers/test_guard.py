"""What compressed rollouts are measured to save, and what ends them: by hand, with seconds that the test makes up."""

from __future__ import annotations

import pytest

from rlcore.recipe.schema import Compression
from trainers.guard import DIVERGENCE, Guard, Sent

FULL, SMALL = 1000, 400  # bytes of a sync


class Story:
    """Steps as the loop takes them: the sync of each, then `measure`. `resumed` starts again from a guard's state."""

    def __init__(self, after: int = 3, **guard: object) -> None:
        self.settings = Compression(methods=["rtn"], after=after, guard={"kl": 0.5, "gain": "time", "patience": 2} | guard)
        self.guard = Guard(self.settings)
        self.step = 0
        self.push()

    def push(self, small: int = SMALL) -> None:
        compressed = self.guard.compresses(self.step)
        self.guard.sent(Sent(small if compressed else FULL, 0.25, compressed))

    def take(self, generate: float = 10.0, sync: float = 1.0, kl: float = 0.1, small: int = SMALL) -> dict[str, float]:
        self.step += 1
        self.push(small)
        metrics = {"tokens": 100.0, DIVERGENCE: kl}
        return self.guard.measure(self.step, metrics, {"time/generate": generate, "time/sync": sync})

    def baseline(self) -> None:
        """Three steps, the first of them slow, at 0.1 s a token and 1 s a sync."""
        for generate in (100.0, 10.0, 10.0):
            self.take(generate)

    def resumed(self) -> None:
        state, self.guard = self.guard.state(), Guard(self.settings)
        self.guard.restore(state)
        self.push()


def test_the_first_steps_are_the_policys_own() -> None:
    story = Story()
    assert [story.take()["compression/on"] for _ in range(5)] == [0, 0, 0, 1, 1]


def test_what_is_saved_is_net_of_what_compression_costs() -> None:
    """The fourth step: 100 tokens in 8 s in the place of 10, a sync of 1.5 s in the place of 1."""
    story = Story()
    story.baseline()
    told = story.take(generate=8.0, sync=1.5)
    assert told["compression/seconds_saved"] == pytest.approx(2.0 - 0.5)
    assert told["compression/bytes_saved"] == FULL - SMALL
    assert told["compression/seconds"] == 0.25


def test_it_ends_when_it_has_cost_more_than_it_saved_for_so_many_steps(capsys: pytest.CaptureFixture) -> None:
    """+1, −0.5, −0.75: no two in a row but the last add up to less than 0."""
    story = Story()
    story.baseline()
    for sync, on in ((0.0, True), (1.5, True), (1.75, False)):
        story.take(sync=sync)
        assert story.guard.compresses(story.step + 1) is on
    said = capsys.readouterr().err
    assert said.count("rollouts are compressed no longer") == 1
    assert "from step 8 on: over 2 steps it cost 1.25 s more than it saved" in said
    told = story.take()
    assert (told["compression/on"], story.take()["compression/on"]) == (1, 0)
    assert story.guard.summary()["compression"]["ended"].startswith("before step 8: over 2 steps")
    assert capsys.readouterr().err == ""


def test_the_weights_of_the_step_that_ends_it_are_what_they_were() -> None:
    """They were sent before: a run that is resumed at that step sends the same."""
    story = Story()
    story.baseline()
    story.take(kl=0.6)
    assert [story.guard.compresses(version) for version in (2, 3, 4, 5)] == [False, True, True, False]


def test_a_divergence_above_its_cap_ends_it_at_once(capsys: pytest.CaptureFixture) -> None:
    story = Story(gain="none")
    story.take(kl=0.9)  # the policy itself: that is not the compression's
    story.baseline()
    assert story.guard.compresses(9)
    story.take(kl=0.51)
    assert not story.guard.compresses(9)
    assert "0.51 nats a token from the policy, above guard.kl 0.5" in capsys.readouterr().err


def test_a_divergence_that_is_no_number_ends_it() -> None:
    story = Story(gain="none")
    story.baseline()
    story.take(kl=float("nan"))
    assert not story.guard.compresses(9)


def test_evaluations_of_the_policy_itself_are_paid_for_by_the_next_step() -> None:
    """Once, and after a resume too: 1,400 bytes and 1.5 s of syncs there and back."""
    story = Story()
    story.baseline()
    story.guard.besides(FULL + SMALL, 1.5)
    story.resumed()
    told = story.take(generate=8.0)
    assert told["compression/bytes_saved"] == FULL - SMALL - (FULL + SMALL)
    assert told["compression/seconds_saved"] == pytest.approx(2.0 - 1.5)
    assert story.take(generate=8.0)["compression/seconds_saved"] == pytest.approx(2.0)


def test_a_method_that_sends_more_bytes_than_it_saves_ends() -> None:
    story = Story(gain="bytes")
    story.baseline()
    story.take(small=1100)
    assert story.guard.compresses(9)
    story.take(small=1100)
    assert not story.guard.compresses(9)


def test_bytes_that_are_saved_do_not_pay_for_time() -> None:
    story = Story(gain="time")
    story.baseline()
    for _ in range(2):
        story.take(sync=1.1)
    assert not story.guard.compresses(9)


def test_it_survives_a_resume() -> None:
    """In the middle of the baseline, of its patience, and when it has ended."""
    story = Story()
    story.take(100.0)
    story.resumed()
    for _ in range(2):
        story.take()
    story.take(sync=1.5)
    story.resumed()
    assert story.take(sync=1.5)["compression/seconds_saved"] == pytest.approx(-0.5)
    story.resumed()
    assert not story.guard.compresses(9)
    assert story.guard.summary()["compression"]["ended"].startswith("before step 7")


@pytest.mark.parametrize(
    ("sync", "saves"), [((0.5, 0.6, 0.5), "bytes synced and time of syncs"), ((1.0, 1.1, 0.9), "bytes synced")]
)
def test_the_summary_says_what_was_measured_to_be_saved(sync: tuple[float, ...], saves: str) -> None:
    """Never time of generation: a dense copy computes as much as the policy. A sync that is about as long saves none either."""
    story = Story(after=5, gain="none")
    for seconds in (5.0, 1.1, 0.9, 1.0, 5.0):  # the first warms up, the last is of compressed weights already
        story.take(sync=seconds)
    for seconds in sync:
        story.take(generate=1.0, sync=seconds)
    found = story.guard.summary()["compression"]
    assert found["bytes_a_sync"] == SMALL
    assert found["bytes_a_sync_uncompressed"] == FULL
    assert found["ended"] == "never"
    assert found["saves"] == saves
