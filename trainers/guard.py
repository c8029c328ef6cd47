"""Whether rollouts by a compressed copy of the policy go on: what they save, and how far the copy is from the policy.

The first `after` steps are sampled by the policy itself, and make the baseline: b bytes and s seconds a sync, g seconds of
generation a token, medians; of seconds without the first step, which warms up. What a later step of n tokens saved is net:
everything that compression costs is in it.

    bytes    b − bytes of its sync − x
    seconds  g · n − seconds of generation  +  s − seconds of its sync, with compressing, decoding and the parity probe  −  y

x bytes and y seconds: of the syncs there and back, if the policy itself was evaluated since the step before.
g is that of completions as long as they were then: a gain in seconds means as much as they stay so. Compression ends, for good,
where the gain that the recipe asks for adds up to less than 0 over the last `patience` steps, or where the divergence
KL(sampler ‖ learner) of a step is above its cap. A gain in seconds depends on the clock, and so does a run that goes by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, variance
from typing import Any

from rlcore.recipe.schema import Compression
from rlcore.run.console import warn

DIVERGENCE = "kl/rollout_k3"


@dataclass(frozen=True)
class Sent:
    """What a sync took: bytes sent, and seconds of compressing them."""

    nbytes: int
    seconds: float
    compressed: bool


@dataclass
class _Seen:
    """What a run that is resumed goes on from."""

    warm: bool = False  # a step has been taken
    ended: int | None = None  # the step whose sync was the last compressed one, so that the step after it was sampled so too
    why: str = ""
    full_bytes: list[int] = field(default_factory=list)  # of the baseline's syncs
    full_sync: list[float] = field(default_factory=list)  # their seconds
    sync: list[float] = field(default_factory=list)  # seconds of the compressed steps' syncs
    per_token: list[float] = field(default_factory=list)  # seconds of generation, of the baseline's steps
    nbytes: int = 0  # of the last compressed sync
    besides: tuple[int, float] = (0, 0.0)  # bytes and seconds of evaluations' syncs that no step was charged with yet
    saved: dict[str, list[float]] = field(default_factory=lambda: {"bytes": [], "time": []})  # of each compressed step


class Guard:
    def __init__(self, settings: Compression) -> None:
        self.settings = settings
        self._seen = _Seen()
        self._sent: Sent | None = None

    def compresses(self, version: int) -> bool:
        """Whether the weights of this version, which sample in the step after it, are compressed."""
        return version >= self.settings.after and (self._seen.ended is None or version <= self._seen.ended)

    def sent(self, sent: Sent) -> None:
        """Told of each sync."""
        self._sent = sent
        if not sent.compressed and self._seen.ended is None:
            self._seen.full_bytes.append(sent.nbytes)
        elif sent.compressed:
            self._seen.nbytes = sent.nbytes

    def besides(self, nbytes: int, seconds: float) -> None:
        """Told of what an evaluation of the policy itself took: that of the next step is so much less."""
        bytes_before, seconds_before = self._seen.besides
        self._seen.besides = (bytes_before + nbytes, seconds_before + seconds)

    def measure(self, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
        """After the sync of a step: what to report of it. `seconds` by phase of the step. Says so, once, where this ends it."""
        assert self._sent is not None  # the sync comes first
        told = {"compression/on": float(self.compresses(step - 1))}
        if self._sent.compressed:
            told["compression/seconds"] = self._sent.seconds
        if self._seen.ended is not None:
            return told
        if step <= self.settings.after:
            self._learn(metrics, seconds)
            return told
        self._seen.sync.append(seconds["time/sync"])
        for kind, name in (("bytes", "compression/bytes_saved"), ("time", "compression/seconds_saved")):
            if (gain := self._gain(kind, metrics, seconds)) is not None:
                self._seen.saved[kind].append(gain)
                told[name] = gain
        self._seen.besides = (0, 0.0)
        if reason := self._reason(metrics):
            self._seen.ended, self._seen.why = step, reason
            warn(f"rollouts are compressed no longer from step {step + 2} on: {reason}")
        return told

    def summary(self) -> dict[str, Any]:
        """What it was good for. Engines decode to dense weights: no memory is saved, and generation costs what it did; where it
        took another time, the completions were other ones. So what may be saved is bytes, and time of syncs."""
        seen = self._seen
        saving = ["bytes synced"] * (sum(seen.saved["bytes"]) > 0) + ["time of syncs"] * _is_less(seen.sync, seen.full_sync)
        found: dict[str, Any] = {
            "methods": ", ".join(method.name for method in self.settings.methods),
            "saves": " and ".join(saving) or "nothing",
            "bytes_a_sync": seen.nbytes,
        }
        if seen.full_bytes:
            found["bytes_a_sync_uncompressed"] = int(median(seen.full_bytes))
        if seen.saved["time"]:
            found["seconds_saved_a_step"] = round(fmean(seen.saved["time"]), 4)
        found["ended"] = "never" if seen.ended is None else f"before step {seen.ended + 2}: {seen.why}"
        return {"compression": found}

    def state(self) -> Any:
        return asdict(self._seen)

    def restore(self, state: Any) -> None:
        self._seen = _Seen(**{**state, "besides": tuple(state["besides"])})

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _learn(self, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Take a step into the baseline; of the last one, whose sync is compressed, the generation alone."""
        if not self._seen.warm:
            self._seen.warm = True
            return
        self._seen.per_token.append(seconds["time/generate"] / max(1.0, metrics["tokens"]))
        assert self._sent is not None
        if not self._sent.compressed:
            self._seen.full_sync.append(seconds["time/sync"])

    def _gain(self, kind: str, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> float | None:
        """What the step saved; None where there is no baseline."""
        seen = self._seen
        assert self._sent is not None
        if kind == "bytes":
            return median(seen.full_bytes) - self._sent.nbytes - seen.besides[0] if seen.full_bytes else None
        if not (seen.per_token and seen.full_sync):
            return None
        generation = median(seen.per_token) * metrics["tokens"] - seconds["time/generate"]
        return generation + median(seen.full_sync) - seconds["time/sync"] - seen.besides[1]

    def _reason(self, metrics: Mapping[str, float]) -> str:
        """Why compression is to end; empty where it is not."""
        guard = self.settings.guard
        if guard.kl is not None and not metrics.get(DIVERGENCE, 0.0) <= guard.kl:  # what is no number is above it
            return f"the copy is {metrics[DIVERGENCE]:.3g} nats a token from the policy, above guard.kl {guard.kl:g}"
        last = self._seen.saved.get(guard.gain, [])[-guard.patience :]
        if len(last) == guard.patience and sum(last) < 0:
            unit = "bytes" if guard.gain == "bytes" else "s"
            return f"over {guard.patience} steps it cost {-sum(last):.3g} {unit} more than it saved"
        return ""


def _is_less(these: Sequence[float], those: Sequence[float]) -> bool:
    """Whether the mean of these is below that of those, by two standard errors of the difference."""
    if min(len(these), len(those)) < 2:
        return False
    error = sum(variance(values) / len(values) for values in (these, those)) ** 0.5
    return fmean(these) + 2 * error < fmean(those)
