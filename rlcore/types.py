"""The types a sample passes through before it becomes tensors: Problem → Request → Completion → Group → Score.

Each is complete when made and never changed afterwards. Nothing here imports torch. The tensor types that follow are in
`rlcore.batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FinishReason = Literal["stop", "length", "interrupted"]
Code = Literal["expected", "sampled"] | int  # of a model with latent codes, see `rollout.latent`
NO_ANSWER, TRUNCATED = "no answer", "truncated"  # why a verdict is wrong where there was no answer to judge


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a known answer.

    `grader` names the equality in `rlcore.grading.graders` that decides whether an answer is right, so that sources with
    different notions of equality can be mixed in one run. `meta` carries what the source knows (solution, level, …).
    """

    id: str
    prompt: str
    answer: str
    grader: str = "math"
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: softmax(logits / temperature), truncated by top-h, then top-k, then top-p, then min-p, each of what
    the one before it left, renormalised.

    `temperature` 0 is greedy. `top_h` 1, `top_k` 0, `top_p` 1 and `min_p` 0 switch the truncations off. `top_h` is the α of
    `rollout.top_h`, in (0, 1]: the share of the distribution's entropy that is left, which is that of the renormalised
    distribution with `top_h_normalized`. `stop` strings end a completion.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    top_h: float = 1.0
    top_h_normalized: bool = False
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    @property
    def truncates(self) -> bool:
        return self.top_h < 1.0 or self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that a completion must start with, with the log-probs and weight versions they were sampled under."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    loss_mask: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One completion asked of an engine. `seed` alone decides its random numbers, whatever it is batched with. `code`: which of
    its latent codes a model answers with, that has some; None: the engine's usual one."""

    problem_id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    prefix: Prefix = Prefix()
    code: Code | None = None

    def completed(
        self, token_ids: Sequence[int], logprobs: Sequence[float], version: int, finish_reason: FinishReason, text: str
    ) -> Completion:
        """The completion that weights `version` made of this request by sampling these tokens after its prefix. `text` is
        that of the whole completion; it is cut here before a stop string."""
        return Completion(
            problem_id=self.problem_id,
            sample=self.sample,
            seed=self.seed,
            prompt_ids=self.prompt_ids,
            token_ids=(*self.prefix.token_ids, *token_ids),
            loss_mask=(*self.prefix.loss_mask, *(1,) * len(token_ids)),
            logprobs=(*self.prefix.logprobs, *logprobs),
            versions=(*self.prefix.versions, *(version,) * len(token_ids)),
            sampling=self.sampling,
            finish_reason=finish_reason,
            text=text[: min((text.find(s) for s in self.sampling.stop if s in text), default=len(text))],
            code=self.code,
        )


class Cut(NamedTuple):
    """Where a thought was cut, and an answer asked for (`rollout.anytime`)."""

    thought: int  # what names it: the seed that it was sampled with
    budget: int  # tokens that it might have; it may have ended before
    end: int  # the completion's first `end` tokens are its own


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled. The four per-token tuples have one length; tokens are never re-encoded.

    `loss_mask` is 0 for tokens the policy did not sample. `logprobs` are natural logarithms under the distribution that was
    actually sampled (temperature and truncation included; 0 when greedy). `versions` is the weight version of each token.
    `text` is the decoded completion without special tokens, cut before a stop string. `path` names the nodes of the tree
    that it was sampled in (`rollout.tree`), the root first. `cut` tells of the thought that it begins with (`rollout.anytime`).
    """

    problem_id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    sampling: Sampling
    finish_reason: FinishReason
    text: str
    path: tuple[int, ...] = ()
    code: Code | None = None  # that was asked for
    cut: Cut | None = None

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    def resumed(self) -> Request:
        """The request with which an interrupted completion goes on from what was sampled of it."""
        prefix = Prefix(self.token_ids, self.logprobs, self.versions, self.loss_mask)
        return Request(self.problem_id, self.sample, self.seed, self.prompt_ids, self.sampling, prefix, self.code)


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one problem. `accuracy` is the raw verifiable component of each, None where that was invalid; it is
    empty where nothing was verified: in the verifiable component's own `score`, and in runs without one. `greedy` is the greedy
    completion that an advantage compares them with; it is graded, and not trained on."""

    problem: Problem
    completions: Sequence[Completion]
    accuracy: Sequence[float | None] = ()
    greedy: Completion | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's word on one answer. `invalid` means that the grader failed, never that the answer is wrong.

    `answer` is what was extracted and judged; empty where there was none. `credit`, between 0 and 1, is how much of it is
    right, by graders that know more than right and wrong.
    """

    kind: Literal["correct", "wrong", "invalid"]
    reason: str = ""
    answer: str = field(default="", compare=False)
    credit: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Scored:
    """A reward component's value for one completion, with what it wants people to read about it.

    `judged` is the part of the completion that the value is about, such as the answer that was extracted. `per_token`, where
    given, spreads the value over the completion's tokens (same length, sums to `value`); otherwise the whole value stands at
    the last token. `measured` are numbers to be told beside the value, by name: nobody is paid for them.
    """

    value: float
    reason: str = ""
    judged: str = ""
    per_token: tuple[float, ...] | None = None
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def unanswered(self) -> bool:
        """The verdict was that there is no answer to judge."""
        return self.reason in (NO_ANSWER, TRUNCATED)


@dataclass(frozen=True, slots=True)
class Invalid:
    """The component could not judge this completion: it leaves the batch and is counted under `reason`."""

    reason: str


Score = Scored | Invalid


def seed_from(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on the process, unlike `hash`)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
