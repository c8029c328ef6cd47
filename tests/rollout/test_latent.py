"""Models with latent codes: what engines sample from is softmax((W (h + z)) / T), with the code that each request asks for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.latent import LatentCodes, load_latent
from rlcore.models import ModelSpec
from rlcore.protocols import Engine
from rlcore.types import Code, Completion, Request, Sampling
from rollout.drafters.ngram import Ngram
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm
from rollout.latent import CodeChooser, language_head
from rollout.sync import weight_update

K = 4
PROMPTS = [(10, 11, 12), (20, 21), (13, 14, 15, 16, 17)]
CODES: Sequence[Code | None] = (None, "expected", "sampled", 0, 3)


VLLM = pytest.param(Vllm, marks=pytest.mark.xdist_group("vllm"))


@pytest.fixture(scope="session")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with codes that change what it says."""
    folder = tmp_path_factory.mktemp("latent") / "model"
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    latent = LatentCodes(64, K, 8)
    torch.nn.init.normal_(latent.codebook, std=3.0)
    torch.nn.init.normal_(latent.prior[2].weight, std=3.0)  # a prior that tells prompts apart
    latent.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session", params=[Transformers, VLLM], ids=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Engine]:
    """Of the session: closing a vLLM engine ends the process group that those of other tests work in."""
    options = {"batch_size": 4} if request.param is Transformers else {"kv_cache_gb": 0.1}
    engine = request.param(ModelSpec(str(folder), device="cpu"), tokenizer, [tokenizer.eos_token_id], **options)
    yield engine
    engine.close()


def asked(temperature: float = 0.7) -> list[Request]:
    sampling = Sampling(temperature=temperature, max_new_tokens=12)
    return [
        Request(f"p{i}", j, 100 * i + j, prompt, sampling, code=code)
        for i, prompt in enumerate(PROMPTS)
        for j, code in enumerate(CODES)
    ]


@torch.no_grad()
def by_hand(model: PreTrainedModel, folder: Path, weights: torch.Tensor, completion: Completion) -> list[float]:
    latent = load_latent(str(folder))
    assert latent is not None
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    hidden = model.model(ids).last_hidden_state + weights @ latent.codebook
    logits = model.lm_head(hidden)[0, len(completion.prompt_ids) - 1 : -1] / completion.sampling.temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist()


def chooser(model: PreTrainedModel, folder: Path) -> CodeChooser:
    latent = load_latent(str(folder))
    assert latent is not None
    return CodeChooser(latent, model.get_decoder(), None)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_are_those_of_the_code_that_was_asked_for(
    engine: Engine, model: PreTrainedModel, folder: Path, temperature: float
) -> None:
    """To 1e-5, requests of different codes side by side, and more of them than rows at a time."""
    requests = asked(temperature)
    completions = engine.generate(requests)
    weights = chooser(model, folder).weights(requests)
    for completion, each in zip(completions, weights, strict=True):
        assert list(completion.logprobs) == pytest.approx(by_hand(model, folder, each, completion), abs=1e-5)
    wrong = by_hand(model, folder, weights[3], completions[4])
    assert list(completions[4].logprobs) != pytest.approx(wrong, abs=0.1)


def test_a_completion_goes_on_with_its_code(engine: Engine, model: PreTrainedModel, folder: Path) -> None:
    request = asked()[2]
    engine.submit([request])
    for _ in range(3):
        engine.poll()
    [begun] = engine.interrupt()
    assert begun.code == "sampled"
    [done] = engine.generate([begun.resumed()])
    assert done.token_ids[: len(begun.token_ids)] == begun.token_ids
    [weights] = chooser(model, folder).weights([request])
    assert list(done.logprobs) == pytest.approx(by_hand(model, folder, weights, done), abs=1e-5)


def test_what_would_forget_the_code_is_refused(engine: Engine, model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="depend on the latent code"):
        engine.logprobs([((1, 2), (3,))])
    with pytest.raises(UserError, match="served, not trained further"):
        engine.sync(weight_update(1, {}, lambda: []))
    with pytest.raises(UserError, match="code 7: this model has the codes 0 to 3"):
        engine.generate([Request("p", 0, 0, (1, 2), Sampling(), code=7)])


def test_codes_are_the_priors(model: PreTrainedModel, folder: Path) -> None:
    """Expected: p itself, whatever it is read beside; sampled: as often as p says, and by the request's seed alone."""
    choose = chooser(model, folder)
    expected = choose.weights([Request("p", 0, 0, prompt, Sampling()) for prompt in PROMPTS])
    for prompt, prior in zip(PROMPTS, expected, strict=True):
        hidden = model.model(torch.tensor([prompt])).last_hidden_state[:, -1]
        assert torch.allclose(choose.latent.log_prior(hidden).exp()[0], prior, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=0.05)
    many = [Request("p", 0, seed, PROMPTS[0], Sampling(), code="sampled") for seed in range(600)]
    drawn = choose.weights(many)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.allclose(drawn.mean(0), expected[0], atol=0.07)
    assert torch.equal(choose.weights(many[5:7]), drawn[5:7])


def test_codes_are_kept_to_the_bit(folder: Path, tmp_path: Path) -> None:
    latent = load_latent(str(folder))
    assert latent is not None
    latent.save(tmp_path)
    again = load_latent(str(tmp_path))
    assert again is not None
    assert again.sizes == {"hidden": 64, "codes": K, "width": 8}
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in latent.state_dict().items())
    assert load_latent(str(tmp_path / "nothing")) is None


def test_what_a_code_adds_is_what_the_head_makes_of_it(model: PreTrainedModel, folder: Path) -> None:
    """By hand: E = (1, 0; 0, 2) and W = (1, 2; 3, 4; 5, 6)."""
    latent = LatentCodes(2, 2, 1)
    latent.codebook.data = torch.tensor([[1.0, 0], [0, 2]])
    added = latent.logits(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    assert added.tolist() == [[1, 3, 5], [4, 8, 12]]
    assert torch.equal(language_head(str(folder)), model.lm_head.weight)


def test_speculative_decoding_is_refused(folder: Path) -> None:
    from rollout.latent_processor import LatentProcessor

    config = SimpleNamespace(speculative_config=object(), model_config=SimpleNamespace(model=str(folder)))
    with pytest.raises(UserError, match="cannot be decoded speculatively: leave the drafter out"):
        LatentProcessor(config, torch.device("cpu"), False)


def test_drafts_are_refused(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"with latent codes, as .* is: leave out the drafter"):
        Transformers(ModelSpec(str(folder), device="cpu"), tokenizer, [1], drafter=Ngram())


def test_a_plain_model_has_no_codes(tiny: Path, tokenizer: PreTrainedTokenizerBase, make: Callable) -> None:
    with pytest.raises(UserError, match="a model without latent codes"):
        Transformers(ModelSpec(str(tiny), device="cpu"), tokenizer, [1], code="sampled")
    with pytest.raises(UserError, match="a model without latent codes"):
        make("transformers")().submit([Request("p", 0, 0, (1, 2), Sampling(), code=0)])
