"""A model that reads trees of tokens, one a row, over the slot cache. The target is one, and so is a draft model.

A row has `length` tokens that are settled, and *open* nodes in the columns behind them, in the order in which they were read:

    column of open node i = length + i          position of open node i = length + its depth

An open node attends to what is settled, to its ancestors and to itself, and to nothing else (tree attention: Miao et al. 2023,
SpecInfer, arXiv 2305.09781, §4.2; a dense mask here). To `keep` a path is to gather its columns behind the settled ones; all
other branches are cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.batch import pad
from rlcore.errors import UserError
from rlcore.models import context_of
from rlcore.packing import distinct, pack
from rlcore.protocols import Tokens
from rollout import attention
from rollout.cache import Decode, Prefill, SlotCache
from rollout.decoding.heads import Carried

RESCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class Read(NamedTuple):
    """What a pass over nodes says; of a row with fewer of them than others, what is beyond them means nothing."""

    logits: Tensor  # (rows, nodes, V)
    hidden: Tensor  # (rows, nodes, H) the last states
    ahead: Tensor | None  # (rows, nodes, k, H) those that were carried along


class BranchedModel:
    """`forwards` counts passes that read trees, and `tokens` those that they read; prefills are in neither. Changes the
    attention implementation of `model`.

    Raises UserError for a model with sliding-window attention, and for one that rescales what its head puts out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if rescaled := [name for name in RESCALED if getattr(model.config, name, None) not in (None, 1)]:
            raise UserError(f"{model.name_or_path} has {rescaled[0]}, which speculative decoding does not know of")
        model.set_attn_implementation(attention.NAME)
        self.model = model.eval()
        self.vocabulary, self.context = int(model.config.vocab_size), context_of(model.config)
        self.forwards = self.tokens = 0
        self.lengths: list[int] = []  # settled tokens of each row
        self._lines: list[list[list[int]]] = []  # of each row's open nodes: the nodes from its branch's first to itself
        self._names: list[dict[tuple[int, int], int]] = []  # of each row: (parent, token) → open node
        self.release()

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that there is room for now; it grows, and never shrinks but by `release`."""
        return self._cache.bytes

    def release(self) -> None:
        """Free the cache, in which nothing is that is still needed."""
        self._cache = SlotCache(self.model.config, 0, 0, self.model.dtype, self.model.device)

    def enter(self, contexts: Sequence[Tokens]) -> list[Tensor]:
        """Rows behind those there are, with tokens that are settled; the same ones are read once. The last hidden states
        (tokens, H) of each."""
        start, device = len(self.lengths), self.model.device
        sequences, source = distinct(contexts)
        packed = pack(sequences, device)
        self._reserve(start + len(contexts), packed.ids.shape[1])
        self._cache.enter(Prefill.of(packed, torch.tensor(source, device=device), start))
        hidden = self._hidden(packed.ids, packed.positions, packed.mask[:, 0])
        self.lengths += map(len, contexts)
        self._lines += ([] for _ in contexts)
        self._names += ({} for _ in contexts)
        begin, row = packed.start.tolist(), packed.row.tolist()
        return [hidden[row[i], begin[i] : begin[i] + len(ids)] for i, ids in zip(source, contexts, strict=True)]

    def read(self, branches: Sequence[tuple[Sequence[int], Sequence[int]]], carried: Carried | None = None) -> Read:
        """Open more nodes of every row: their tokens and parents, which are open nodes, or −1 for the last settled token. The
        nodes are numbered on from the row's open ones. With `carried`, each node has pseudo states beside it in the layers
        above; the next pass forgets them."""
        device = self.model.device
        begins = [length + len(lines) for length, lines in zip(self.lengths, self._lines, strict=True)]
        new = [self._open(row, tokens, parents) for row, (tokens, parents) in enumerate(branches)]
        padded = pad([tokens for tokens, _ in branches], torch.long).to(device)
        depths = pad([[len(line) - 1 for line in lines] for lines in new], torch.long).to(device)
        count, steps = padded.shape[1], carried.steps if carried else 0
        before = max(begins)
        self._reserve(len(begins), before + (1 + steps) * count)
        starts, lengths = torch.tensor(begins, device=device), torch.tensor(self.lengths, device=device)
        positions, seen = lengths[:, None] + depths, self._seen(new, starts, before + count)

        def write(tokens: int) -> None:
            self._cache.enter(Decode(starts, before + tokens))

        write(count)
        carrying: AbstractContextManager[None] = nullcontext()
        if carried:
            ahead = torch.arange(1 + steps, device=device).repeat_interleave(count)
            every = _beside(seen, starts, steps)
            carrying = carried.carrying(self.model, slice(count), positions.repeat(1, 1 + steps) + ahead, every[:, None], write)
        with carrying:
            hidden = self._hidden(padded, positions, seen)
        self.forwards += 1
        self.tokens += sum(len(tokens) for tokens, _ in branches)
        hidden, pseudo = hidden[:, :count], hidden[:, count:]
        return Read(
            self.model.get_output_embeddings()(hidden),
            hidden,
            pseudo.unflatten(1, (steps, count)).transpose(1, 2) if carried else None,
        )

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Settle a path of open nodes in every row, the first node first, and cut off all others."""
        moves = [
            (row, self.lengths[row] + node, self.lengths[row] + place)
            for row, path in enumerate(paths)
            for place, node in enumerate(path)
            if node != place
        ]
        if moves:
            self._cache.gather(*torch.tensor(moves, device=self.model.device).T)
        for row, path in enumerate(paths):
            self.lengths[row] += len(path)
            self._lines[row], self._names[row] = [], {}

    def follow(self, row: int, tokens: Sequence[int]) -> list[int]:
        """The path of open nodes that says as much as there is of `tokens`."""
        path: list[int] = []
        for token in tokens:
            node = self._names[row].get((path[-1] if path else -1, token))
            if node is None:
                break
            path.append(node)
        return path

    def leave(self, row: int) -> None:
        """The last row takes the place of this one, with what is open in it."""
        self._cache.move(len(self.lengths) - 1, row, self.lengths[-1] + len(self._lines[-1]))
        for each in (self.lengths, self._lines, self._names):
            each[row : row + 1] = each[-1:]  # type: ignore[assignment]
            each.pop()

    def _open(self, row: int, tokens: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
        lines = self._lines[row]
        before = len(lines)
        for token, parent in zip(tokens, parents, strict=True):
            self._names[row][parent, token] = len(lines)
            lines.append([*(lines[parent] if parent >= 0 else ()), len(lines)])
        return lines[before:]

    def _seen(self, new: Sequence[Sequence[Sequence[int]]], starts: Tensor, width: int) -> Tensor:
        """(rows, nodes, width), whether a node attends to a column. So does padding to itself: a softmax of nothing is NaN."""
        device, count = starts.device, max(map(len, new))
        lengths = torch.tensor(self.lengths, device=device)
        columns, nodes = torch.arange(width, device=device), torch.arange(count, device=device)
        settled = (columns < lengths[:, None])[:, None, :]
        seen = settled | (columns == (starts[:, None] + nodes)[:, :, None])
        every = list(itertools.chain.from_iterable(new))
        if max(map(len, every), default=0) > 1:
            long = torch.tensor([len(line) for line in every])
            row = torch.tensor([row for row, lines in enumerate(new) for _ in lines]).repeat_interleave(long)
            node = torch.tensor([node for lines in new for node in range(len(lines))]).repeat_interleave(long)
            column = torch.tensor(list(itertools.chain.from_iterable(every))) + torch.tensor(self.lengths)[row]
            seen[row.to(device), node.to(device), column.to(device)] = True
        return seen

    def _hidden(self, tokens: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        if not tokens.numel():
            return torch.zeros(*tokens.shape, self.model.config.hidden_size, dtype=self.model.dtype, device=tokens.device)
        hidden: Tensor = self.model.get_decoder()(
            tokens,
            position_ids=positions,
            attention_mask=torch.where(seen, 0.0, -torch.inf).to(self.model.dtype)[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _reserve(self, slots: int, capacity: int) -> None:
        """Make room: half as much again as is asked for, so that a cache that grows token by token is seldom copied."""
        old = self._cache
        if slots <= old.slots and capacity <= old.capacity:
            return
        slots, capacity = max(slots, old.slots), old.capacity if capacity <= old.capacity else capacity * 3 // 2
        if not self.lengths:
            self.release()  # nothing to carry over: the old cache need not stand beside the new one
            old = self._cache
        self._cache = SlotCache(self.model.config, slots, capacity, self.model.dtype, self.model.device)
        self._cache.take(old, len(self.lengths))


def _beside(seen: Tensor, starts: Tensor, steps: int) -> Tensor:
    """`seen` (rows, nodes, columns) with what pseudo states see, each of `steps` those of all nodes: what their node does, and
    those of the same node up to themselves. (rows, (1 + steps) · nodes, columns + steps · nodes)."""
    nodes = seen.shape[1]
    each = torch.arange(steps * nodes, device=seen.device)
    own = (each % nodes == each[:, None] % nodes) & (each <= each[:, None])
    columns = starts[:, None] + nodes + each  # of the pseudo states, row by row
    every = torch.nn.functional.pad(seen, (0, steps * nodes)).repeat(1, 1 + steps, 1)
    every[:, nodes:].scatter_(2, columns[:, None].expand(-1, len(each), -1), own.expand(len(seen), -1, -1))
    return every
