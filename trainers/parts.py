"""The parts of the loop, from a recipe and what was planned for it."""

from __future__ import annotations

from contextlib import ExitStack

from rewards.process.prime import Prime
from rewards.process.process import Process
from rlcore import models
from rlcore.prompts import Prompter
from rlcore.protocols import Engine, Learner, Reference
from rlcore.recipe.schema import RL
from rollout.anytime import AnytimeEngine, forced
from rollout.tree import TreeEngine
from trainers.build import build_codec, build_critic, build_engine, build_implicit, build_learner, build_policy, build_reference
from trainers.compression import CompressedLearner, CompressedRollouts, Uncompressed
from trainers.critic import ActorCritic, Critic
from trainers.distribute import build_critic_group, build_group, build_implicit_group, build_judges, build_pool, refuse_few_gpus
from trainers.group import LearnerGroup
from trainers.guard import Guard
from trainers.loop import Parts
from trainers.monitor import build_monitor
from trainers.plan import Plan, longest_prompt
from trainers.prepare import Prepare, Valuer
from trainers.sampler import Sampler
from trainers.shared_critic import SharedActorCritic


def build_parts(recipe: RL, asked: Plan, location: str, ending: ExitStack) -> Parts:
    """Everything the loop needs, with the models loaded, here or on the cluster that this process is connected to; `ending`
    releases it. Raises UserError, before that, for prompts that do not fit."""
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    asked.rewards.begin(tokenizer)
    prompter = Prompter(recipe.prompt, tokenizer)
    longest_prompt(recipe, asked, prompter, models.context(location, recipe.trust_remote_code))
    anytime, tree = recipe.rollout.anytime, recipe.rollout.tree
    between = forced(anytime, prompter, recipe.rollout.max_new_tokens) if anytime else None
    learned_rewards = [component for component in asked.rewards.components.values() if isinstance(component, Prime)]
    judging_rewards = [component for component in asked.rewards.components.values() if isinstance(component, Process)]
    engine: Engine
    learner: Learner
    reference: Reference | None
    critic: Critic | LearnerGroup | None
    if recipe.cluster is None:
        for process in judging_rewards:
            process.judge.load()
        engine = build_engine(recipe, location, tokenizer, prompter)
        codec = build_codec(recipe, location)
        policy = build_policy(recipe, location)
        learner = build_learner(recipe, policy, tokenizer, asked.objective, codec=codec)
        reference = build_reference(recipe, location, policy)
        critic = build_critic(recipe, location, tokenizer) if recipe.algorithm.has_own_critic else None
        for reward in learned_rewards:
            reward.learn_with(*build_implicit(recipe, reward, location, tokenizer))
    else:
        refuse_few_gpus(recipe, recipe.cluster, len(learned_rewards), len(judging_rewards))
        learner, reference = build_group(recipe, recipe.cluster, location, ending)
        critic = build_critic_group(recipe, recipe.cluster, location, ending) if recipe.algorithm.has_own_critic else None
        for reward in learned_rewards:
            reward.learn_with(*build_implicit_group(recipe, recipe.cluster, reward, location, ending))
        for process in judging_rewards:
            process.judge_with(build_judges(recipe, recipe.cluster, process.make_judge, ending))
        engine = build_pool(recipe, recipe.cluster, location, tokenizer, prompter)
    ending.callback(engine.close)
    sampled_by = engine if tree is None else TreeEngine(engine, leaves=recipe.rollout.samples, **tree.model_dump())
    if anytime is not None and between is not None:
        sampled_by = AnytimeEngine(engine, tokenizer, anytime, between)
    sampler = Sampler(recipe, asked.problems, prompter, sampled_by, asked.rewards)
    algorithm = recipe.algorithm
    valuer: Valuer | None = critic
    if algorithm.critic and algorithm.critic.shared:
        assert isinstance(learner, SharedActorCritic | LearnerGroup)
        valuer = learner
    prepare = Prepare(sampler.select, asked.advantage, reference, algorithm.mask_truncated, algorithm.kl, valuer)
    if critic is not None:
        assert algorithm.critic is not None
        learner = ActorCritic(learner, critic, algorithm.critic.warmup_steps)
    compression = Uncompressed()
    if recipe.rollout.compression is not None:
        learner = CompressedLearner(learner, Guard(recipe.rollout.compression))
        compression = CompressedRollouts(learner, engine, recipe.dtype)
    monitor = build_monitor(recipe, asked.rewards)
    return Parts(sampler, engine, asked.rewards, prepare, learner, recipe.dtype, monitor, compression)
