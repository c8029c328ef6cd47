r"""How our verdicts agree with plain math-verify's and with PRM800K's rules, on rewritten answers of MATH500.

    python -m tests.grading.agreement [--data-dir DIR]      writes docs/grading.md

A pair is a reference answer and a rewriting of it, of which it is known by construction whether it is still the same answer.
Every pair on which the graders disagree is on the page, with an explanation from `EXPLANATIONS`; a new kind of disagreement
fails the test until somebody has looked at it and written one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from pebble import ProcessPool

from rlcore.grading.pool import GRADER_VERSION, Grader
from rlcore.types import Problem
from tests.grading.prm800k_rules import grade_answer

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "grading.md"
PAIRS = 300
LIMIT_S = 20.0  # for the two others, which have no limit, or one that depends on the machine

INTEGER = re.compile(r"-?[0-9]+")
FRACTION = re.compile(r"(-?)\\d?frac\{([0-9]+)\}\{([0-9]+)\}")
PAIR = re.compile(r"(?:\\left)?([(\[]) ?([^()\[\]]*), ?([^,()\[\]]*?)(?: ?\\right)?([)\]])")
SUM = re.compile(r"(-?(?:[0-9a-z^]|\\sqrt\{?[0-9]+\}?|\\pi| )+) ([+-]) ((?:[0-9a-z^]|\\sqrt\{?[0-9]+\}?|\\pi)+)")
PRODUCT = re.compile(r"([0-9]+) ?(\\sqrt\{?[0-9]+\}?|\\pi)")


@dataclass(frozen=True)
class Rewriting:
    """`rewrite` gives None where it does not apply. `same`: whether what it gives is still the right answer."""

    same: bool
    rewrite: Callable[[str], str | None]


@dataclass(frozen=True)
class Judged:
    kind: str
    gold: str
    answer: str
    same: bool
    verdicts: dict[str, bool]  # by grader

    def disagreements(self) -> list[str]:
        """The graders that do not say what we say."""
        return [grader for grader, verdict in self.verdicts.items() if verdict != self.verdicts["ours"]]


def _match(pattern: re.Pattern[str], rewrite: Callable[..., str | None]) -> Callable[[str], str | None]:
    def apply(gold: str) -> str | None:
        found = pattern.fullmatch(gold)
        return rewrite(*found.groups()) if found else None

    return apply


def _replace(old: str, new: str | Callable[[re.Match[str]], str]) -> Callable[[str], str | None]:
    return lambda gold: rewritten if (rewritten := re.sub(old, new, gold)) != gold else None


def _integer(rewrite: Callable[[int], str | None]) -> Callable[[str], str | None]:
    return lambda gold: rewrite(int(gold)) if INTEGER.fullmatch(gold) else None


def _fraction(rewrite: Callable[[str, int, int], str | None]) -> Callable[[str], str | None]:
    return _match(FRACTION, lambda sign, above, below: rewrite(sign, int(above), int(below)))


def _decimal(sign: str, above: int, below: int) -> str | None:
    value = Fraction(above, below)
    return f"{sign}{above / below}" if 10**6 % value.denominator == 0 else None


def _rounded(sign: str, above: int, below: int) -> str | None:
    return None if _decimal(sign, above, below) else f"{sign}{above / below:.4f}"


def _mixed(sign: str, above: int, below: int) -> str | None:
    return rf"{sign}{above // below}\frac{{{above % below}}}{{{below}}}" if above > below and above % below else None


def _swapped(first: str, operator: str, last: str) -> str:
    sign = "-" if operator == "-" else ""
    return f"{sign}{last} - {first[1:]}" if first.startswith("-") else f"{sign}{last} + {first}"


def _next_number(gold: str) -> str | None:
    """The last number, plus one; not the digits of an exponent or a base, which other rewritings change."""
    found = list(re.finditer(r"(?<![_^{0-9.])[0-9]+(?![0-9.}])", gold)) or list(re.finditer(r"(?<=\{)[0-9]+(?=\})", gold))
    return gold[: found[-1].start()] + str(int(found[-1][0]) + 1) + gold[found[-1].end() :] if found else None


def _negated(gold: str) -> str | None:
    if re.search(r"[=,;]|\\text|\\circ|\\begin|_|\\pm|\\in|\\mbox|\$| [+-] |[0-9a-z][+-]", gold) or gold == "0":
        return None
    return gold[1:] if gold.startswith("-") else "-" + gold


REWRITINGS = {
    "as it is": Rewriting(True, lambda gold: gold),
    r"\dfrac for \frac": Rewriting(True, _replace(r"\\frac", r"\\dfrac")),
    "more spaces": Rewriting(True, _replace(r"(?<=[0-9a-z}]) ?([+=]|,(?!\\|[0-9]{3})) ?", r" \1 ")),
    "fewer spaces": Rewriting(True, _replace(r"(?<![a-z\\]) +| +(?![a-z])", "")),
    r"\left and \right": Rewriting(True, _match(PAIR, lambda a, x, y, b: rf"\left{a} {x}, {y} \right{b}")),
    "pmatrix as bmatrix": Rewriting(True, _replace("pmatrix", "bmatrix")),
    "dollar signs": Rewriting(True, lambda gold: f"${gold}$" if "$" not in gold else None),
    "fraction as a decimal": Rewriting(True, _fraction(_decimal)),
    "fraction with a slash": Rewriting(True, _fraction(lambda sign, above, below: f"{sign}{above}/{below}")),
    "unreduced fraction": Rewriting(True, _fraction(lambda sign, above, below: rf"{sign}\frac{{{2 * above}}}{{{2 * below}}}")),
    "mixed number": Rewriting(True, _fraction(_mixed)),
    "integer with .0": Rewriting(True, _integer(lambda n: f"{n}.0")),
    "thousands comma": Rewriting(True, _integer(lambda n: f"{n:,}" if abs(n) > 999 else None)),
    "a unit added": Rewriting(True, _integer(lambda n: rf"{n}\text{{ cm}}")),
    "an unknown unit added": Rewriting(True, _integer(lambda n: f"{n} apples")),
    "x = added": Rewriting(True, _integer(lambda n: f"x = {n}")),
    "terms swapped": Rewriting(True, _match(SUM, _swapped)),
    "factors swapped": Rewriting(True, _match(PRODUCT, lambda number, factor: rf"{factor} \cdot {number}")),
    "integer as a product": Rewriting(True, _integer(lambda n: rf"2 \cdot {n // 2}" if n % 2 == 0 and n > 2 else None)),
    "the exercise itself": Rewriting(False, _integer(lambda n: rf"\sum_{{k=1}}^{{{n}}} 1" if 1 < n < 100 else None)),
    "sign changed": Rewriting(False, _negated),
    "a number one higher": Rewriting(False, _next_number),
    "brackets changed": Rewriting(
        False, _match(PAIR, lambda a, x, y, b: f"{'[' if a == '(' else '('}{x}, {y}{']' if b == ')' else ')'}")
    ),
    "braces for brackets": Rewriting(False, _match(PAIR, lambda a, x, y, b: rf"\{{{x}, {y}\}}")),
    "coordinates swapped": Rewriting(False, _match(PAIR, lambda a, x, y, b: f"{a}{y}, {x}{b}")),
    "percent added": Rewriting(False, _integer(lambda n: rf"{n}\%")),
    "fraction rounded": Rewriting(False, _fraction(_rounded)),
    "an element dropped": Rewriting(
        False, _match(re.compile(r"(-?[0-9]+), ?(-?[0-9]{1,2}(?:, .*)?)"), lambda first, rest: rest)
    ),
    "an element added": Rewriting(False, _integer(lambda n: f"{n}, {n + 1}")),
    "variable in the other case": Rewriting(
        False, _replace(r"(?<![A-Za-z\\{])([a-hj-z])(?![A-Za-z])", lambda found: found[1].upper())
    ),
    "exponent changed": Rewriting(False, _replace(r"(?<!\})\^([2-9])", r"^{1\1}")),
    "base changed": Rewriting(False, _replace(r"_\{?([0-9])\}?$", "_9")),
}

EXPLANATIONS = {  # why a grader does not say of a kind of rewriting what ours says
    "math-verify": {
        "the exercise itself": r"""It works out what it is given, and so accepts the problem's own `\sum`, `\int` or
`\lim` as its answer: a reward for copying. Ours refuses them as `not worked out`, unless the reference answer has them
too.""",
        "brackets changed": """More than two coordinates, or two that fall, cannot be an interval, and math-verify takes
any brackets around them for a tuple's. Ours compares brackets wherever both answers have them.""",
        "braces for brackets": """It takes an open interval for a pair, and a pair for a set of two. Ours compares
brackets wherever both answers have them.""",
        "percent added": """It takes n% for n, to forgive a sign that the reference answer lacks. Ours forgives one only
where the reference answer has it: 5% is 0.05.""",
        "variable in the other case": """It makes all letters lower-case. Ours keeps their case: r and R may be the two
radii of one problem.""",
        "base changed": "It ignores what stands below a number. Ours asks for the reference answer's base, or for none.",
    },
    "PRM800K": {
        "fraction with a slash": r"""Two plain fractions must be the same string there, and `-35/9` cleaned up is
`\frac{-35}{9}`, with the sign inside. Ours compares values.""",
        "unreduced fraction": """Two plain fractions must be the same string there. Ours compares values: whether a
problem asks for lowest terms does not show in its reference answer.""",
        "mixed number": "It reads a mixed number as a sum, and so a negative one as the wrong number: -3 8/9 as -3 + 8/9.",
        "an unknown unit added": """Its list of units has no apples. Ours takes any words behind a number for its unit,
except those that change its value (`million`, `squared`, …).""",
        "integer as a product": """Where exactly one of the two is an integer it asks sympy nothing, so that nobody is
paid for work left undone. Ours accepts plain arithmetic, whose value is right, and refuses operations that may be the
exercise itself, such as sums.""",
        "percent added": """It removes all percent signs. Ours forgives one only where the reference answer has it: 5%
is 0.05.""",
        "variable in the other case": """It makes all letters lower-case. Ours keeps their case: r and R may be the two
radii of one problem.""",
    },
}


def pairs(data_dir: Path) -> list[tuple[str, str, str]]:
    """`PAIRS` triples (kind, reference answer, rewriting), of each kind as many as there are, up to about the same number."""
    rows = [json.loads(line) for line in (data_dir / "math500_test.jsonl").read_text().splitlines()]
    golds = list(dict.fromkeys(row["answer"] for row in rows))
    waiting = {}
    for kind, rewriting in REWRITINGS.items():
        found = [(kind, gold, answer) for gold in golds if (answer := rewriting.rewrite(gold)) is not None]
        waiting[kind] = random.Random(kind).sample(found, len(found))
    drawn: list[tuple[str, str, str]] = []
    while len(drawn) < PAIRS:
        drawn += [candidates.pop() for candidates in waiting.values() if candidates]
    order = list(REWRITINGS)
    return sorted(drawn[:PAIRS], key=lambda pair: order.index(pair[0]))


def judge(triples: Sequence[tuple[str, str, str]]) -> list[Judged]:
    with Grader(deadline_s=LIMIT_S) as grader:
        ours = grader.grade([(Problem("p", "", gold), rf"\boxed{{{answer}}}", False) for _, gold, answer in triples])
    assert all(verdict.kind != "invalid" for verdict in ours)
    others = _others([(answer, gold) for _, gold, answer in triples])
    return [
        Judged(kind, gold, answer, REWRITINGS[kind].same, {"ours": verdict.kind == "correct", **other})
        for (kind, gold, answer), verdict, other in zip(triples, ours, others, strict=True)
    ]


def _others(asked: Sequence[tuple[str, str]]) -> list[dict[str, bool]]:
    """For each (answer, reference answer); an answer on which a grader hangs is one that it does not accept."""
    with ProcessPool(1, context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            {name: pool.schedule(grader, args=[answer, gold], timeout=LIMIT_S) for name, grader in OTHERS.items()}
            for answer, gold in asked
        ]
        return [{name: _accepted(future) for name, future in row.items()} for row in futures]


def _accepted(future: Future[bool]) -> bool:
    try:
        return future.result()
    except TimeoutError:
        return False


def math_verify(answer: str, gold: str) -> bool:
    """As its manual has it: everything at its default, the reference answer first."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


OTHERS: dict[str, Callable[[str, str], bool]] = {"math-verify": math_verify, "PRM800K": grade_answer}


def render(judged: Sequence[Judged]) -> str:
    differing = [pair for pair in judged if pair.disagreements()]
    agree = {name: sum(name not in pair.disagreements() for pair in judged) for name in OTHERS}
    right = sum(pair.verdicts["ours"] == pair.same for pair in judged)
    return "\n".join(
        [
            "# Grading: where we agree with others, and where not",
            "",
            f"Written by `python -m tests.grading.agreement` (grader {GRADER_VERSION}). It takes {len(judged)} rewritings",
            "of reference answers of MATH500, each of a kind that is known to keep the answer or to change it, and asks three",
            f"graders: ours (`rlcore.grading`), plain math-verify {version('math-verify')} (its defaults), and PRM800K's rules",
            "(`grade_answer`, written anew from their description in `tests/grading/prm800k_rules.py`).",
            "How answers are graded that are no mathematics: [graders.md](graders.md).",
            "",
            f"Ours is right on {right} of {len(judged)}. math-verify says the same on {agree['math-verify']}, PRM800K's rules",
            f"on {agree['PRM800K']}; each of the {len(differing)} pairs on which one of them does not is listed and explained.",
            "",
            "## Agreement by kind of rewriting",
            "",
            "| rewriting | same answer? | pairs | ours right | math-verify = ours | PRM800K = ours |",
            "|---|---|--:|--:|--:|--:|",
            *(_row(kind, [pair for pair in judged if pair.kind == kind]) for kind in REWRITINGS),
            "",
            "## Every disagreement, explained",
            "",
            *_explained(differing),
        ]
    )


def _row(kind: str, judged: Sequence[Judged]) -> str:
    right = sum(pair.verdicts["ours"] == pair.same for pair in judged)
    agree = [sum(name not in pair.disagreements() for pair in judged) for name in OTHERS]
    return f"| {kind} | {'yes' if REWRITINGS[kind].same else 'no'} | {len(judged)} | {right} | {agree[0]} | {agree[1]} |"


def _explained(differing: Sequence[Judged]) -> list[str]:
    lines = []
    groups: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for pair in differing:
        for name in pair.disagreements():
            groups[pair.kind, name].append(pair)
    for (kind, name), group in sorted(groups.items(), key=lambda item: (list(REWRITINGS).index(item[0][0]), item[0][1])):
        said = " and ".join(sorted({"correct" if pair.verdicts[name] else "wrong" for pair in group}))
        lines += [f"**{kind}: {name} says {said}.** {EXPLANATIONS[name][kind]}", ""]
        lines += [f"- `{pair.gold}` — `{pair.answer}`" for pair in group]
        lines += [""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/grading.md.")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("RLCORE_DATA_DIR"), help="the folder of math500_test.jsonl"
    )
    folder = parser.parse_args().data_dir
    if not folder or not (folder / "math500_test.jsonl").exists():
        parser.error(f"no math500_test.jsonl in {folder}; give its folder with --data-dir or RLCORE_DATA_DIR")
    PAGE.write_text(render(judge(pairs(folder))))


if __name__ == "__main__":
    main()
