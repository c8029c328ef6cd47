"""What is packed comes back, and takes the bits that are counted."""

from __future__ import annotations

import math

import pytest
import torch

from compress.packing import CHUNK, code_bits, mask_bits, pack, pack_mask, unpack, unpack_mask
from rlcore.errors import UserError


@pytest.mark.parametrize("bits", range(17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001])
def test_codes_come_back_from_as_few_bytes_as_hold_them(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert (packed.dtype, len(packed)) == (torch.uint8, math.ceil(count * bits / 8))
    assert unpack(packed, bits, count).tolist() == codes.tolist()


def test_codes_beyond_a_chunk_come_back() -> None:
    codes = torch.arange(CHUNK + 5) % 13
    assert torch.equal(unpack(pack(codes, 5), 5, len(codes)), codes.int())


def test_the_lowest_bit_comes_first() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(UserError, match="2 bytes do not hold 5 codes of 4 bits"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5)


@pytest.mark.parametrize(("keep", "of", "bits"), [(1, 4, 2), (2, 4, 3), (2, 8, 5), (4, 8, 7), (4, 16, 11), (8, 16, 14)])
def test_a_mask_takes_the_bits_of_its_combinations(keep: int, of: int, bits: int) -> None:
    """The table of section 1.7 of the method's description: ⌈log₂ C(M, N)⌉."""
    assert mask_bits(keep, of) == bits
    drawn = torch.rand(50, of, generator=torch.Generator().manual_seed(of))
    mask = torch.zeros(50, of, dtype=torch.bool).scatter_(1, drawn.topk(keep, 1).indices, True)
    packed = pack_mask(mask, keep, of)
    assert len(packed) == math.ceil(50 * bits / 8)
    assert torch.equal(unpack_mask(packed, keep, of, mask.numel()), mask.view(-1))


def test_a_mask_of_another_pattern_is_refused() -> None:
    with pytest.raises(UserError, match="does not keep 2 of every 4"):
        pack_mask(torch.tensor([True, True, True, False]), 2, 4)
    with pytest.raises(UserError, match="at most 16"):
        pack_mask(torch.arange(32) < 8, 8, 32)
    with pytest.raises(UserError, match="beyond the last"):
        unpack_mask(torch.full((1,), 7, dtype=torch.uint8), 2, 4, 4)  # there are six


def test_one_code_takes_no_bits() -> None:
    assert [code_bits(n) for n in (1, 2, 3, 256, 257)] == [0, 1, 2, 8, 9]
