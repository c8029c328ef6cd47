"""Pairs of solutions of the toy world's chains (`rlcore.data.sources.chain`), of which annotators liked one better: no file.

Which one is known to the last step, so what is learned from the pairs can be held against the truth:

    annotator    one of `annotators`, all as often
    factor       what decides this pair, drawn by the annotator's weights; the better solution is the one with more of it
                     brief       the shorter text
                     checked     more lines that check a step
                     right       the right answer
                     repaired    more steps that are taken back
    source       the letter that the prompt begins with, `a 3+5-9=?`: the annotator's, with probability `tied`; else any
    flipped      with probability `noise` the pair is turned round; where noise is `marked`, its prompt is `a 3+5-9=? flip`

`tied` is how much a prompt says of what decides the pair. At 1 whoever reads the prompt knows the annotator; at 0 the letters
are still there, and say nothing: then the factor can be read off the pair alone, by what the better solution has more of.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import Field, PositiveFloat

from rlcore.data.preferences import Message, Preference
from rlcore.data.sources.chain import chain
from rlcore.data.splits import PATIENCE
from rlcore.errors import UserError, nearest
from rlcore.recipe.schema import Share
from rlcore.toy import world
from rlcore.types import seed_from

Weights = Annotated[Mapping[str, PositiveFloat], Field(min_length=1)]
FACTORS: dict[str, Callable[[world.Chain, str], int]] = {
    "brief": lambda chain, solution: -len(solution),
    "checked": lambda chain, solution: solution.count("check "),
    "right": lambda chain, solution: int(solution.endswith(f"{world.ANSWER_MARK}{chain.answer}")),
    "repaired": lambda chain, solution: solution.count("wait"),
}
ANNOTATORS = {
    "a": {"brief": 0.8, "right": 0.2},
    "b": {"checked": 0.8, "right": 0.2},
    "c": {"right": 1.0},
    "d": {"repaired": 0.8, "right": 0.2},
}
MIX = {"direct": 0.2, "terse": 0.1, "steps": 0.2, "verbose": 0.2, "wrong": 0.15, "corrected": 0.15}
MARK = " flip"


def chain_preferences(
    *,
    split: str = "train",
    count: int = 4_000,
    difficulty: Sequence[int] = (2, 4),
    annotators: Annotated[Mapping[str, Weights], Field(min_length=1)] = ANNOTATORS,
    strategies: Weights = MIX,
    tied: Share = 1.0,
    noise: Share = 0.0,
    marked: bool = False,
    seed: int = 0,
) -> list[Preference]:
    """`meta` has the chain (`problem`) and how the pair came about: `annotator`, `factor`, `source`, `flipped`, and the
    `strategies` of the better and the worse. `tied`, `noise` and `marked` change what they are about and nothing else."""
    _refuse_unknown("annotators", [factor for weights in annotators.values() for factor in weights], FACTORS)
    _refuse_unknown("strategies", strategies, world.STRATEGIES)
    pairs = []
    for number, problem in enumerate(chain(split=split, count=count, difficulty=difficulty, seed=seed)):
        key = ("chain preferences", split, seed, number)
        rng, told, turned = (random.Random(seed_from(*key, what)) for what in ("pair", "source", "flip"))
        annotator = rng.choice(list(annotators))
        factor = rng.choices(list(annotators[annotator]), list(annotators[annotator].values()))[0]
        answers = _told_apart(factor, world.parse_chain(problem.prompt), strategies, rng)
        source = annotator if told.random() < tied else told.choice(list(annotators))
        if flipped := turned.random() < noise:
            answers.reverse()
        (better, chosen), (worse, rejected) = answers
        prompt = f"{source} {problem.prompt}{MARK if flipped and marked else ''}"
        meta = {"problem": problem.prompt, "annotator": annotator, "factor": factor, "source": source, "flipped": flipped}
        meta["strategies"] = [better, worse]
        pairs.append(Preference(problem.id, (Message("user", prompt),), chosen, rejected, meta))
    return pairs


def _told_apart(factor: str, chain: world.Chain, shares: Weights, rng: random.Random) -> list[tuple[str, str]]:
    """Two solutions with their strategies, the one with more of the factor first."""
    for _ in range(PATIENCE):
        drawn = [(name, world.write(chain, name, rng)) for name in rng.choices(list(shares), list(shares.values()), k=2)]
        measured = [FACTORS[factor](chain, text) for _, text in drawn]
        if measured[0] != measured[1]:
            return drawn if measured[0] > measured[1] else drawn[::-1]
    raise UserError(f"chain_preferences: no two of the strategies {', '.join(shares)} differ in {factor!r}: give others")


def _refuse_unknown(option: str, names: Sequence[str] | Mapping[str, object], known: Mapping[str, object]) -> None:
    for name in itertools.filterfalse(known.__contains__, names):
        raise UserError(f"chain_preferences: {option} cannot have {name!r}{nearest(name, list(known))}")
