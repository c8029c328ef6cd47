"""Ready-made reward models: tiny random ones of their shapes, against what their authors compute, written out here.

What stands here is transformers and torch alone, one solution at a time and as far as it is asked about: whole conversations
with the turns' ends, no packing. Real weights are not read, so that these shapes are those of the published models is not
proved here; docs/reward_models.md says where it was looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from rewards.judge import load_judge
from rewards.judged_text import Asked
from rlcore.cli.reward import evaluate
from rlcore.errors import UserError

ODD = "so 2 <extra_0> ки\n+ 4. 🙂"  # a step may hold whatever is written after steps
ASKED = [
    Asked("How much is 1+1?", (), ("We add.",)),
    Asked("How much is 1+1?", ("We add.",), (ODD,)),
    Asked("How much is 1+1?", ("We add.", ODD), (" It is 2. ",)),
    Asked("How much is 1+1?", ("We add.",), (ODD, "It is 3.")),  # two steps, merged
    Asked("And 2+2?", (), ("4.",)),
    Asked("How much is 1+1?", (), ("We add.",)),  # the same again
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<extra_0>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]


@dataclass(frozen=True)
class Shape:
    spec: dict[str, Any]  # of the judge
    plain: Callable[[Asked, int], float]  # log-odds, with so many padding tokens before


def forward(model: Any, ids: list[int], padding: int) -> Any:
    """What the model makes of the tokens, padded on the left; in the outputs the padding is still there."""
    tokens = torch.tensor([[0] * padding + ids])
    mask = torch.tensor([[0] * padding + [1] * len(ids)])
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask)


def last(ids: list[int], token: int) -> int:
    return max(i for i, each in enumerate(ids) if each == token)


def chat(tokenizer: PreTrainedTokenizerFast, *turns: tuple[str, str]) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": role, "content": said} for role, said in turns], tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids


def log_odds(logits: Tensor, right: int, wrong: int) -> float:
    p = logits[[wrong, right]].softmax(-1)
    return float(p[1].log() - p[0].log())


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level, as Qwen's and Llama 3's, with a token for a full stop and the line break after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=257, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([".\n"] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=template
    )


def sentence_tokenizer() -> PreTrainedTokenizerFast:
    """As Mistral's: spaces are ▁ and belong to the word after them; one is put before the text, and a token before that."""
    characters = sorted({*"▁", *"".join(map(str, ASKED)), *"Step :ки+-\n🙂"})
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *characters, "ки", "▁ки", "▁+", "▁-"])}
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=400,
        initializer_range=0.3,  # so that scores differ
        tie_word_embeddings=False,
    )


def write(folder: Path, tokenizer: PreTrainedTokenizerFast, model: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_with_head(folder: Path, architecture: str, head: dict[str, tuple[int, ...]]) -> tuple[str, Any, dict[str, Tensor]]:
    """As a class that is code of the checkpoint's own: a Qwen2 and a head. Where it is, the body as loaded, the head."""
    tokenizer = byte_tokenizer(CHATML)
    config = Qwen2Config(**sizes(tokenizer))
    weights = {f"model.{name}": tensor for name, tensor in Qwen2Model(config).state_dict().items()}
    made = {name: torch.randn(shape) for name, shape in head.items()}
    folder.mkdir()
    save_file(weights | made | {"lm_head.weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    remote = {"architectures": [architecture], "auto_map": {"AutoModel": f"modeling.{architecture}"}}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | remote))
    tokenizer.save_pretrained(folder)
    body = Qwen2Model(config)
    body.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    return str(folder), body.eval(), load_file(folder / "model.safetensors")


def qwen_math_prm(folder: Path) -> Shape:
    head = {"score.0.weight": (16, 16), "score.0.bias": (16,), "score.2.weight": (2, 16), "score.2.bias": (2,)}
    location, body, weights = write_with_head(folder, "Qwen2ForProcessRewardModel", head)
    tokenizer = AutoTokenizer.from_pretrained(location)

    def plain(asked: Asked, padding: int) -> float:
        solution = "".join(step + "<extra_0>" for step in asked.previous + asked.current)
        system = "Please reason step by step, and put your final answer within \\boxed{}."
        ids = chat(tokenizer, ("system", system), ("user", asked.problem), ("assistant", solution))
        hidden = forward(body, ids, padding).last_hidden_state[0, padding + last(ids, SPECIAL_IDS["<extra_0>"])]
        inner = (weights["score.0.weight"] @ hidden + weights["score.0.bias"]).relu()
        return log_odds(weights["score.2.weight"] @ inner + weights["score.2.bias"], 1, 0)

    return Shape({"name": "qwen_math_prm", "model": location}, plain)


def skywork_prm(folder: Path) -> Shape:
    head = {"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,)}
    location, body, weights = write_with_head(folder, "Qwen2ForPrmModel", head)
    tokenizer = AutoTokenizer.from_pretrained(location)

    def plain(asked: Asked, padding: int) -> float:
        ids = tokenizer.encode("<|endoftext|>" + asked.problem + "\n")
        for step in asked.previous + asked.current:
            ids += tokenizer.encode(step) + tokenizer.encode("\n")
        hidden = forward(body, ids, padding).last_hidden_state[0, -1]
        reward = torch.sigmoid(weights["v_head.summary.weight"] @ hidden + weights["v_head.summary.bias"]).double()
        return float(reward.log() - (1 - reward).log())

    return Shape({"name": "skywork_prm", "model": location}, plain)


def pure_prm(folder: Path) -> Shape:
    tokenizer = byte_tokenizer(None)
    location = write(folder, tokenizer, Qwen2ForTokenClassification(Qwen2Config(**sizes(tokenizer))))
    model = AutoModelForTokenClassification.from_pretrained(location).eval()

    def plain(asked: Asked, padding: int) -> float:
        ids = tokenizer.encode(asked.problem)
        for step in asked.previous + asked.current:
            ids += tokenizer.encode(step.rstrip()) + tokenizer.encode("\n")
        return log_odds(forward(model, ids, padding).logits[0, -1], 1, 0)

    return Shape({"name": "pure_prm", "model": location}, plain)


def math_shepherd(folder: Path) -> Shape:
    tokenizer = sentence_tokenizer()
    location = write(folder, tokenizer, LlamaForCausalLM(LlamaConfig(**sizes(tokenizer))))
    model = AutoModelForCausalLM.from_pretrained(location).eval()
    right, wrong = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]

    def plain(asked: Asked, padding: int) -> float:
        steps = (f"Step {i}: {step.strip()} ки" for i, step in enumerate(asked.previous + asked.current, 1))
        ids = tokenizer.encode(asked.problem + " " + "\n".join(steps))
        return log_odds(forward(model, ids, padding).logits[0, padding + last(ids, tag)], right, wrong)

    return Shape({"name": "math_shepherd", "model": location}, plain)


def rlhflow(folder: Path) -> Shape:
    tokenizer = byte_tokenizer(LLAMA)
    location = write(folder, tokenizer, LlamaForCausalLM(LlamaConfig(**sizes(tokenizer))))
    model = AutoModelForCausalLM.from_pretrained(location).eval()
    [right], [wrong] = tokenizer.encode("+"), tokenizer.encode("-")

    def plain(asked: Asked, padding: int) -> float:
        first, *others = asked.previous + asked.current
        said = (f"{asked.problem} {first}", *others)  # the template strips them
        ids = chat(tokenizer, *[turn for text in said for turn in (("user", text), ("assistant", "+"))])
        assert tokenizer.convert_ids_to_tokens(ids[-2:]) == ["+", "<|eot|>"]
        return log_odds(forward(model, ids, padding).logits[0, -3], right, wrong)

    return Shape({"name": "rlhflow", "model": location}, plain)


def eurus_prm(folder: Path) -> Shape:
    tokenizer = byte_tokenizer(CHATML)
    config = Qwen2Config(**sizes(tokenizer))
    places = [write(folder / name, tokenizer, Qwen2ForCausalLM(config)) for name in ("prm", "reference")]
    pair = [AutoModelForCausalLM.from_pretrained(place).eval() for place in places]

    def plain(asked: Asked, padding: int) -> float:
        solution = "".join(step.strip() + "\n\n" for step in asked.previous + asked.current)
        ids = chat(tokenizer, ("user", asked.problem), ("assistant", solution))
        begin, end = len(chat(tokenizer, ("user", asked.problem), ("assistant", ""))) - 2, len(ids) - 2  # <|im_end|>, \n
        sums = []
        for model in pair:
            logprobs = forward(model, ids, padding).logits[0, padding:].log_softmax(-1)
            sums.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(begin, end)))
        return 0.05 * (sums[0] - sums[1])

    return Shape({"name": "eurus_prm", "model": places[0], "reference": places[1], "beta": 0.05}, plain)


def sequence_classifier(folder: Path) -> Shape:
    """A decoder, with its padding token at the end of every turn, where it is not read."""
    tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    config = LlamaConfig(**sizes(tokenizer), num_labels=1, pad_token_id=SPECIAL_IDS["<|im_end|>"])
    location = write(folder, tokenizer, LlamaForSequenceClassification(config))
    model = AutoModelForSequenceClassification.from_pretrained(location).eval()

    def plain(asked: Asked, padding: int) -> float:
        ids = chat(tokenizer, ("user", asked.problem), ("assistant", "\n\n".join(asked.previous + asked.current)))
        return float(forward(model, ids, padding).logits[0, 0])

    return Shape({"name": "sequence_classifier", "model": location}, plain)


def sequence_classifier_encoder(folder: Path) -> Shape:
    tokenizer = byte_tokenizer(None)
    shared = {name: value for name, value in sizes(tokenizer).items() if name != "num_key_value_heads"}
    location = write(folder, tokenizer, BertForSequenceClassification(BertConfig(**shared, num_labels=1)))
    model = AutoModelForSequenceClassification.from_pretrained(location).eval()

    def plain(asked: Asked, padding: int) -> float:
        ids = tokenizer.encode(f"{asked.problem}\n" + "\n".join(asked.previous + asked.current))
        return float(forward(model, ids, 0).logits[0, 0])  # its positions are counted from the left

    options = {"template": "{problem}\n{current}", "separator": "\n"}
    return Shape({"name": "sequence_classifier", "model": location, **options}, plain)


SPECIAL_IDS = dict(zip(SPECIAL, byte_tokenizer(None).convert_tokens_to_ids(SPECIAL), strict=True))
MAKERS = (
    qwen_math_prm,
    skywork_prm,
    pure_prm,
    math_shepherd,
    rlhflow,
    eurus_prm,
    sequence_classifier,
    sequence_classifier_encoder,
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shape]:
    folder = tmp_path_factory.mktemp("judges")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {make.__name__: make(folder / make.__name__) for make in MAKERS}


@pytest.fixture(params=[make.__name__ for make in MAKERS])
def shape(request: pytest.FixtureRequest, shapes: dict[str, Shape]) -> Shape:
    return shapes[request.param]


@pytest.mark.parametrize("padding", [0, 3])
def test_scores_are_those_of_a_plain_computation(shape: Shape, padding: int) -> None:
    expected = [shape.plain(asked, padding) for asked in ASKED]
    assert load_judge(shape.spec).log_odds(ASKED) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert len({round(value, 3) for value in expected}) == 5  # they can be told apart


def test_what_is_judged_together_changes_no_score(shape: Shape) -> None:
    """Nor in what order, in passes of what size, or on which side the tokenizer would pad."""
    judge: Any = load_judge(shape.spec)
    together = judge.log_odds(ASKED)
    same = pytest.approx(together, abs=1e-5, rel=1e-5)
    assert [value for asked in ASKED for value in judge.log_odds([asked])] == same
    assert judge.log_odds(ASKED[::-1])[::-1] == same
    assert load_judge(shape.spec | {"tokens": 1}).log_odds(ASKED) == same
    judge.tokenizer.padding_side = "left"
    assert judge.log_odds(ASKED) == same


def test_steps_of_one_solution_are_read_in_one_text(shape: Shape) -> None:
    judge: Any = load_judge(shape.spec)
    assert len(judge.rows(ASKED)) == (len(ASKED) if shape.spec["name"] == "sequence_classifier" else 3)


def test_steps_that_are_numbered_stay_so(shapes: dict[str, Shape]) -> None:
    judge = load_judge(shapes["math_shepherd"].spec)
    numbered = [Asked("1+1?", ("Step 1: We add.",), ("Step 2: It is 2.",))]
    assert judge.log_odds(numbered) == judge.log_odds([Asked("1+1?", ("We add.",), ("It is 2.",))])


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("qwen_math_prm", "tiny", "has no token '<extra_0>': it is no Qwen2.5-Math-PRM"),
        ("qwen_math_prm", "pure_prm", "has no chat template: it is no Qwen2.5-Math-PRM"),
        ("qwen_math_prm", "skywork_prm", "has no weights score.0.bias, score.0.weight, score.2.bias of the right shape"),
        ("math_shepherd", "tiny", "has no token 'ки': it is no Math-Shepherd"),
        ("rlhflow", "tiny", "has no chat template: it is no RLHFlow PRM"),
        ("rlhflow", "skywork_prm", "has no weights lm_head.weight of the right shape: it is no RLHFlow PRM"),
        ("skywork_prm", "tiny", "has no token for the beginning of a text: it is no Skywork-o1-Open-PRM"),
        ("skywork_prm", "qwen_math_prm", "has no weights v_head.summary.bias, v_head.summary.weight of the right shape"),
        ("eurus_prm", "tiny", "has no chat template: it is no EurusPRM"),
        ("pure_prm", "tiny", "has no weights score.bias, score.weight of the right shape: it is no token classifier"),
        ("sequence_classifier", "tiny", "has no chat template: give `template`"),
        ("sequence_classifier", "rlhflow", "has no weights score.weight of the right shape: it is no sequence classifier"),
        ("trained", "tiny", "it is no reward model of `job: reward_model`"),
    ],
)
def test_a_model_of_another_shape_is_refused(name: str, of: str, message: str, shapes: dict[str, Shape], tiny: Path) -> None:
    location = str(tiny) if of == "tiny" else shapes[of].spec["model"]
    with pytest.raises(UserError, match=message):
        load_judge({"name": name, "model": location, **({"reference": location} if name == "eurus_prm" else {})})


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        ("sequence_classifier", LlamaForSequenceClassification, "has no single score, but 3"),
        ("pure_prm", Qwen2ForTokenClassification, "has no two labels, but 3"),
    ],
)
def test_labels_of_another_number_are_refused(name: str, architecture: Any, message: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    model = architecture(architecture.config_class(**sizes(tokenizer), num_labels=3))
    with pytest.raises(UserError, match=message):
        load_judge({"name": name, "model": write(tmp_path / "three", tokenizer, model)})


def test_a_reference_with_other_tokens_is_refused(shapes: dict[str, Shape], tiny: Path) -> None:
    with pytest.raises(UserError, match="has other tokens than"):
        load_judge(shapes["eurus_prm"].spec | {"reference": str(tiny)})


def test_weights_that_can_hold_code_are_refused(shapes: dict[str, Shape], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(None)
    model = AutoModel.from_config(Qwen2Config(**sizes(tokenizer)))
    location = write(tmp_path / "model", tokenizer, model)
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no safetensors weights: convert them"):
        load_judge({"name": "pure_prm", "model": location})


def test_of_a_text_beyond_the_context_there_is_no_score(shape: Shape) -> None:
    """Nor is there another one of what it is asked together with."""
    judge, heard = load_judge(shape.spec), list[int]()
    found = judge.log_odds([ASKED[0]._replace(problem="1+1" * 200), ASKED[0]], heard.append)
    assert found[0] is None
    assert found[1] == pytest.approx(judge.log_odds(ASKED[:1])[0], abs=1e-5)
    assert sum(heard) == 2


def test_they_are_measured_on_the_command_line(shapes: dict[str, Shape], tmp_path: Path) -> None:
    data, found = "{name: chain_steps, count: 4}", tmp_path / "found.json"
    spec = dict(shapes["eurus_prm"].spec)
    model = spec.pop("model")
    evaluate(model, data, 0.5, False, str(tmp_path / "plot.svg"), str(found), json.dumps(spec))
    result = json.loads(found.read_text())
    assert result["solutions"] == 4
    assert "eurus_prm" in result["judge"]
    with pytest.raises(UserError, match="say which model with --model"):
        evaluate(model, data, 0.5, False, "", "", json.dumps(spec | {"model": model}))
