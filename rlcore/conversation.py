"""From a conversation to prompt tokens: what `rlcore.prompts` does with a problem, for data whose prompts are messages."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.data.preferences import Message
from rlcore.prompts import Prompter, without_trailing_eos
from rlcore.types import Problem


class ConversationPrompter(Prompter):
    """A single message of the user becomes the very tokens that a problem with this prompt does."""

    def conversation(self, messages: Sequence[Message]) -> str:
        """The prompt as the model reads it, special tokens spelt out. What the user says last stands in the recipe's template;
        a system message takes the place of the recipe's. Without a chat template every message is a paragraph."""
        *before, last = messages
        said = self.user(Problem("", last.content, "")) if last.role == "user" else last.content
        opening = [] if messages[0].role == "system" else self._opening()
        turns = [*opening, *({"role": m.role, "content": m.content} for m in before), {"role": last.role, "content": said}]
        if self.chat:
            return self._template(turns, add_generation_prompt=True)
        return "\n\n".join(turn["content"] for turn in turns) + "\n"

    def render_conversation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt token ids."""
        ids = self.tokenizer(self.conversation(messages), add_special_tokens=not self.chat).input_ids
        return tuple(without_trailing_eos(ids, self.tokenizer.eos_token_id))
