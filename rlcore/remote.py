"""Calls to Ray actors that may die or hang: what they answered, and which of them are lost. Shared by the rollout pool and the
learner's ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from ray import ObjectRef

Key = TypeVar("Key")

START_S = 1800.0  # what an actor may take to load its model
# How long the others are listened to after one has raised: it may have done so because another died, and of the death of a
# whole machine Ray hears after some 15 s of silence.
GRACE_S = 30.0


@dataclass(frozen=True)
class Answers(Generic[Key]):
    """What became of calls, by the caller's key: answered; lost, and why (the actor died, or said nothing for too long); or
    raised in the actor, as it was raised there, without Ray's traceback around it."""

    got: dict[Key, Any]
    lost: dict[Key, str]
    raised: dict[Key, BaseException]


def answers(calls: Mapping[Key, ObjectRef], deadline_s: float, *, together: bool) -> Answers[Key]:
    """Wait for calls of actors, `deadline_s` seconds at most. Of actors that work `together`, none answers when one is lost:
    then the others are not waited for."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    found: Answers[Key] = Answers({}, {}, {})
    keys = {ref: key for key, ref in calls.items()}
    waiting = list(keys)
    until = time.monotonic() + deadline_s
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            break
        [ref] = ready
        try:
            found.got[keys[ref]] = ray.get(ref)
        except RayActorError as error:
            found.lost[keys[ref]] = why_dead(error)
            if together:
                return found
        except RayTaskError as error:
            found.raised[keys[ref]] = cause(error)
            until = min(until, time.monotonic() + (GRACE_S if together else 0))
    if not found.raised:
        found.lost.update({keys[ref]: f"said nothing for {deadline_s:g} s" for ref in waiting})
    return found


def cause(error: Any) -> BaseException:
    """What was raised in the actor, out of Ray's wrapping."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else error


def why_dead(error: BaseException) -> str:
    """Why an actor died, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join(lines)
    if "connection error code" in told:  # Ray guesses too, in a paragraph
        return "died (killed, out of memory, or crashed)"
    if "node has died" in told:
        return "died with its machine"
    return f"died: {lines[-1] if lines else 'Ray says nothing of it'}"


def kill(actors: Sequence[Any]) -> None:
    """End the actors' processes at once."""
    import ray

    for actor in actors:
        ray.kill(actor, no_restart=True)
