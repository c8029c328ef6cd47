"""What a policy might say to a problem: an honest reference, a wrong completion, and cheap hacks. `lint` shows them to rewards.

They are made of the problem's solution (`meta["solution"]`), or of its answer alone where the source has none, and are such as
an engine returns: tokens of the policy's tokenizer and the text that those say, cut at the token limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rlcore.prompts import Prompter
from rlcore.types import Completion, Group, Problem, Request, Sampling

REFERENCE, WRONG, TRUNCATED = "reference", "wrong", "truncated"
PROBES = (
    REFERENCE,
    WRONG,  # the reference of another problem
    "empty",
    TRUNCATED,  # the first half of the reference's tokens
    "steps repeated",  # all of them, three times, before the conclusion
    "one step repeated",  # and nothing else
    "no separators",  # the reference on one line
    "answer only",
    "prompt copied",
    "thank you",
)
ANSWERED = ("steps repeated", "no separators", "answer only")  # they end with the right answer, as the reference does
STEPS_TIMES, ONE_STEP_TIMES = 3, 20

AS_IT_IS = "{steps}{separator}{answer}"  # the source's solution unchanged: its last step is the conclusion
FORMS = (
    AS_IT_IS,
    "{steps}{separator}\\boxed{{answer}}",
    "{steps}{separator}#### {answer}",
    "{steps}{separator}The answer is {answer}.",
    "{steps}{separator}<answer>{answer}</answer>",
    "<think>{steps}</think>{separator}<answer>{answer}</answer>",
    "<think>{steps}</think>{separator}\\boxed{{answer}}",
    "<think>{steps}</think>{separator}<tool_call>{answer}</tool_call>",
)


def probes(problems: Sequence[Problem], form: str, prompter: Prompter, sampling: Sampling) -> list[Group]:
    """A group per problem, whose completion number i is `PROBES[i]`, written in one of FORMS."""

    def completion(problem: Problem, number: int, name: str) -> Completion:
        text = _texts(problem, _another(problem, problems), form, prompter)[name]
        ids = prompter.complete(text)
        return _sampled(problem, number, ids, len(ids) // 2 if name == TRUNCATED else len(ids), prompter, sampling)

    return [Group(problem, [completion(problem, k, name) for k, name in enumerate(PROBES)]) for problem in problems]


def references(problems: Sequence[Problem], prompter: Prompter, sampling: Sampling) -> list[Group]:
    """A group per problem: the reference in each of FORMS that the tokenizer can say, number i in `FORMS[i]`."""

    def completion(problem: Problem, number: int, text: str) -> Completion:
        ids = prompter.complete(text)
        return _sampled(problem, number, ids, len(ids), prompter, sampling)

    def group(problem: Problem) -> Group:
        texts = {number: _reference(problem, form) for number, form in enumerate(FORMS)}
        said = [number for number, text in texts.items() if number == 0 or _can_be_said(text, prompter)]
        return Group(problem, [completion(problem, number, texts[number]) for number in said])

    return [group(problem) for problem in problems]


def _texts(problem: Problem, another: Problem, form: str, prompter: Prompter) -> dict[str, str]:
    steps, answer, separator = _parts(problem, form)
    reference = _reference(problem, form)
    return {
        REFERENCE: reference,
        WRONG: _reference(another, form),
        "empty": "",
        TRUNCATED: reference,
        "steps repeated": _write(form, steps * STEPS_TIMES, answer, separator),
        "one step repeated": separator.join([*steps, answer][:1] * ONE_STEP_TIMES),
        "no separators": re.sub(r"\s*\n\s*", " ", reference),
        "answer only": _write(form, [], answer, separator),
        "prompt copied": prompter.user(problem),
        "thank you": "Thank you.",
    }


def _reference(problem: Problem, form: str) -> str:
    return _write(form, *_parts(problem, form))


def _parts(problem: Problem, form: str) -> tuple[list[str], str, str]:
    """The steps of its solution, the answer that it ends with, and what stands between them."""
    solution = str(problem.meta.get("solution") or "")
    separator = "\n\n" if "\n\n" in solution else "\n"
    steps = [step for step in solution.split(separator) if step.strip()]
    if steps and form == AS_IT_IS:
        return steps[:-1], steps[-1], separator
    stated = steps[-1:] == [_write(form, [], problem.answer, separator)]  # the solution says it in this form already
    return steps[:-1] if stated else steps, problem.answer, separator


def _write(form: str, steps: Sequence[str], answer: str, separator: str) -> str:
    parts = {"{separator}": separator, "{answer}": answer, "{steps}": separator.join(steps)}
    for place, text in parts.items():
        form = form.replace(place, text)
    return form.strip()


def _another(problem: Problem, problems: Sequence[Problem]) -> Problem:
    """A problem with another answer: the next one, or, where all have the same, one that is made up."""
    after = problems.index(problem) + 1
    others = [other for other in [*problems[after:], *problems[:after]] if other.answer != problem.answer]
    return others[0] if others else replace(problem, answer=f"{problem.answer}1", meta={})


def _can_be_said(text: str, prompter: Prompter) -> bool:
    """Whether the tokenizer has it all; whitespace may come back otherwise. A toy knows a few characters."""
    ids = prompter.tokenizer(text, add_special_tokens=False).input_ids
    return str(prompter.tokenizer.decode(ids, skip_special_tokens=True)).split() == text.split()


def _sampled(
    problem: Problem, number: int, ids: Sequence[int], limit: int, prompter: Prompter, sampling: Sampling
) -> Completion:
    """What an engine returns where the policy says these tokens and is cut at the limit, or at that of the sampling."""
    kept = ids[: min(limit, sampling.max_new_tokens)]
    return Request(problem.id, number, number, prompter.render(problem), sampling).completed(
        token_ids=kept,
        logprobs=(0.0,) * len(kept),
        version=0,
        finish_reason="stop" if len(kept) == len(ids) else "length",
        text=str(prompter.tokenizer.decode(kept, skip_special_tokens=True)),
    )
