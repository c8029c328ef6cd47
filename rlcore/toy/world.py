"""The toy world: chains of + and − modulo 10, whose every step has a known truth. Feeds `rlcore.data.sources.chain`.

A problem is a start digit and n operations, `3+5-9=?`. Its *difficulty* is n. Solving it means carrying a running value
through the chain: 3+5=8, 8-9=9 (all values are taken modulo 10), so the answer is 9.

A solution is a list of lines, the last one `#### ANSWER`. The *strategies* say how it is written (for `3+5-9=?`):

    direct      #### 9                                          the answer at once
    terse       8⏎9⏎#### 9                                      only the running values
    steps       3+5=8⏎8-9=9⏎#### 9                              each operation written out
    verbose     3+5=8⏎check 8-5=3⏎8-9=9⏎check 9+9=8⏎#### 9      … and checked by its inverse
    wrong       3+5=6⏎6-9=7⏎#### 7                              one step goes wrong and the rest follows it
    corrected   3+5=6⏎wait⏎3+5=8⏎8-9=9⏎#### 9                   … and is noticed and repaired
    misread     3-5=8⏎8-9=9⏎#### 9                              one operation is another than the problem's; the rest follows it
    reread      3-5=8⏎wait⏎3+5=8⏎8-9=9⏎#### 9                   … and is noticed and repaired

The *truth of a step* (`label_steps`) is whether its line is right about the chain: the value it states is the true running
value after the operation that it claims to do. A step that follows correctly from a wrong value is therefore false, and the
step that repairs it is true — the labels process reward models are trained on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MODULUS = 10
ANSWER_MARK = "#### "
_STEP = re.compile(r"(\d)([+-])(\d)=(\d)")
_CHECK = re.compile(r"check (\d)([+-])(\d)=(\d)")


@dataclass(frozen=True, slots=True)
class Chain:
    start: int
    operations: tuple[tuple[str, int], ...]  # ("+" or "-", digit)

    @property
    def text(self) -> str:
        return f"{self.start}" + "".join(f"{sign}{digit}" for sign, digit in self.operations) + "=?"

    @property
    def values(self) -> tuple[int, ...]:
        """The running value before the first operation and after each one; the last is the answer."""
        values = [self.start]
        for sign, digit in self.operations:
            values.append(apply(values[-1], sign, digit))
        return tuple(values)

    @property
    def answer(self) -> int:
        return self.values[-1]


@dataclass(frozen=True, slots=True)
class LabelledStep:
    text: str
    correct: bool


def apply(value: int, sign: str, digit: int) -> int:
    return (value + digit if sign == "+" else value - digit) % MODULUS


def sample_chain(rng: random.Random, difficulty: tuple[int, int]) -> Chain:
    """A chain with a number of operations drawn evenly from `difficulty` (low, high), both included."""
    operations = tuple((rng.choice("+-"), rng.randrange(MODULUS)) for _ in range(rng.randint(*difficulty)))
    return Chain(rng.randrange(MODULUS), operations)


def parse_chain(text: str) -> Chain:
    """The inverse of `Chain.text`."""
    return Chain(int(text[0]), tuple((sign, int(digit)) for sign, digit in re.findall(r"([+-])(\d)", text)))


def write(chain: Chain, strategy: str, rng: random.Random) -> str:
    """The solution of `chain` in one of STRATEGIES."""
    return "\n".join([*STRATEGIES[strategy](chain, rng)])


def label_steps(chain: Chain, solution: str) -> list[LabelledStep]:
    """Each line of any text, with its truth. The final answer line counts as a step; so do lines that are no step at all
    (false), except a bare `wait`, which claims nothing (true)."""
    position, labelled = 0, []
    for line in solution.split("\n"):
        correct, position = _judge(chain, line, position)
        labelled.append(LabelledStep(line, correct))
    return labelled


def _judge(chain: Chain, line: str, position: int) -> tuple[bool, int]:
    """Whether a line is true when `position` operations are done, and how many are done after it."""
    values, operations = chain.values, chain.operations
    if line == "wait":
        return True, max(position - 1, 0)  # the step before is taken back
    if line.startswith(ANSWER_MARK):
        return line == f"{ANSWER_MARK}{chain.answer}", position
    if match := _CHECK.fullmatch(line):
        value, sign, digit, result = int(match[1]), match[2], int(match[3]), int(match[4])
        inverse = {"+": "-", "-": "+"}
        right = 0 < position <= len(operations) and (inverse[sign], digit) == operations[position - 1]
        return right and value == values[position] and result == values[position - 1], position
    if position >= len(operations):
        return False, position
    if match := _STEP.fullmatch(line):
        claimed = (int(match[1]), match[2], int(match[3]), int(match[4]))
        return claimed == (values[position], *operations[position], values[position + 1]), position + 1
    return line == str(values[position + 1]), position + 1


def _answer(value: int) -> str:
    return f"{ANSWER_MARK}{value}"


def _steps(chain: Chain, values: Sequence[int]) -> list[str]:
    return [f"{values[i]}{sign}{digit}={values[i + 1]}" for i, (sign, digit) in enumerate(chain.operations)]


def _direct(chain: Chain, rng: random.Random) -> list[str]:
    return [_answer(chain.answer)]


def _terse(chain: Chain, rng: random.Random) -> list[str]:
    return [*(str(value) for value in chain.values[1:]), _answer(chain.answer)]


def _step_by_step(chain: Chain, rng: random.Random) -> list[str]:
    return [*_steps(chain, chain.values), _answer(chain.answer)]


def _verbose(chain: Chain, rng: random.Random) -> list[str]:
    lines = []
    for i, step in enumerate(_steps(chain, chain.values)):
        sign, digit = chain.operations[i]
        lines += [step, f"check {chain.values[i + 1]}{'-' if sign == '+' else '+'}{digit}={chain.values[i]}"]
    return [*lines, _answer(chain.answer)]


def _slip(chain: Chain, rng: random.Random) -> tuple[int, int]:
    """Where a solution goes wrong, and by how much."""
    return rng.randrange(len(chain.operations)), rng.randrange(1, MODULUS)


def _misreading(chain: Chain, rng: random.Random) -> tuple[int, tuple[str, int]]:
    """Which operation is misread, and as what that comes to something else: with the other sign, or with another digit."""
    where = rng.randrange(len(chain.operations))
    sign, digit = chain.operations[where]
    likely = [("-" if sign == "+" else "+", digit), (sign, (digit + rng.randrange(1, MODULUS)) % MODULUS)]
    return where, rng.choice([other for other in likely if apply(0, *other) != apply(0, sign, digit)])


def _wrong(chain: Chain, rng: random.Random) -> list[str]:
    where, error = _slip(chain, rng)
    values = [chain.start]
    for i, (sign, digit) in enumerate(chain.operations):
        values.append((apply(values[-1], sign, digit) + (error if i == where else 0)) % MODULUS)
    return [*_steps(chain, values), _answer(values[-1])]


def _corrected(chain: Chain, rng: random.Random) -> list[str]:
    where, error = _slip(chain, rng)
    lines = _steps(chain, chain.values)
    slipped = f"{lines[where][:-1]}{(chain.values[where + 1] + error) % MODULUS}"
    return [*lines[:where], slipped, "wait", *lines[where:], _answer(chain.answer)]


def _misread(chain: Chain, rng: random.Random) -> list[str]:
    where, operation = _misreading(chain, rng)
    return _step_by_step(Chain(chain.start, (*chain.operations[:where], operation, *chain.operations[where + 1 :])), rng)


def _reread(chain: Chain, rng: random.Random) -> list[str]:
    where, (sign, digit) = _misreading(chain, rng)
    before, lines = chain.values[where], _steps(chain, chain.values)
    misread = f"{before}{sign}{digit}={apply(before, sign, digit)}"
    return [*lines[:where], misread, "wait", *lines[where:], _answer(chain.answer)]


STRATEGIES: dict[str, Callable[[Chain, random.Random], list[str]]] = {
    "direct": _direct,
    "terse": _terse,
    "steps": _step_by_step,
    "verbose": _verbose,
    "wrong": _wrong,
    "corrected": _corrected,
    "misread": _misread,
    "reread": _reread,
}
