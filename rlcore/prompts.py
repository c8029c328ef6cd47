"""From a problem to prompt tokens, and the ids that end a completion. The only place where text is encoded for the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlcore.errors import UserError
from rlcore.length_budget import budget_of
from rlcore.models import ModelSpec, eos_ids
from rlcore.recipe.schema import Example, Prompt
from rlcore.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompter:
    """Renders problems with a recipe's prompt section: the model's own chat template, or plain text for base models."""

    def __init__(self, spec: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if spec.chat == "template" and not has_template:
            raise UserError("prompt.chat is `template`, and the model's tokenizer has no chat template: use `plain` or `auto`")
        self.chat = has_template and spec.chat != "plain"
        self._examples = [(self.user(self._as_problem(example)), example.answer) for example in spec.examples]

    def user(self, problem: Problem) -> str:
        """What the user says. Raises UserError where the template tells a budget and the problem has none."""
        template = self.spec.template
        if self.spec.tells_budget:
            template = template.replace("{budget}", str(budget_of(problem)))
        return template.replace("{problem}", problem.prompt)

    def text(self, problem: Problem) -> str:
        """The prompt as the model reads it, special tokens spelt out."""
        if not self.chat:
            shots = "".join(f"{asked}\n{answer}\n\n" for asked, answer in self._examples)
            system = f"{self.spec.system}\n\n" if self.spec.system else ""
            return f"{system}{shots}{self.user(problem)}\n"
        return self._template([*self._opening(), {"role": "user", "content": self.user(problem)}], add_generation_prompt=True)

    def render(self, problem: Problem) -> tuple[int, ...]:
        """Prompt token ids. A template that spells out BOS is not given a second one."""
        ids = self.tokenizer(self.text(problem), add_special_tokens=not self.chat).input_ids
        return tuple(without_trailing_eos(ids, self.tokenizer.eos_token_id))

    def complete(self, solution: str, ends: bool = True) -> tuple[int, ...]:
        """The token ids of a solution after its prompt, for supervised training; with the end of turn where it `ends`."""
        return (*self.tokenizer(solution, add_special_tokens=False).input_ids, *([self.end_of_turn()] if ends else []))

    def end_of_turn(self) -> int:
        """The token that ends an assistant's turn: the one the template writes after its text, else EOS."""
        eos = self.tokenizer.eos_token_id
        if self.chat:
            said = "what the assistant said"
            turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
            after = self._template(turn, add_generation_prompt=False).rpartition(said)[2]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            closing = [i for i in self.tokenizer(after, add_special_tokens=False).input_ids if i in special]
            eos = closing[0] if closing else eos
        if eos is None:
            raise UserError("the tokenizer knows no token that ends a completion: set its eos_token")
        return int(eos)

    def _opening(self) -> list[dict[str, str]]:
        opening = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
        for asked, answer in self._examples:
            opening += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return opening

    def _as_problem(self, example: Example) -> Problem:
        """Its budget, where one is told, is what its answer takes."""
        meta = {"budget": len(self.complete(example.answer))} if self.spec.tells_budget else {}
        return Problem("example", example.prompt, example.answer, meta=meta)

    def _template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        thinking = {} if self.spec.enable_thinking is None else {"enable_thinking": self.spec.enable_thinking}
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **thinking
        )
        return str(rendered)


def refuse_long(problem_id: str, prompt: int, max_new_tokens: int, context: int, key: str = "max_new_tokens") -> None:
    """Raise UserError where a prompt of so many tokens and its longest completion do not fit into the model's context. `key` is
    what the recipe calls the limit."""
    if prompt + max_new_tokens > context:
        raise UserError(
            f"the prompt of {problem_id} has {prompt} tokens; with {key} {max_new_tokens} that is more than the model's "
            f"context of {context}: shorten the prompt or lower {key}"
        )


def stop_ids(spec: ModelSpec, prompter: Prompter) -> list[int]:
    """Every id that ends a completion: the model's EOS ids, the tokenizer's, and the template's end of turn."""
    known = {prompter.tokenizer.eos_token_id, prompter.end_of_turn()} - {None}
    return sorted(known | eos_ids(spec.location, spec.trust_remote_code))


def without_trailing_eos(ids: list[int], eos: int | None) -> list[int]:
    """Some tokenizers close every text with EOS; a prompt must stay open."""
    return ids[:-1] if ids and ids[-1] == eos else ids
