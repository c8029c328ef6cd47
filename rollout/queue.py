"""The requests that a pool has not handed out yet, and which worker gets which of them next. Knows nothing of processes."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rlcore.types import Completion, Request

Taker = TypeVar("Taker", bound=Hashable)


class Queue:
    """Longest first, as far as lengths are known: a request is expected to become as long as the completions that its problem
    had lately, or as long as it may where there were none. A step waits for its last completion, so the long ones start
    early."""

    def __init__(self, room: int) -> None:
        self.room = room  # sequences that a worker decodes together
        self._waiting: deque[Request] = deque()
        self._lengths: dict[str, float] = {}  # problem → how long its completions were lately, tokens

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting)

    def add(self, requests: Sequence[Request]) -> None:
        self._waiting = deque(sorted([*self._waiting, *requests], key=self._expected, reverse=True))

    def put_back(self, requests: Iterable[Request]) -> None:
        """First in the queue: a worker had them already."""
        self._waiting.extendleft(requests)

    def clear(self) -> None:
        self._waiting.clear()

    def learn(self, completion: Completion) -> None:
        """Note how long a completion has become."""
        length = len(completion.token_ids)
        self._lengths[completion.problem_id] = (self._lengths.get(completion.problem_id, length) + length) / 2

    def hand_out(self, loads: Mapping[Taker, int]) -> dict[Taker, list[Request]]:
        """What each worker gets on top of its load, the number of requests that it has. The least loaded comes first; requests
        of one prompt go together, to share what is computed for it, as long as no worker gets more than its share; nobody gets
        more than it has room for and a quarter more, which is there when others end."""
        handed: dict[Taker, list[Request]] = {}
        if not self._waiting or not loads:
            return handed
        most, share = self.room + self.room // 4, -(-len(self._waiting) // len(loads))
        least = [(load, order, worker) for order, (worker, load) in enumerate(loads.items())]
        heapq.heapify(least)
        while self._waiting and least[0][0] < most:
            load, order, worker = least[0]
            prompt = self._waiting[0].prompt_ids
            block: list[Request] = []
            while self._waiting and len(block) < min(share, most - load) and self._waiting[0].prompt_ids == prompt:
                block.append(self._waiting.popleft())
            handed.setdefault(worker, []).extend(block)
            heapq.heapreplace(least, (load + len(block), order, worker))
        return handed

    def _expected(self, request: Request) -> float:
        """Tokens that are still to come."""
        whole = self._lengths.get(request.problem_id, request.sampling.max_new_tokens)
        return whole - len(request.prefix.token_ids)
