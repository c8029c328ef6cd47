"""What is measured of a model, by hand on a few tokens."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from compress.measure import PADDED, Text, logprobs, measure, remembered, routed
from compress.mixture.from_llama import from_llama
from compress.mixture.router import usage
from rlcore.models import ModelSpec

TEXTS = [Text((5, 6, 7), (8, 9)), Text((10,), (11, 12, 13, 14)), Text((4, 5, 6, 7, 8, 9, 10, 11), (12,))]


def test_it_is_the_mean_over_tokens_whatever_is_padded_beside_them(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load().eval()
    every, told = [], []
    for text in TEXTS:
        with torch.no_grad():
            said = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        found = [float(said[t - 1, text.ids[t]]) for t in range(1, len(text.ids))]
        every += found
        told += found[len(text.prompt) - 1 :]
    measured = measure(model, TEXTS)
    assert measured["perplexity"] == pytest.approx(math.exp(-sum(every) / len(every)), rel=1e-5)
    assert measured["solution"] == pytest.approx(sum(told) / len(told), rel=1e-5)


def test_divergence_is_that_from_the_dense_model_to_this_one(tiny_spec: ModelSpec) -> None:
    dense, other = tiny_spec.load().eval(), tiny_spec.load().eval()
    assert measure(other, TEXTS, partial(logprobs, dense))["divergence"] == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        other.lm_head.weight *= 20
    expected, tokens = 0.0, 0
    for text in TEXTS:
        with torch.no_grad():
            p, q = (m(torch.tensor([text.ids])).logits[0, len(text.prompt) - 1 : -1].log_softmax(-1) for m in (dense, other))
        expected += float((p.exp() * (p - q)).sum())
        tokens += len(text.solution)
    assert measure(other, TEXTS, partial(logprobs, dense))["divergence"] == pytest.approx(expected / tokens, rel=1e-4)


def test_a_changed_model_is_held_against_what_it_said_before(tiny_spec: ModelSpec) -> None:
    model, dense = tiny_spec.load().eval(), tiny_spec.load().eval()
    said = remembered(model, TEXTS)
    assert measure(model, TEXTS, said)["divergence"] == 0
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight.mul_(3)
    changed = measure(model, TEXTS, said)
    assert changed == pytest.approx(measure(model, TEXTS, partial(logprobs, dense)))
    assert changed["divergence"] > 0


def test_a_mixture_routes_every_token_and_no_padding(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixture = from_llama(tiny_spec.load(), blocks=1, rounds=2, bottom=0, top=0, anchor=False, router_top_k=1).eval()
    with torch.no_grad():
        alone = [usage(mixture(torch.tensor([text.ids])).routing).attention for text in TEXTS]
    lengths = [len(text.ids) for text in TEXTS]
    wanted = sum(n * share for n, share in zip(lengths, alone, strict=True)) / sum(lengths)
    for padded in (PADDED, 10):  # all together, and each batch on its own
        monkeypatch.setattr("compress.measure.PADDED", padded)
        torch.testing.assert_close(routed(mixture, TEXTS).attention, wanted)
