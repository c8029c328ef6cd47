"""What `rlcore train --dry-run` says of a recipe: its data, the first prompt as tokens, memory and the token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlcore import models, plugins
from rlcore.data.mixture import load as load_problems
from rlcore.prompts import Prompter
from rlcore.recipe.estimate import Shape, memory, token_budget
from rlcore.recipe.schema import RL, Recipe
from rlcore.toy import warmstart
from rlcore.types import Problem
from trainers.plan import plan


def preview(recipe: Recipe) -> Iterator[str]:
    """Lines to print. Everything that a launch would refuse before loading the model is refused here too."""
    problems, described = _problems(recipe)
    yield from described
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    ids = prompter.render(problems[0])
    yield f"first prompt, {len(ids)} tokens: {prompter.text(problems[0])!r}"
    yield f"token ids: {list(ids)}"
    if isinstance(recipe, RL):
        longest = max(len(prompter.render(problem)) for problem in problems[:1000])
        budget = token_budget(recipe, longest)
        yield from (f"{name}: {count:,}" for name, count in budget.items())
        spec = recipe.rollout.engine
        plugins.bind("rollout.engines", spec.name, spec.options)
        engine = plugins.find("rollout.engines", spec.name)
        need = memory(recipe, _shape(location, recipe.trust_remote_code), longest, engine)
        yield f"memory at worst: {_size(sum(need.values()))}, of which"
        yield from (f"  {name}: {_size(count)}" for name, count in need.items())


def _problems(recipe: Recipe) -> tuple[Sequence[Problem], Sequence[str]]:
    if not isinstance(recipe, RL):
        problems = load_problems(recipe.data)
        return problems, [f"{len(problems)} training problems"]
    asked = plan(recipe)
    asked.rewards.close()
    return asked.problems.problems, asked.problems.describe()


def _shape(location: str, trust_remote_code: bool) -> Shape:
    """The model's dimensions from its configuration alone; no weights are made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters,
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        heads * head,
        getattr(config, "max_position_embeddings", 0),
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
