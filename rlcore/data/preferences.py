"""Preference pairs: two answers to one prompt, of which people or a judge liked one better.

Read by `rlcore.data.formats.preference_pairs`; what learns from preferences starts from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # one of ROLES
    content: str


@dataclass(frozen=True, slots=True)
class Preference:
    """What the assistant answers to the messages of `prompt`, of which there is at least one: the better and the worse.

    `meta` carries what else the data knows (scores, …); `meta["unusable"]` says why the pair should be dropped and counted.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    meta: Mapping[str, Any] = field(default_factory=dict)
