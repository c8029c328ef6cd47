"""`job: preference`: its losses by hand, what it learns from, resuming, and how it is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlcore import jobs
from rlcore.conversation import ConversationPrompter
from rlcore.data.preferences import Message
from rlcore.data.preferences import Preference as Pairing
from rlcore.errors import UserError
from rlcore.preview import preview
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import Example, Preference, Prompt
from rlcore.types import Problem
from tests.conftest import broken_off
from tests.trainers.test_loop import metrics
from trainers.preference.losses.dpo import Dpo
from trainers.preference.losses.ipo import Ipo
from trainers.preference.losses.simpo import Simpo
from trainers.preference.pairs import Material, material

SAID = Prompt(template="so {problem}?", system="calm")
SMALL = ["batch_size=16", "epochs=2", "optimizer={learning_rate: 0.002}", "validate_every=4", "threads=1"]


def easy(*, count: int = 120) -> list[Pairing]:
    """What is liked is the answer that begins with the letter of its prompt."""
    told = [("ab"[i % 2], "ba"[i % 2]) for i in range(count)]
    return [
        Pairing(str(i), (Message("user", f"{letter} {i}"),), f"{letter}{i % 10}", f"{other}{i % 10}{i % 7}")
        for i, (letter, other) in enumerate(told)
    ]


def broken() -> list[Pairing]:
    asked = (Message("user", "12345"),)
    return [
        *easy(count=30),
        Pairing("same", asked, "1", "1", {"unusable": "chosen and rejected are the same"}),
        Pairing("long", asked, "1" * 30, "2" * 30),
        Pairing("alike where cut", asked, "1" * 30, "1" * 40),
    ]


def arguments(tiny: Path, output: Path, *overrides: str, data: str = "easy") -> list[str]:
    recipe = output.parent / "preference.yaml"
    recipe.write_text(f"job: preference\nmodel: {tiny}\ndata: {{name: '{__name__}:{data}'}}\noutput: {output}\n")
    return [str(recipe), *SMALL, *overrides]


def recipe_of(*given: str) -> Preference:
    recipe = load(list(given)).recipe
    assert isinstance(recipe, Preference)
    return recipe


def test_losses_by_hand() -> None:
    """Of answers of two tokens and of one, with the numbers of the losses' docstrings."""
    logprobs, reference = torch.tensor([[-2.0, -1], [-3, 9]]), torch.tensor([[-3.0, -2], [-2, 7]])
    mask = torch.tensor([[1.0, 1], [1, 0]])
    assert Dpo(beta=0.1).reward(logprobs, reference, mask).tolist() == pytest.approx([0.2, -0.1])
    assert Ipo(beta=0.1).reward(logprobs, reference, mask).tolist() == pytest.approx([1.0, -1.0])
    assert Simpo(beta=2.0).reward(logprobs, None, mask).tolist() == pytest.approx([-3.0, -6.0])
    assert Dpo(beta=0.1)(torch.tensor([0.3])).item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert Dpo(beta=0.1)(torch.tensor([0.3])).item() == pytest.approx(0.554, abs=5e-4)
    assert Ipo(beta=0.1)(torch.tensor([4.0, 5.5])).tolist() == pytest.approx([1.0, 0.25])
    assert Simpo(gamma=0.5)(torch.tensor([1.0])).item() == pytest.approx(0.474, abs=5e-4)


@pytest.fixture(scope="module", params=["dpo", "ipo", "simpo"])
def trained(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference") / "run"
    jobs.run(load(arguments(tiny, folder, f"loss={request.param}", "epochs=4")), resume=False)
    return folder


def test_it_learns_what_can_be_learned(trained: Path) -> None:
    rows = {row["step"]: row for row in metrics(trained) if "validation/accuracy" in row}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["validation_accuracy"] > 0.9
    assert summary["written_step"] == max(rows, key=lambda step: rows[step]["validation/accuracy"])
    assert summary["validation_margin"] == pytest.approx(rows[summary["written_step"]]["validation/margin"], rel=1e-5)
    assert summary["validation_pairs"] + summary["train_pairs"] == 120


def test_where_nothing_is_better_than_the_start_it_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step is written, and named; as good as the start is not better."""
    found = iter([0.5, 0.25, 0.5, *[0.25] * 99])
    monkeypatch.setattr("trainers.preference.trainer.validated", lambda *_: {"validation/accuracy": next(found)})
    folder = tmp_path / "run"
    summary = jobs.run(load(arguments(tiny, folder)), resume=False)
    assert summary["written_step"] == 14
    assert "validation/accuracy was never above what it was before training: step 14, the last" in capsys.readouterr().err
    written, last = (
        load_file(at / "model.safetensors") for at in (folder / "model", folder / "checkpoints/step-14/policy/model")
    )
    assert all(torch.equal(written[name], last[name]) for name in last)


def test_a_policy_that_has_learned_nothing_prefers_nothing(trained: Path) -> None:
    """To its reference; SimPO has none."""
    first, told = metrics(trained)[0], json.loads((trained / "model" / "implicit_reward.json").read_text())
    if told["reward"]["relative"]:
        assert first["validation/margin"] == first["validation/reward/chosen"] == 0
    assert first["step"] == 0


def test_the_checkpoint_is_a_plain_one(trained: Path) -> None:
    _, info = AutoModelForCausalLM.from_pretrained(trained / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_adapters_learn_and_plain_weights_are_written(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    jobs.run(load(arguments(tiny, folder, "lora={rank: 8}", "optimizer.learning_rate=0.01", "epochs=4")), resume=False)
    assert json.loads((folder / "summary.json").read_text())["validation_accuracy"] > 0.9
    assert metrics(folder)[0]["validation/margin"] == 0
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.endswith("_proj.weight")
    }


def test_neither_micro_batches_nor_their_order_change_what_is_learned(tiny: Path, tmp_path: Path) -> None:
    """Pairs are never cut apart, also where the budget has no room for one."""

    def losses(name: str, *overrides: str) -> list[float]:
        jobs.run(load(arguments(tiny, tmp_path / name, "epochs=1", *overrides)), resume=False)
        return [row["loss"] for row in metrics(tmp_path / name) if "loss" in row]

    whole = losses("whole")
    for budget in (1, 50):
        assert losses(f"cut-{budget}", f"update.tokens_per_microbatch={budget}") == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("overrides", [[], ["latent={codes: 4, width: 16}"]])
def test_a_resumed_run_is_the_unbroken_one(overrides: list[str], tiny: Path, tmp_path: Path) -> None:
    """To the bit."""

    def run(name: str, *, resume: bool = False) -> None:
        jobs.run(load(arguments(tiny, tmp_path / name, "checkpoint.every=3", *overrides)), resume)

    run("unbroken")
    with broken_off(6):
        run("broken")
    run("broken", resume=True)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "unbroken")


def test_prompts_are_held_out(tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    found = material_of(tiny, tmp_path, tokenizer, "validation=0.3")
    assert not {pair.prompt for pair in found.train} & {pair.prompt for pair in found.validation}
    assert 20 < len(found.validation) < 55


def test_prompts_that_are_evaluated_on_are_taken_out(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    found = material_of(tiny, tmp_path, tokenizer, f"evaluated_on={{name: '{__name__}:easy', count: 40}}")
    assert "80 of 120 remain" in capsys.readouterr().err
    assert (len(found.train), len(found.validation)) == (80, 40)
    with pytest.raises(UserError, match=r"0 pairs are left to learn from .* all of their prompts are evaluated on too"):
        material_of(tiny, tmp_path, tokenizer, f"evaluated_on={{name: '{__name__}:easy', count: 120}}")


def test_what_is_cut_or_dropped_is_counted(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    prompter = ConversationPrompter(Prompt(), tokenizer)
    recipe = recipe_of(*arguments(tiny, tmp_path / "run", "max_length=16", data="broken"))
    found = material(recipe, prompter, 4096)
    told = capsys.readouterr().err
    assert "1 of 33 pairs dropped: chosen and rejected are the same" in told
    assert "16 tokens leave nothing of them, or nothing that differs" in told
    [cut] = [pair for pair in (*found.train, *found.validation) if pair.id == "long"]
    assert len(cut.prompt) + len(cut.chosen) == 16
    assert tokenizer.eos_token_id not in cut.chosen
    [whole] = [pair for pair in (*found.train, *found.validation) if pair.id == "3"]
    assert whole.chosen[-1] == tokenizer.eos_token_id
    longer = recipe_of(*arguments(tiny, tmp_path / "run", "max_length=400", data="broken"))
    assert material(longer, prompter, 16) == found  # as much as the model can read


def material_of(tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, *overrides: str) -> Material:
    recipe = recipe_of(*arguments(tiny, tmp_path / "run", *overrides))
    return material(recipe, ConversationPrompter(recipe.prompt, tokenizer), 4096)


def test_a_prompt_is_what_a_problem_would_be(tokenizer: PreTrainedTokenizerBase) -> None:
    """With a chat template and without."""
    templated = load_copy(tokenizer)
    templated.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    for each in (tokenizer, templated):
        for spec in (Prompt(), SAID, SAID.model_copy(update={"examples": [Example(prompt="1+1=?", answer="2")]})):
            one = ConversationPrompter(spec, each).render_conversation([Message("user", "3+4=?")])
            assert one == Prompter(spec, each).render(Problem("p", "3+4=?", "7"))
    said = [Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert ConversationPrompter(SAID, templated).conversation(said) == "s:be brief;u:a;a:b;u:so c?;a:"
    assert ConversationPrompter(SAID, tokenizer).conversation(said) == "be brief\n\na\nb\n\nso c?\n"


def test_a_system_message_leaves_the_examples(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = SAID.model_copy(update={"examples": [Example(prompt="1+1=?", answer="2")]})
    said = ConversationPrompter(shown, tokenizer).conversation([Message("system", "be brief"), Message("user", "c")])
    assert said == "be brief\n\nso 1+1=??\n2\n\nso c?\n"


def load_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    import copy

    return copy.deepcopy(tokenizer)


def test_the_dry_run_says_what_would_be_learned(tiny: Path, tmp_path: Path) -> None:
    lines = list(preview(recipe_of(*arguments(tiny, tmp_path / "run"))))
    assert any("training pairs" in line for line in lines)
    assert any(line.startswith("rejected, ") for line in lines)
    assert "steps: 14" in lines
    assert any(line.startswith("memory of this process, at worst: ") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.epochs=2"], "a batch of pairs is one optimiser step"),
        (["loss=dop"], "there is no 'dop' in trainers/preference/losses; did you mean 'dpo'"),
        (["loss={gamma: 1}"], "'dpo' has no option 'gamma'"),
        (["data={name: chain_steps, count: 3}"], "chain_steps holds no preference pairs, but LabelledSolutions"),
        (["max_length=4"], "0 pairs are left to learn from"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        jobs.run(load(arguments(tiny, tmp_path / "run", *overrides)), resume=False)
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_toy_runs(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = ["data.count=40", "evaluated_on.count=20", "epochs=1", "batch_size=20", "threads=1"]
    summary = jobs.run(load(["lpc_chain", f"model={tiny}", f"output={folder}", *small]), resume=False)
    assert summary["validation_pairs"] == 20
    assert 1 <= summary["validation_codes_perplexity"] <= 8 + 1e-9
    assert summary["validation_codes_information"] <= summary["validation_codes_factor_entropy"]
    [first, *_] = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert first["factor"] in ("brief", "checked", "right", "repaired")
    assert sum(first["prior"]) == pytest.approx(1)


def test_the_recipe_for_ultrafeedback_runs(tiny: Path, tmp_path: Path) -> None:
    """On pairs of its shape."""
    asked = [{"role": "user", "content": "say a"}]
    rows = [
        {
            "prompt": f"say {i}",
            "chosen": [{**asked[0], "content": f"say {i}"}, {"role": "assistant", "content": f"a{i}"}],
            "rejected": [{**asked[0], "content": f"say {i}"}, {"role": "assistant", "content": f"b{i}"}],
            "score_chosen": 9.0,
        }
        for i in range(60)
    ]
    (tmp_path / "prefs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    small = ["dtype=float32", "validation=0.2", "batch_size=20", "threads=1", "max_length=64"]
    given = ["dpo_ultrafeedback", f"model={tiny}", f"data.path={tmp_path / 'prefs.jsonl'}", f"output={tmp_path / 'run'}"]
    summary = jobs.run(load([*given, *small]), resume=False)
    assert summary["train_pairs"] + summary["validation_pairs"] == 60
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
