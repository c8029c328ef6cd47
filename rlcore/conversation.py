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
        a system message at the beginning takes the place of the recipe's. Without a chat template what was said before is
        written as the recipe's examples are."""
        *before, last = messages
        if before and before[0].role == "system":
            spec = self.spec.model_copy(update={"system": before[0].content})
            return ConversationPrompter(spec, self.tokenizer).conversation(messages[1:])
        problem = Problem("", last.content, "")
        said = self.user(problem) if last.role == "user" else last.content
        if self.chat:
            turns = [{"role": m.role, "content": m.content} for m in before]
            return self._template([*self._opening(), *turns, {"role": last.role, "content": said}], add_generation_prompt=True)
        opening = self.text(problem).removesuffix(f"{self.user(problem)}\n")
        return opening + "".join(m.content + ("\n" if m.role == "user" else "\n\n") for m in before) + f"{said}\n"

    def render_conversation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt token ids."""
        ids = self.tokenizer(self.conversation(messages), add_special_tokens=not self.chat).input_ids
        return tuple(without_trailing_eos(ids, self.tokenizer.eos_token_id))
