"""What judges share that read with a model. They say which tokens are read and where in them scores stand; here they are read.

Texts go through the model in passes of a bounded number of tokens, like lengths together, and are padded on the right: the
models are causal, or are told what is padding, so a score does not depend on what it is read beside. A running solution is read
once for all of its steps, and for all solutions that are a beginning of it. What is asked twice is read once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rewards.judge import Judge
from rewards.judged_text import Asked, Row, packed
from rlcore.batch import cut_by_length, pad
from rlcore.errors import UserError
from rlcore.models import ModelSpec, context, load_tokenizer, parameters, pick_device
from rlcore.protocols import Progress, no_progress
from rlcore.recipe.estimate import WIDTH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16384  # of a pass
TOKENS_ON_CPU = 2048  # at most: more than its caches hold takes up to three times as long
Dtype = Literal["float32", "bfloat16"]
Pieces = Callable[[str, tuple[str, ...]], tuple[Sequence[int], Sequence[Sequence[int]]]]


class Reader(Judge):
    """Neither what a text is batched with nor padding changes a score."""

    kind = "reward model"  # what refusals call it

    def __init__(self, spec: ModelSpec, tokens: int) -> None:
        """`tokens`: of a pass, padding included."""
        self.spec = spec
        self.tokens = min(tokens, TOKENS_ON_CPU) if pick_device(spec.device) == "cpu" else tokens
        self.tokenizer = load_tokenizer(spec.location)
        self.context = context(spec.location)

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.read_weights().eval()

    @property
    def weights(self) -> int:
        """Without a head, which is small."""
        return WIDTH[self.spec.dtype] * parameters(self.spec.location)

    def load(self) -> None:
        _ = self.model

    @abstractmethod
    def read_weights(self) -> PreTrainedModel:
        """Raises UserError for those of another kind of model."""

    @abstractmethod
    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        """What to read so that everything asked is answered once."""

    @abstractmethod
    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        """(N,) the log-odds at every end of the rows, in their order. `ids` (B, T): their tokens, on the model's device."""

    @torch.no_grad()
    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        repeated = Counter(asked)
        questions = list(repeated)
        rows = [read for row in self.rows(questions) if (read := row.within(self.context))]
        result: dict[Asked, float] = {}
        for part in cut_by_length({i: len(row.ids) for i, row in enumerate(rows)}, self.tokens):
            some = [rows[i] for i in part]
            values = self.found(some, pad([row.ids for row in some], torch.long).to(self.model.device)).tolist()
            answered = [questions[number] for row in some for number in row.asked]
            result.update(zip(answered, values, strict=True))
            progress(sum(repeated[question] for question in answered))
        progress(sum(count for question, count in repeated.items() if question not in result))
        return [result.get(question) for question in asked]

    def weights_of(self, kind: Any) -> PreTrainedModel:
        """The model as a class of transformers or of ours. Raises UserError where its weights are not those of that class."""
        model, lacking = self.spec.load_as(kind)
        if lacking:
            raise self.refusal(f"weights {', '.join(lacking[:3])} of the right shape")
        return model

    def single_token(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise self.refusal(f"token {text!r}")
        return int(ids[0])

    def encode(self, text: str) -> list[int]:
        """Without the tokens that a tokenizer puts around a text of its own accord."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def chat(self, *turns: tuple[str, str], reply: bool = False) -> str:
        """What the model's chat template makes of (role, text); with `reply`, up to where the assistant's next turn begins."""
        if not self.tokenizer.chat_template:
            raise self.refusal("chat template")
        messages = [{"role": role, "content": text} for role, text in turns]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        return text

    def refusal(self, lacking: str) -> UserError:
        return UserError(f"model {self.spec.location!r} has no {lacking}: it is no {self.kind}")


@dataclass(frozen=True, slots=True)
class Running(Row):
    begin: int  # number of tokens before the solution


def running(asked: Sequence[Asked], pieces: Pieces) -> list[Row]:
    """Rows of running solutions from their tokens, piece by piece.

    `pieces(problem, steps)`: the tokens before the solution, and those of each step, at the last of which its score stands.
    What stands in a piece must not depend on later steps.
    """

    def row(problem: str, steps: tuple[str, ...], ends: Mapping[int, int]) -> Row:
        before, after = pieces(problem, steps)
        tokens = list(accumulate(map(len, after), initial=len(before)))  # after so many steps
        counts = sorted(ends)
        ids = (*before, *chain.from_iterable(after))
        return Running(ids, tuple(tokens[n] - 1 for n in counts), tuple(ends[n] for n in counts), len(before))

    return [row(*each) for each in packed(asked)]


def shared(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows without those that are a beginning of another, which answers what they would: of models whose score at a token
    depends on nothing after it."""
    longest: Row | None = None
    for row in sorted(rows, key=lambda row: row.ids, reverse=True):
        if longest is None:
            longest = row
        elif longest.ids[: len(row.ids)] == row.ids:
            longest = replace(longest, ends=row.ends + longest.ends, asked=row.asked + longest.asked)
        else:
            yield longest
            longest = row
    if longest is not None:
        yield longest


def at_ends(model: PreTrainedModel, rows: Sequence[Row], ids: Tensor) -> Tensor:
    """(N, H) the last hidden states where scores stand."""
    hidden: Tensor = model.base_model(ids, use_cache=False).last_hidden_state
    ends = [(i, end) for i, row in enumerate(rows) for end in row.ends]
    return hidden[[i for i, _ in ends], [end for _, end in ends]]


def next_token_odds(model: PreTrainedModel, rows: Sequence[Row], ids: Tensor, right: int, wrong: int) -> Tensor:
    """(N,) how much likelier than `wrong` a causal language model finds the token `right` after each end, as log-odds."""
    logits = model.get_output_embeddings()(at_ends(model, rows, ids)).float()
    return logits[:, right] - logits[:, wrong]


def two_classes(model: PreTrainedModel, rows: Sequence[Row], ids: Tensor) -> Tensor:
    """(N,) from a head `score` of two classes, wrong and right, as log-odds."""
    wrong, right = model.score(at_ends(model, rows, ids)).float().T
    return right - wrong
