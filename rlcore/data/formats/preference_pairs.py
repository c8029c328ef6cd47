"""Preference pairs in the field's common shapes.

`prompt`, `chosen` and `rejected` as strings; each of them as a list of chat messages, `{role, content}`; and `chosen` and
`rejected` as whole conversations with the same first messages, beside a prompt (as in UltraFeedback binarized) or without one.
"""

from __future__ import annotations

from pathlib import Path

from rlcore.data.files import rows_named
from rlcore.data.preferences import ROLES, Message, Preference
from rlcore.data.rows import Row


def preference_pairs(*, path: str, limit: int | None = None) -> list[Preference]:
    """A prompt that is a string is what the user says. All other fields of the row are in `meta`."""
    return [_preference(row, f"{Path(path).stem}/{row.number}") for row in rows_named(path, limit)]


def _preference(row: Row, id: str) -> Preference:
    prompt = () if row.fields.get("prompt") is None else _messages(row, "prompt", "user")
    *opening, chosen = _messages(row, "chosen", "assistant")
    *other_opening, rejected = _messages(row, "rejected", "assistant")
    if opening != other_opening:
        raise row.error("fields 'chosen' and 'rejected' differ before their last messages")
    if not chosen.role == rejected.role == "assistant":
        raise row.error("fields 'chosen' and 'rejected' do not both end with what the assistant says")
    if opening and prompt and tuple(opening[-len(prompt) :]) != prompt:
        raise row.error("field 'prompt' is not what 'chosen' and 'rejected' answer")
    if not (opening or prompt):
        raise row.error("field 'prompt' is missing, and 'chosen' and 'rejected' hold no messages before their last")
    same = {"unusable": "chosen and rejected are the same"} if chosen == rejected else {}
    return Preference(
        id=id,
        prompt=tuple(opening) or prompt,
        chosen=chosen.content,
        rejected=rejected.content,
        meta=row.without("prompt", "chosen", "rejected") | same,
    )


def _messages(row: Row, name: str, role: str) -> tuple[Message, ...]:
    """A list of messages; or a string, which is what `role` says."""
    if isinstance(row.value(name), str):
        return (Message(role, row.text(name) if role == "user" else row.string(name)),)
    messages = tuple(map(_message, row.objects(name)))
    if not messages:
        raise row.error(f"field {name!r} is empty")
    return messages


def _message(row: Row) -> Message:
    role = row.text("role")
    if role not in ROLES:
        raise row.error(f"field 'role' is {role!r}, which is none of {', '.join(ROLES)}")
    return Message(role, row.string("content"))
