"""`job: decode_bench`: what drafters save, against decoding without drafts, on the same prompts.

For every batch size the methods take turns in this process: once to warm up, then `repeats` times, which are measured. Rows
that are done make room for prompts that wait, as in rollouts. A method keeps its drafter from turn to turn: `history` has heard
every prompt when it is measured, as from the second epoch of RL on. Another batch size begins with new drafters. Each repeat
draws with random numbers of its own, the same for all methods.

Beside the drafters two methods always take part: `plain` is the same decoder with a drafter that drafts nothing, one token a
pass, and what all else is a ratio to; `engine` is the transformers engine as it decodes without a drafter, which has nothing to
verify. With S the seconds of a turn, prefills included, T its tokens and F its forward passes of the target, prefills excluded:

    speedup     = median over repeats of (T / S) / (T_plain / S_plain)
    over_engine = median over repeats of (T / S) / (T_engine / S_engine)
    reduction   = (ΣF_plain / ΣT_plain) / (ΣF / ΣT)
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import median
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from rlcore.data.mixture import load as load_problems
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Progress
from rlcore.recipe.schema import UNDRAFTED, DecodeBench, Plugin
from rlcore.run.console import warn, watched
from rlcore.run.folder import Run
from rlcore.types import Problem, Request, Sampling, seed_from
from rollout.admission import refuse_unfit
from rollout.decoding.decode import Counts, Decoder
from rollout.decoding.drafter import Drafter, Row, undrafted
from rollout.decoding.tree import Tree
from rollout.drafting import make_drafter
from rollout.engines.transformers import Transformers
from rollout.sampling import SamplingRows, processed, uniforms

PLAIN, ENGINE = UNDRAFTED


@dataclass(frozen=True)
class Plan:
    """A recipe's problems, as prompts; and its drafters by label, to be made. Nothing is loaded."""

    problems: Sequence[Problem]
    prompts: Sequence[tuple[int, ...]]
    drafters: Mapping[str, Callable[[], Drafter]]
    sampling: Sampling
    seed: int

    def requests(self, repeat: int) -> list[Request]:
        return [
            Request(problem.id, repeat, seed_from(self.seed, problem.id, repeat), prompt, self.sampling)
            for problem, prompt in zip(self.problems, self.prompts, strict=True)
        ]


@dataclass(frozen=True)
class Difference:
    """Where a completion first leaves that of plain decoding. `margin` is how near plain decoding was to another token: the
    difference of the two highest log-probs where greedy, else that of the random number to the nearest end of its token's share
    of the distribution. Rounding explains a difference where it is some 1e-5 or less."""

    problem_id: str
    repeat: int
    position: int  # in the completion
    plain: int | None  # token; None: it had ended
    drafted: int | None
    margin: float


@dataclass(frozen=True)
class Measurement:
    """Of a method at a batch size, over all repeats. None: there is nothing of the kind to measure."""

    batch_size: int
    method: str
    seconds: Sequence[float]  # of each repeat
    tokens: int
    tokens_per_second: float  # median over repeats
    speedup: float
    over_engine: float
    tokens_per_pass: float | None  # of one row
    reduction: float | None
    accepted: float | None  # share of the tokens drafted
    draft_forwards: float | None  # of the drafter's own model, for each of the target
    draft_tokens: float | None  # that its passes read, prefills excluded, for each token sampled
    draft_share: float | None  # of the time of rounds that went by until drafts were proposed
    cache_bytes: int | None  # of keys and values that there was room for in the end, those of a draft model included
    exact: float | None  # share of the completions that are plain decoding's, token for token; None: drafts are drawn at random
    difference: Difference | None  # the first
    logprob_difference: float | None  # the largest, over tokens up to the first that differs; None where greedy


@dataclass(frozen=True)
class Turn:
    """What a method made of the prompts, once: each completion's tokens and log-probs."""

    said: Sequence[tuple[Sequence[int], Sequence[float]]]
    seconds: float
    counts: Counts | None

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for tokens, _ in self.said)

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


class Plain(Drafter):
    """Drafts nothing."""

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return undrafted(rows)


class Method(Protocol):
    """What takes turns."""

    @property
    def draws(self) -> bool: ...

    @property
    def cache_bytes(self) -> int | None: ...

    def turn(self, requests: Sequence[Request]) -> Turn: ...


class Drafted:
    """A drafter and the decoder that verifies it, so many rows at once."""

    def __init__(self, decoder: Decoder, batch_size: int) -> None:
        self.decoder, self.batch_size, self.draws = decoder, batch_size, decoder.drafter.draws

    @property
    def cache_bytes(self) -> int:
        return self.decoder.target.cache_bytes + self.decoder.drafter.cache_bytes

    def turn(self, requests: Sequence[Request]) -> Turn:
        decoder, waiting, rows = self.decoder, deque(requests), list[Row]()
        decoder.counts = Counts()
        began = time.perf_counter()
        while waiting or decoder.rows:
            free = self.batch_size - len(decoder.rows)
            if entering := [waiting.popleft() for _ in range(min(free, len(waiting)))]:
                decoder.enter(entering)
                rows += decoder.rows[-len(entering) :]
            decoder.round()
        return Turn([(row.sampled, row.logprobs) for row in rows], time.perf_counter() - began, decoder.counts)


class Undrafted:
    """The engine as it decodes without a drafter. It counts no passes."""

    draws, cache_bytes = False, None

    def __init__(self, engine: Transformers) -> None:
        self.engine = engine

    def turn(self, requests: Sequence[Request]) -> Turn:
        began = time.perf_counter()
        done = self.engine.generate(requests)
        return Turn([(each.token_ids, each.logprobs) for each in done], time.perf_counter() - began, None)


def plan(recipe: DecodeBench, prompter: Prompter, context: int, resolve: Callable[[str], str]) -> Plan:
    """`resolve`: where a model is, by its name. Raises UserError for a drafter that there is not, or that the transformers
    engine does not verify, and for a prompt that does not fit into `context` with its longest completion."""
    problems = load_problems(recipe.data)
    if recipe.limit is not None and recipe.limit < len(problems):
        problems = random.Random(seed_from(recipe.seed, "prompts")).sample(problems, recipe.limit)
    drafters = {label: _maker(label, asked, resolve) for label, asked in recipe.methods.items()}
    prompts = [prompter.render(problem) for problem in problems]
    asked = Plan(problems, prompts, drafters, recipe.sampling, recipe.seed)
    refuse_unfit(asked.requests(0), context)
    return asked


def _maker(label: str, asked: Plugin, resolve: Callable[[str], str]) -> Callable[[], Drafter]:
    located = {"model": resolve(asked.options["model"])} if "model" in asked.options else {}

    def make() -> Drafter:
        drafter = make_drafter(asked.model_copy(update=located), "transformers", f"methods.{label}")
        assert isinstance(drafter, Drafter)
        return drafter

    make()  # what is refused is refused before anything is loaded
    return make


def describe(recipe: DecodeBench, asked: Plan) -> Iterator[str]:
    yield f"{len(asked.prompts)} prompts, {sum(map(len, asked.prompts)):,} tokens, longest {max(map(len, asked.prompts))}"
    sizes = ", ".join(map(str, recipe.batch_sizes))
    yield f"{PLAIN}, {ENGINE}, {', '.join(recipe.methods)}, in turns; batch sizes {sizes}"
    yield f"turns: {(2 + len(recipe.methods)) * len(recipe.batch_sizes) * (1 + recipe.repeats)}, warm-ups included"


def bench(recipe: DecodeBench, asked: Plan, run: Run, spec: ModelSpec, prompter: Prompter) -> list[Measurement]:
    """Every method at every batch size. Raises UserError as drafters and decoder do."""
    found: list[Measurement] = []
    turns = (2 + len(recipe.methods)) * len(recipe.batch_sizes) * (1 + recipe.repeats)
    with watched("decoding", turns) as progress:
        for step, size in enumerate(recipe.batch_sizes, 1):
            at = _at(size, recipe, asked, spec, prompter, progress)
            run.log(step, {"batch_size": size, **_metrics(at)})
            for each in at:
                _tell_difference(each)
            found += at
    return found


def _at(
    size: int, recipe: DecodeBench, asked: Plan, spec: ModelSpec, prompter: Prompter, progress: Progress
) -> list[Measurement]:
    stops = stop_ids(spec, prompter)
    engine = Transformers(spec, prompter.tokenizer, stops, batch_size=size)
    methods: dict[str, Method] = {PLAIN: Drafted(Decoder(engine.model, Plain(), stops, prompter.tokenizer), size)}
    methods[ENGINE] = Undrafted(engine)
    for label, make in asked.drafters.items():
        drafter = make()
        drafter.load(spec)
        methods[label] = Drafted(Decoder(engine.model, drafter, stops, prompter.tokenizer), size)
    turns = in_turns(methods, asked, recipe.repeats, progress)
    return [_measured(size, label, method, turns, asked, engine.model) for label, method in methods.items()]


def in_turns(methods: Mapping[str, Method], asked: Plan, repeats: int, progress: Progress) -> dict[str, list[Turn]]:
    """Of each method so many turns, after one to warm up that is left out."""
    turns: dict[str, list[Turn]] = {label: [] for label in methods}
    for repeat in range(1 + repeats):
        for label, method in methods.items():
            turns[label].append(method.turn(asked.requests(repeat)))
            progress(1)
    return {label: taken[1:] for label, taken in turns.items()}


def _measured(
    size: int, label: str, method: Method, every: Mapping[str, Sequence[Turn]], asked: Plan, model: PreTrainedModel
) -> Measurement:
    """`every`: the turns of all methods."""
    turns, plain = every[label], every[PLAIN]
    compared = not method.draws or asked.sampling.temperature == 0
    return Measurement(
        batch_size=size,
        method=label,
        seconds=[turn.seconds for turn in turns],
        tokens=sum(turn.tokens for turn in turns),
        tokens_per_second=median(turn.speed for turn in turns),
        speedup=_faster(turns, plain),
        over_engine=_faster(turns, every[ENGINE]),
        **_passes(turns, plain),
        cache_bytes=method.cache_bytes,
        **(_compared(turns, plain, asked, model) if compared else dict.fromkeys(COMPARED)),
    )


def _faster(turns: Sequence[Turn], others: Sequence[Turn]) -> float:
    return median(turn.speed / other.speed for turn, other in zip(turns, others, strict=True))


def _passes(turns: Sequence[Turn], plain: Sequence[Turn]) -> dict[str, Any]:
    """What the counts of all repeats come to."""
    counts, beside = (_sum([turn.counts for turn in each if turn.counts]) for each in (turns, plain))
    return {
        "tokens_per_pass": _ratio(counts.tokens, counts.trees),
        "reduction": _ratio(counts.tokens * beside.target_forwards, beside.tokens * counts.target_forwards),
        "accepted": _ratio(counts.accepted, counts.drafted),
        "draft_forwards": _ratio(counts.draft_forwards, counts.target_forwards),
        "draft_tokens": _ratio(counts.draft_read, counts.tokens),
        "draft_share": _ratio(counts.draft_seconds, counts.seconds),
    }


def _sum(counts: Sequence[Counts]) -> Counts:
    return Counts(**{name: sum(vars(each)[name] for each in counts) for name in vars(Counts())})


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


# -- exactness -------------------------------------------------------------------------------------------------------------

COMPARED = ("exact", "difference", "logprob_difference")


def _compared(turns: Sequence[Turn], plain: Sequence[Turn], asked: Plan, model: PreTrainedModel) -> dict[str, Any]:
    """The fields of COMPARED."""
    equal, first, largest = 0, None, 0.0
    for repeat, (turn, beside) in enumerate(zip(turns, plain, strict=True), 1):
        for request, (mine, mine_p), (theirs, theirs_p) in zip(asked.requests(repeat), turn.said, beside.said, strict=True):
            place = next((i for i, (a, b) in enumerate(zip_longest(mine, theirs)) if a != b), None)
            largest = max([largest, *(abs(a - b) for a, b in zip(mine_p[:place], theirs_p[:place], strict=True))])
            if place is None:
                equal += 1
            elif first is None:
                said = [each[place] if place < len(each) else None for each in (theirs, mine)]
                close = margin(model, request, theirs[:place])
                first = Difference(request.problem_id, repeat, place, said[0], said[1], close)
    greedy = asked.sampling.temperature == 0
    share = equal / (len(asked.prompts) * len(turns))
    return {"exact": share, "difference": first, "logprob_difference": None if greedy else largest}


@torch.inference_mode()
def margin(model: PreTrainedModel, request: Request, said: Sequence[int]) -> float:
    """How near the token after `said` was to another one, as in `Difference`."""
    ids = torch.tensor([[*request.prompt_ids, *said]], device=model.device)
    logits = model(ids, logits_to_keep=1).logits[:, -1]
    scaled = processed(logits, SamplingRows.of([request.sampling], logits.shape[-1], logits.device))[0]
    if request.sampling.temperature == 0:
        best, second = scaled.log_softmax(-1).topk(2).values.tolist()
        return float(best - second)
    u = float(uniforms(request.seed, len(said) + 1)[-1])
    return float((scaled.softmax(-1).cumsum(-1, dtype=torch.float64) - u).abs().min())


def _tell_difference(found: Measurement) -> None:
    if (first := found.difference) is None:
        return
    assert found.exact is not None
    warn(
        f"{found.method} at batch size {found.batch_size}: {1 - found.exact:.1%} of the completions are not plain decoding's; "
        f"the first is that of {first.problem_id} (repeat {first.repeat}), at token {first.position}: {first.drafted} in the "
        f"place of {first.plain}, where plain decoding was {first.margin:.2g} from another token"
    )


# -- what it came to -------------------------------------------------------------------------------------------------------

QUANTITIES = (
    "speedup",
    "over_engine",
    "reduction",
    "tokens_per_pass",
    "accepted",
    "draft_forwards",
    "draft_tokens",
    "draft_share",
    "tokens_per_second",
    "cache_bytes",
    "exact",
    "logprob_difference",
)


def summary(recipe: DecodeBench, measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each quantity by the name of the method at a batch size; those that have no value are left out."""
    found: dict[str, dict[str, float]] = {quantity: {} for quantity in QUANTITIES}
    for each in measurements:
        name = recipe.named(each["method"], each["batch_size"])
        for quantity in QUANTITIES:
            if each[quantity] is not None:
                found[quantity][name] = each[quantity]
    return {"temperature": recipe.temperature, **{quantity: values for quantity, values in found.items() if values}}


def _metrics(measurements: Sequence[Measurement]) -> dict[str, float]:
    shown = ("speedup", "reduction", "tokens_per_pass", "tokens_per_second", "exact")
    values = {f"{quantity}/{each.method}": asdict(each)[quantity] for quantity in shown for each in measurements}
    return {name: value for name, value in values.items() if value is not None}
