"""The layouts of demonstrations: who sees whom; and that a cache without the replicas says what one with all columns says."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rlcore.errors import UserError
from rlcore.recipe.schema import Layout
from rollout.demonstrations import arrange
from rollout.in_context import Reader

VOCABULARY = 50
prefixes = st.lists(st.integers(0, 9), max_size=3)
lengths = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def blocks(lengths: list[int]) -> list[tuple[int, ...]]:
    """Block j has the token 100 + j throughout."""
    return [(100 + j,) * n for j, n in enumerate(lengths)]


@given(prefixes, lengths)
def test_an_original_sees_every_demonstration_once_and_never_its_replica(prefix: list[int], lengths: list[int]) -> None:
    shown = arrange("rdsca", prefix, blocks(lengths))
    for j, (start, length) in enumerate(zip(shown.originals.tolist(), lengths, strict=True)):
        last = start + length - 1
        assert (shown.ids[start : last + 1] == 100 + j).all()
        seen = shown.ids[shown.seen[last]].tolist()
        assert sorted(seen) == sorted([*prefix, *(token for block in blocks(lengths) for token in block)])
        first = shown.ids[shown.seen[start]].tolist()  # what its own label could come from
        assert first.count(100 + j) == 1


@given(prefixes, lengths, st.sampled_from(get_args(Layout)))
def test_the_query_sees_the_originals_in_their_order(prefix: list[int], lengths: list[int], layout: Layout) -> None:
    shown = arrange(layout, prefix, blocks(lengths))
    seen = shown.ids[shown.kept].tolist()
    originals = [token for block in blocks(lengths) for token in block]
    replicas = originals[lengths[0] :] if layout == "repeated" else []
    assert seen == [*prefix, *replicas, *originals]


@given(prefixes, lengths, st.sampled_from(get_args(Layout)))
def test_no_token_sees_what_follows_it_and_all_see_the_prefix_and_themselves(
    prefix: list[int], lengths: list[int], layout: Layout
) -> None:
    seen = arrange(layout, prefix, blocks(lengths)).seen
    assert not seen.triu(1).any()
    assert seen.diagonal().all()
    assert seen[len(prefix) :, : len(prefix)].all()
    if layout != "rdsca":
        assert torch.equal(seen, torch.ones_like(seen).tril())


@given(prefixes, st.integers(1, 4), st.sampled_from(get_args(Layout)))
def test_one_demonstration_is_plain(prefix: list[int], length: int, layout: Layout) -> None:
    shown, plain = (arrange(each, prefix, blocks([length])) for each in (layout, "plain"))
    for field in ("ids", "seen", "kept"):
        assert torch.equal(getattr(shown, field), getattr(plain, field))


def test_the_documented_example() -> None:
    """d_2 d_3 d_1 d_2 d_3 with K = 3: each row sees the three blocks up to itself, and the prefix."""
    shown = arrange("rdsca", [7], blocks([1, 1, 1]))
    assert shown.ids.tolist() == [7, 101, 102, 100, 101, 102]
    assert shown.seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]
    assert shown.kept.int().tolist() == [1, 0, 0, 1, 1, 1]


SIZE = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)


@pytest.fixture(params=["llama", "qwen"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    make, config = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen": (Qwen2ForCausalLM, Qwen2Config)}[request.param]
    return make(config(**SIZE, num_key_value_heads=2, initializer_range=0.2)).eval()


PREFIX, QUERY, LABELS = (1, 2), (3, 4), ((5, 6), (7,), (8, 9, 10))
DEMONSTRATIONS = ((11, 12, 13), (14, 15), (16, 17, 18, 19), (20,))


def kept_and_masked(model: PreTrainedModel, layout: Layout, continuation: tuple[int, ...]) -> torch.Tensor:
    """Log-probs (n, V) after each token of a continuation, by one pass of transformers' own SDPA over everything, replicas
    included, under one mask."""
    model.set_attn_implementation("sdpa")
    shown = arrange(layout, PREFIX, DEMONSTRATIONS)
    read, more = len(shown.ids), len(continuation)
    seen = torch.ones(read + more, read + more, dtype=torch.bool).tril()
    seen[:read, :read] = shown.seen
    seen[read:, :read] = shown.kept
    mask = torch.where(seen, 0.0, -torch.inf)[None, None]
    ids = torch.cat([shown.ids, torch.tensor(continuation)])[None]
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, position_ids=torch.arange(read + more)[None]).logits[0, read:]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_cache_without_replicas_says_what_masked_replicas_do(model: PreTrainedModel, layout: Layout) -> None:
    expected = [kept_and_masked(model, layout, (*QUERY, *label)) for label in LABELS]
    reader = Reader(model, arrange(layout, PREFIX, DEMONSTRATIONS), room=5, rows=3)
    for label, all_columns in zip(LABELS, expected, strict=True):
        torch.testing.assert_close(reader.read(torch.tensor([[*QUERY, *label]]))[0], all_columns, rtol=0, atol=1e-5)
    likelihood, _ = reader.labels(QUERY, LABELS)
    by_hand = [sum(said[1 + i, token] for i, token in enumerate(label)) for label, said in zip(LABELS, expected, strict=True)]
    torch.testing.assert_close(likelihood, torch.stack(by_hand), rtol=0, atol=1e-5)
    cached = reader._cache.layers[0].keys.shape[2]
    assert cached == 5 + len(PREFIX) + 10 + (7 if layout == "repeated" else 0)


def test_greedy_decoding_is_the_same_with_replicas_dropped_and_masked(model: PreTrainedModel) -> None:
    said: list[int] = []
    for _ in range(3):
        said.append(int(kept_and_masked(model, "rdsca", (*QUERY, *said))[-1].argmax()))
    reader = Reader(model, arrange("rdsca", PREFIX, DEMONSTRATIONS), room=5, rows=2)
    written: list[int] = []
    for _ in range(3):
        written.append(int(reader.read(torch.tensor([[*QUERY, *written]]))[0, -1].argmax()))
    assert written == said
    _, greedy = reader.labels(QUERY, (tuple(said), (*said[:2], said[2] + 1)))
    assert greedy.tolist() == [True, False]


@pytest.mark.parametrize(("layers", "leaking"), [(1, {"repeated"}), (3, {"repeated", "rdsca"})])
def test_where_a_demonstrations_own_label_can_come_from(layers: int, leaking: set[str]) -> None:
    """Whatever a label is, what is predicted where it stands does not change, unless its replica is seen: by the original
    itself without the window, and with it, in a deeper model, by replicas that the original sees."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE | {"num_hidden_layers": layers}, initializer_range=0.2))
    position = 2  # the third demonstration's last token is its label

    @torch.inference_mode()
    def predicted(layout: Layout, label: int) -> float:
        changed = [*DEMONSTRATIONS[:position], (*DEMONSTRATIONS[position][:-1], label), *DEMONSTRATIONS[position + 1 :]]
        shown = arrange(layout, PREFIX, changed)
        before = int(shown.originals[position]) + len(changed[position]) - 2
        return Reader(model, shown, room=1).probability(before, (21,))

    assert {each for each in get_args(Layout) if abs(predicted(each, 30) - predicted(each, 40)) > 1e-6} == leaking


def test_a_model_with_sliding_windows_is_refused() -> None:
    config = Qwen2Config(**SIZE, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(UserError, match="sliding-window"):
        Reader(Qwen2ForCausalLM(config), arrange("rdsca", PREFIX, DEMONSTRATIONS), room=1)
