"""Small numbers as bytes: codes of some bits each, and masks that keep N of every M by the rank of their combination."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from rlcore.errors import UserError

CHUNK = 1 << 20  # codes that are spread into bits at a time; a multiple of 8, so that each chunk ends with a byte
WIDEST = 16  # M of a mask: all its 2^M patterns are looked up in a table


def pack(codes: Tensor, bits: int) -> Tensor:
    """(n,) integers below 2^bits → (⌈n·bits/8⌉,) uint8, the lowest bit first."""
    codes = codes.reshape(-1)
    if bits == 0:  # there is one code
        return codes.new_zeros(0, dtype=torch.uint8)
    if bits == 8:
        return codes.to(torch.uint8)
    place = torch.arange(bits, device=codes.device)
    eight = 2 ** torch.arange(8, device=codes.device)
    packed = []
    for part in codes.split(CHUNK):
        flat = ((part.long()[:, None] >> place) & 1).reshape(-1)
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
        packed.append((flat.view(-1, 8) * eight).sum(1).to(torch.uint8))
    return torch.cat(packed) if packed else codes.new_zeros(0, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """(count,) int32: what `pack` was given. Raises UserError where there are not that many."""
    if len(packed) != -(-count * bits // 8):
        raise UserError(f"{len(packed)} bytes do not hold {count} codes of {bits} bits: the file is not what was written")
    if bits == 0:
        return packed.new_zeros(count, dtype=torch.int32)
    if bits == 8:
        return packed.int()
    eight, place = torch.arange(8, device=packed.device), 2 ** torch.arange(bits, device=packed.device)
    found = []
    for part in packed.split(CHUNK * bits // 8):
        flat = ((part[:, None].int() >> eight) & 1).reshape(-1)
        whole = flat[: len(flat) // bits * bits].view(-1, bits)
        found.append((whole * place).sum(1, dtype=torch.int32))
    return torch.cat(found)[:count] if found else packed.new_zeros(0, dtype=torch.int32)


def code_bits(codes: int) -> int:
    """Bits of one of so many codes: ⌈log₂ codes⌉; 0 where there is one."""
    return (codes - 1).bit_length()


def mask_bits(keep: int, of: int) -> int:
    """Bits of a mask that keeps `keep` of `of`: ⌈log₂ C(of, keep)⌉."""
    return code_bits(math.comb(of, keep))


def pack_mask(mask: Tensor, keep: int, of: int) -> Tensor:
    """A bool mask whose every `of` consecutive entries have `keep` set, by the rank of each such combination. Raises UserError
    for any other mask."""
    runs = mask.reshape(-1, of)
    if not (runs.sum(1) == keep).all():
        raise UserError(f"the mask does not keep {keep} of every {of}")
    _, ranks = _combinations(keep, of)
    powers = 2 ** torch.arange(of, device=mask.device)
    return pack(ranks.to(mask.device)[(runs * powers).sum(1)], mask_bits(keep, of))


def unpack_mask(packed: Tensor, keep: int, of: int, count: int) -> Tensor:
    """(count,) bool: what `pack_mask` was given."""
    patterns, _ = _combinations(keep, of)
    ranks = unpack(packed, mask_bits(keep, of), count // of)
    if len(ranks) and int(ranks.max()) >= len(patterns):
        raise UserError(f"a mask of {keep} in {of} has a rank beyond the last: the file is not what was written")
    return patterns.to(packed.device)[ranks.long()].reshape(-1)


@functools.cache
def _combinations(keep: int, of: int) -> tuple[Tensor, Tensor]:
    """The patterns (C(of, keep), of) bool by rank; the rank of each pattern (2^of,) by its bits as a number."""
    if not 0 < keep <= of <= WIDEST:
        raise UserError(f"a mask keeps 1 to M of every M, and M is at most {WIDEST}: not {keep} of {of}")
    chosen = torch.tensor(list(itertools.combinations(range(of), keep)))
    patterns = torch.zeros(len(chosen), of, dtype=torch.bool).scatter_(1, chosen, True)
    ranks = torch.zeros(1 << of, dtype=torch.int32)
    ranks[(patterns * 2 ** torch.arange(of)).sum(1)] = torch.arange(len(chosen), dtype=torch.int32)
    return patterns, ranks
