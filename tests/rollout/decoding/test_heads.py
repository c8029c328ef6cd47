"""Heads: what they learn, that the target carries pseudo states as the formulas have it, and what becomes of them on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rlcore.errors import UserError
from rlcore.types import Request, Sampling
from rollout.decoding import heads, teach
from rollout.decoding.decode import Decoder, decode
from rollout.decoding.heads import Carried, Heads
from rollout.decoding.model import BranchedModel
from rollout.decoding.teach import Text
from rollout.decoding.tree import Tree
from rollout.drafters.heads import Heads as HeadsDrafter

KINDS: list[tuple[str, dict[str, Any]]] = [("firp", {"layer": 2}), ("hidden_transfer", {"layer": 2}), ("medusa", {})]
SIZES = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES)) if request.param == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return made.eval()


def of(model: PreTrainedModel, name: str, options: dict[str, Any], seed: int = 1) -> Heads:
    """Heads that are not what they begin as."""
    made = heads.make(model.config, name, options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@torch.no_grad()
def by_hand(model: PreTrainedModel, carried: Carried, ids: list[int]) -> torch.Tensor:
    """(k, H) the pseudo states at the last of `ids`, from the formulas: each row of every layer computed alone, its keys and
    values chosen one by one, without masks."""
    decoder = model.get_decoder()
    real = [decoder.embed_tokens(torch.tensor([[token]])) for token in ids]
    n, pseudo = len(ids) - 1, dict[int, torch.Tensor]()
    for number, layer in enumerate(decoder.layers):
        for i, after in enumerate(carried.layers, 1):
            if after == number:
                pseudo[i] = carried.maps[i - 1](real[n])
        before = [(at, state) for at, state in enumerate(real)]
        after_real = [_one(model, layer, before[: at + 1]) for at in range(len(real))]
        after_pseudo = {i: _one(model, layer, before + [(n + j, pseudo[j]) for j in sorted(pseudo) if j <= i]) for i in pseudo}
        real, pseudo = after_real, after_pseudo
    return torch.cat([decoder.norm(pseudo[i])[0] for i in sorted(pseudo)])


def _one(model: PreTrainedModel, layer: torch.nn.Module, seen: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """What a layer makes of the last of these states at their positions, which attends to all of them."""
    states = torch.cat([state for _, state in seen], 1)
    rotary = model.get_decoder().rotary_emb(states, position_ids=torch.tensor([[at for at, _ in seen]]))
    mask = torch.ones(1, 1, len(seen), len(seen), dtype=torch.bool)
    return layer(states, attention_mask=mask, position_embeddings=rotary)[:, -1:]


@pytest.mark.parametrize(("name", "options"), [("firp", {"layer": 2}), ("hidden_transfer", {"layer": 2, "steps": 3})])
def test_pseudo_states_are_those_of_the_formulas(model: PreTrainedModel, name: str, options: dict[str, Any]) -> None:
    """In training, at every token at once, and in decoding, at every node of a tree."""
    carried = of(model, name, options)
    assert isinstance(carried, Carried)
    ids = [5, 6, 7, 8, 9, 10, 11]
    with torch.no_grad():
        hidden, ahead = carried(model, torch.tensor([ids, ids[::-1]]), 0)
        plain = model.get_decoder()(torch.tensor([ids, ids[::-1]])).last_hidden_state
    torch.testing.assert_close(hidden, plain, atol=1e-5, rtol=0)
    with torch.no_grad():
        late, ahead_late = carried(model, torch.tensor([ids, ids[::-1]]), 3)
    torch.testing.assert_close((late, ahead_late), (hidden, ahead[:, 3:]), atol=1e-5, rtol=0)
    for at in (0, 3, 6):
        torch.testing.assert_close(ahead[0, at], by_hand(model, carried, ids[: at + 1]), atol=1e-5, rtol=0)

    branched = BranchedModel(deepcopy(model))
    with torch.inference_mode():
        branched.enter([ids[:3], ids[:5]])
        read = branched.read([([8, 9, 4], [-1, 0, 0]), ([10], [-1])], carried)
    assert read.ahead is not None
    for row, node, path in [(0, 0, [8]), (0, 1, [8, 9]), (0, 2, [8, 4]), (1, 0, [10])]:
        expected = by_hand(model, carried, ids[: (3, 5)[row]] + path)
        torch.testing.assert_close(read.ahead[row, node], expected, atol=1e-5, rtol=0)
    with torch.inference_mode():
        branched.keep([[0, 2], [0]])
        again = branched.read([([12], [-1]), ([13], [-1])], carried)
    assert again.ahead is not None
    torch.testing.assert_close(again.ahead[0, 0], by_hand(model, carried, [5, 6, 7, 8, 4, 12]), atol=1e-5, rtol=0)


def test_what_is_carried_leaves_the_target_as_it_is(model: PreTrainedModel) -> None:
    carried = of(model, "firp", {"layer": 3})
    assert isinstance(carried, Carried)
    said = []
    for along in (None, carried):
        branched = BranchedModel(deepcopy(model))
        with torch.inference_mode():
            branched.enter([[5, 6, 7], [4, 4]])
            said.append(branched.read([([8, 9, 4], [-1, 0, 0]), ([10], [-1])], along))
    torch.testing.assert_close(said[0].logits, said[1].logits, atol=1e-5, rtol=0)


def texts(count: int) -> list[Text]:
    """Counting: the token after x is x + 1 or x + 2, by the parity of the first."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        first, length = draw.randrange(24), draw.randint(8, 20)
        found.append(Text(tuple((first + i * (1 + first % 2)) % 24 for i in range(length)), draw.randint(1, 4)))
    return found


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_heads_learn_what_the_target_will_say(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    target = LlamaForCausalLM(LlamaConfig(**SIZES))
    optimizer = torch.optim.AdamW(target.parameters(), lr=3e-3)
    for _ in range(150):
        ids = torch.tensor([text.ids[:8] for text in texts(64)])
        target(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    target.eval()
    made, held_out = heads.make(target.config, name, options), texts(80)[64:]
    before = teach.measure(made, target, held_out, 4096)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(40):
        teach.learn(made, target, texts(64), 4096, 0.9)
        optimizer.step()
        optimizer.zero_grad()
    after = teach.measure(made, target, held_out, 4096)
    assert (after.divergence < before.divergence / 2).all()
    gain = 0.5 if isinstance(made, Carried) else 0.0  # a block that looks at the last state alone learns this more slowly
    assert after.metrics()["tokens_per_pass"] > before.metrics()["tokens_per_pass"] + gain


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_gradient_is_that_of_the_loss_however_it_is_cut(
    model: PreTrainedModel, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = of(model, name, options), texts(6)
    loss, decay = torch.tensor(0.0), 0.7
    for i in range(1, 4):
        each = []
        for text in asked:
            real, ahead = made(model, torch.tensor([text.ids]), 0)
            wanted = model.lm_head(real[0]).log_softmax(-1)
            said = model.lm_head(ahead[0, :, i - 1]).log_softmax(-1)
            each += [(wanted[n + i].exp() * (wanted[n + i] - said[n])).sum() for n in range(text.begin - 1, len(text.ids) - i)]
        loss = loss + decay ** (i - 1) * torch.stack(each).mean()
    expected = torch.autograd.grad(loss, list(made.parameters()))
    monkeypatch.setattr(teach, "PLACES_AT_ONCE", 5)
    for tokens_at_once in (1, 10_000):
        made.zero_grad()
        teach.learn(made, model, asked, tokens_at_once, decay)
        for parameter, gradient in zip(made.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_product_of_guesses_is_its_most_probable_paths() -> None:
    guesses = [[(1, 0.5), (2, 0.3), (3, 0.2)], [(4, 0.9), (5, 0.1)], [(6, 1.0), (7, 0.0)]]
    tree = Tree.product(9, guesses, 7)
    paths = {tuple(tree.tokens[node] for node in _line(tree, node)) for node in range(len(tree.tokens))}
    every = {(9,): 1.0}
    for guess in guesses:
        every |= {
            (*path, token): p * q for path, p in every.items() if len(path) == 1 + guesses.index(guess) for token, q in guess
        }
    likeliest = sorted((path for path in every if every[path] > 0), key=lambda path: -every[path])[:8]
    assert {every[path] for path in paths} == {every[path] for path in likeliest}
    assert Tree.product(9, [], 7).tokens == [9]


def _line(tree: Tree, node: int) -> list[int]:
    return [*_line(tree, tree.parents[node]), node] if node > 0 else [0]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_heads_follow_a_target_that_learns(model: PreTrainedModel, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """At a sync they learn from what was said since the last; without `refresh` they stay as they are."""
    folder = tmp_path / "heads"
    heads.save(of(model, name, options), name, options, folder)
    requests = [Request(f"p{i}", 0, i, (5, i), Sampling(max_new_tokens=20)) for i in range(12)]
    for refresh in (0, 5):
        drafter = HeadsDrafter(folder=str(folder), refresh=refresh, learning_rate=1e-3)
        decoder = Decoder(deepcopy(model), drafter, [3])
        decoder.enter(requests)
        while decoder.rows:
            decoder.round()
        said = list(drafter._said)
        assert len(said) == (12 if refresh else 0)
        before = teach.measure(drafter.heads, decoder.target.model, said, 4096) if said else None
        weights = deepcopy(drafter.heads.state_dict())
        decoder.synced()
        assert all(torch.equal(weights[key], value) for key, value in drafter.heads.state_dict().items()) == (refresh == 0)
        if before is not None:
            after = teach.measure(drafter.heads, decoder.target.model, said, 4096)
            assert after.divergence.sum() < before.divergence.sum()


def test_heads_come_back_from_their_folder(model: PreTrainedModel, tmp_path: Path) -> None:
    made = of(model, "hidden_transfer", {"layer": 3, "steps": 2})
    heads.save(made, "hidden_transfer", {"layer": 3, "steps": 2}, tmp_path / "heads")
    back = heads.load(str(tmp_path / "heads"), model.config)
    assert isinstance(back, Carried)
    assert back.layers == (3, 4)
    for mine, theirs in zip(made.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_no_heads_is_refused(model: PreTrainedModel, tmp_path: Path, ask: Callable) -> None:
    with pytest.raises(UserError, match="nowhere holds no heads"):
        heads.load("nowhere", model.config)
    heads.save(of(model, "firp", {}), "firp", {}, tmp_path / "heads")
    other = LlamaConfig(**{**SIZES, "hidden_size": 48})
    with pytest.raises(UserError, match="of another model"):
        decode(LlamaForCausalLM(other), ask(1), HeadsDrafter(folder=str(tmp_path / "heads")), [3])
    (tmp_path / "heads" / heads.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(UserError, match="holds no heads that can be read"):
        heads.load(str(tmp_path / "heads"), model.config)
    with pytest.raises(UserError, match="after layer 6 of a model that has 6"):
        heads.make(model.config, "firp", {"layer": 6})
    with pytest.raises(UserError, match="no 'eagle' in rollout/heads"):
        heads.make(model.config, "eagle", {})
