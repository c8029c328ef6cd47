"""What a recipe may say. One pydantic model per section; every key is declared here once, with its default and meaning.

Unknown keys are errors. `job` selects the recipe class, and with it the trainer.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from rlcore.errors import nearest
from rlcore.types import Sampling

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ClipLow = Annotated[float, Field(ge=0, lt=1)]  # how far below 1 a ratio may go
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Plugin(BaseModel):
    """A plugin by name, with its options beside it: `grpo`, or `{name: grpo, epsilon: 1.0e-4}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unless_named(default: str) -> BeforeValidator:
    """Options may be given without repeating the default's name: `loss: {clip_high: 0.28}`."""

    def complete(value: Any) -> Any:
        value = _named(value)
        return {"name": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(complete)


class Source(Plugin):
    """A data source (`rlcore/data/sources`) and its options; sources are mixed by weight."""

    weight: PositiveFloat = 1.0


SourceSpec = Annotated[Source, BeforeValidator(_named)]
Sources = Annotated[list[SourceSpec], Field(min_length=1), BeforeValidator(_listed)]


class Example(Section):
    prompt: str
    answer: str


class Prompt(Section):
    template: str = "{problem}"  # what the user says; {problem} is the problem's text, {budget} its `length_budget`
    system: str = ""
    examples: list[Example] = []  # few-shot turns before the problem
    chat: Literal["auto", "template", "plain"] = "auto"  # auto: the model's chat template where it has one
    enable_thinking: bool | None = None  # passed through to the chat template

    @model_validator(mode="after")
    def _has_problem(self) -> Prompt:
        if "{problem}" not in self.template:
            raise ValueError("the template must contain {problem}")
        return self

    @property
    def tells_budget(self) -> bool:
        return "{budget}" in self.template


def _without_budget(prompt: Prompt) -> Prompt:
    if prompt.tells_budget:
        raise ValueError("the template tells {budget}, and only a recipe of `job: rl` gives budgets (`length_budget`)")
    return prompt


PromptWithoutBudget = Annotated[Prompt, AfterValidator(_without_budget)]


class Decay(Section):
    """A length budget that shrinks from stage to stage of a run."""

    start: PositiveInt  # tokens
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.7  # from one stage to the next
    every: PositiveInt = 150  # steps of a stage


class LengthBudget(Section):
    """How many tokens the completions of a problem are to take: one of the two, see `rlcore/length_budget.py`. Prompts tell it
    by {budget}, and rewards read it."""

    uniform: tuple[PositiveInt, PositiveInt] | None = None  # drawn for each problem of each step: the lowest and the highest
    decay: Decay | None = None  # one for all problems of a step

    @model_validator(mode="after")
    def _possible(self) -> LengthBudget:
        if (self.uniform is None) == (self.decay is None):
            raise ValueError("a length budget is either `uniform` or `decay`: set one of them, and not (or null) the other")
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform {list(self.uniform)} is not [low, high] with low <= high")
        return self

    @property
    def largest(self) -> int:
        if self.decay:
            return self.decay.start
        assert self.uniform
        return self.uniform[1]


class Tree(Section):
    """The completions of a problem grow as a tree, whose branches share what they have in common; see `rollout/tree.py`."""

    segment: PositiveInt  # tokens from one node to the next
    first: PositiveInt = 2  # branches at the root
    branches: PositiveInt = 2  # at every other node, as long as there are leaves left for them


class Anytime(Section):
    """Thoughts are cut at budgets, and answers asked for at each; see `rollout/anytime.py`. `rollout.samples` is then thoughts
    times budgets times summaries."""

    budgets: Annotated[list[PositiveInt], Field(min_length=1)]  # tokens of a thought, rising
    summaries: Annotated[int, Field(ge=2)] = 4  # answers at each budget: one has nothing to be compared with
    summary_tokens: PositiveInt = 128  # of an answer, at most
    ends_thought: str = "</think>"  # what a thought says at its end; forced where it is cut
    interruption: str = "...\n\n...\n\n"  # forced before that
    begins_summary: str = "\n\n**Final Answer**\n"  # forced after it, also where a thought ended by itself

    @model_validator(mode="after")
    def _possible(self) -> Anytime:
        if self.budgets != sorted(set(self.budgets)):
            raise ValueError(f"budgets {self.budgets} do not rise: each is to be longer than the one before")
        if not self.ends_thought:
            raise ValueError("ends_thought is what a thought says at its end: it cannot be empty")
        return self

    @property
    def rows(self) -> int:
        """Completions of a thought."""
        return len(self.budgets) * self.summaries


class Drawing(Section):
    """From which distribution completions are sampled."""

    temperature: NonNegativeFloat = 1.0
    top_p: PositiveShare = 1.0
    top_k: NonNegativeInt = 0
    min_p: Share = 0.0
    top_h: PositiveShare = 1.0  # `rollout/top_h.py`
    top_h_normalized: bool = False  # by the entropy of what is left once renormalised
    max_new_tokens: PositiveInt = 512
    stop: list[str] = []

    @model_validator(mode="after")
    def _entropy_bounded(self) -> Drawing:
        if self.top_h_normalized and self.top_h == 1:
            raise ValueError("top_h_normalized says how top_h is reckoned: set top_h below 1")
        return self

    @property
    def sampling(self) -> Sampling:
        drawn = ("temperature", "top_p", "top_k", "min_p", "top_h", "top_h_normalized", "max_new_tokens")
        return Sampling(**{name: getattr(self, name) for name in drawn}, stop=tuple(self.stop))


class Decoding(Drawing):
    """Who samples completions, and from which distribution."""

    engine: Annotated[Plugin, _unless_named("transformers")] = Plugin(name="transformers")


class Guard(Section):
    """When rollouts are compressed no longer; see `trainers/guard.py`."""

    kl: PositiveFloat | None = 0.1  # nats a token, of KL(sampler ‖ learner), that end it at once
    gain: Literal["bytes", "time", "none"] = "bytes"  # what is to be saved; none: it need not pay
    patience: PositiveInt = 5  # steps over which it costs more than it saves


Methods = Annotated[list[Annotated[Plugin, BeforeValidator(_named)]], Field(min_length=1), BeforeValidator(_listed)]


class Compression(Section):
    """The policy is compressed at every weight sync, and its copy samples; see `compress/codec.py`."""

    methods: Methods
    keep_dense: list[str] = ["lm_head"]  # matrices whose name contains one of these are left as they are
    reassign: NonNegativeInt = 0  # of vq and mvq: steps of k-means at each sync; 0: masks and assignments stay as they began
    after: NonNegativeInt = 2  # steps that the policy itself samples first: what is saved is measured against them
    uncorrected: bool = False  # a control: nothing is done about the copy's being another policy
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _measured(self) -> Compression:
        least = {"bytes": 1, "time": 3, "none": 0}[self.guard.gain]
        if self.after < least:
            raise ValueError(
                f"guard.gain {self.guard.gain} is measured against syncs of the policy itself: set after >= {least}, or "
                "guard.gain to none"
            )
        return self


class Rollout(Decoding):
    prompts_per_step: PositiveInt = 32
    samples: PositiveInt = 8  # completions per prompt
    tree: Tree | None = None  # None: completions are sampled independently
    anytime: Anytime | None = None  # None: thoughts are not cut
    compression: Compression | None = None  # None: the policy itself samples
    # What guesses tokens for the policy to verify (`rollout/drafters`); None: it is asked for one token after the other.
    drafter: Annotated[Plugin | None, BeforeValidator(_named)] = None


class Gate(Section):
    """The component counts only where another component's raw value reaches a floor."""

    component: str
    at_least: float


class Component(Plugin):
    """A reward component (`rewards/`), its weight and gate. `label` tells two components of one name apart. Below 1, `share` is
    that of the problems for which it pays, which their ids decide: where only some have an answer that can be checked, say."""

    weight: float = 1.0
    share: PositiveShare = 1.0
    gate: Gate | None = None
    label: str = ""

    @model_validator(mode="after")
    def _labelled(self) -> Component:
        if not self.label:
            object.__setattr__(self, "label", self.name.rpartition(":")[2])
        return self


class KL(Section):
    """A penalty that keeps the policy near the model it started from; see `trainers/kl.py`."""

    estimator: Literal["k1", "k2", "k3", "k3_plus"] = "k3"
    coefficient: NonNegativeFloat = 0.0
    place: Literal["loss", "reward"] = "loss"  # reward: each token is paid −coefficient · estimate

    @property
    def is_paid(self) -> bool:
        return self.coefficient > 0 and self.place == "reward"

    @model_validator(mode="after")
    def _pulls(self) -> KL:
        if not self.coefficient:
            return self
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "k1 as a loss has an expected gradient of zero: use k2 or k3_plus (they pull as the reverse KL does), k3, or "
                "`place: reward`"
            )
        if self.place == "reward" and self.estimator == "k3_plus":
            raise ValueError("k3_plus differs from k3 by its gradient, and a reward has none: use k1, which is unbiased")
        return self


class Entropy(Section):
    """Ways to keep the policy from settling on one answer."""

    bonus: NonNegativeFloat = 0.0  # − bonus · H of each token's distribution is added to the loss
    top_quantile: PositiveShare = 1.0  # of tokens, the most uncertain, that make the policy loss


class Critic(Section):
    """What predicts how much is still to be earned at each token, for advantages that need values: a model of its own, or a
    layer on the policy's body."""

    shared: bool = False
    clip: PositiveFloat | None = 0.2  # of how far values may move from those before the step
    learning_rate: PositiveFloat = 1e-5  # of its own model; what else its optimiser does is the policy's
    warmup_steps: NonNegativeInt = 0  # steps in which its own model learns and the policy does not
    coefficient: PositiveFloat = 0.5  # of a shared one's loss beside the policy's

    @model_validator(mode="after")
    def _of_its_kind(self) -> Critic:
        for name in ("learning_rate", "warmup_steps") if self.shared else ("coefficient",):
            if getattr(self, name) != type(self).model_fields[name].default:
                kind = "a model of its own" if self.shared else "one that is shared"
                default = type(self).model_fields[name].default
                raise ValueError(f"critic.{name} is that of {kind}: leave it out, or set it to {default:g}")
        return self


class Weighting(NamedTuple):
    form: Literal["decoupled", "bypass"]
    level: Literal["token", "sequence"]
    action: Literal["truncate", "mask"] | None


CORRECTIONS = {
    # PPO's ratio π / π_old, times a weight π_old / π_rollout without gradient
    "token_tis": Weighting("decoupled", "token", "truncate"),  # the token's own, at most `cap`
    "sequence_tis": Weighting("decoupled", "sequence", "truncate"),  # the completion's, at most `cap`
    "token_mis": Weighting("decoupled", "token", "mask"),  # 0 for a token whose weight is above `cap`
    "sequence_mis": Weighting("decoupled", "sequence", "mask"),  # 0 for a completion whose weight is
    "icepop": Weighting("decoupled", "token", "mask"),  # token_mis on both sides
    # π_rollout in the place of π_old: PPO's ratio π / π_rollout is the weight, and PPO's clip bounds it
    "bypass": Weighting("bypass", "token", None),
    "bypass_token_mis": Weighting("bypass", "token", "mask"),  # without tokens whose ratio is above `cap`
    "bypass_sequence_mis": Weighting("bypass", "sequence", "mask"),  # without completions whose ratio is
}
BOUNDS = {"icepop": {"cap": 5.0, "floor": 0.5}}  # its paper's, where they are not Correction's


class Correction(Section):
    """What is done about completions that another policy than the learner's sampled: one of CORRECTIONS by its name, beside
    which bounds may be given. See `trainers/correction.py`."""

    name: str
    cap: Annotated[float, Field(ge=1)] = 2.0
    floor: Annotated[float, Field(gt=0, lt=1)] | None = None  # of masking; None: only `cap` bounds

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        value = _named(value)
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str):
            return value
        if name not in CORRECTIONS:
            raise ValueError(f"there is no correction {name!r}{nearest(name, list(CORRECTIONS))}")
        return BOUNDS.get(name, {}) | value

    @model_validator(mode="after")
    def _bounds(self) -> Correction:
        if self.floor is not None and self.action != "mask":
            raise ValueError(f"{self.name} has no `floor`: it is a bound of those that mask")
        if self.action is None and self.cap != type(self).model_fields["cap"].default:
            raise ValueError(f"{self.name} has no `cap`: PPO's clip bounds its ratio")
        return self

    @property
    def form(self) -> Literal["decoupled", "bypass"]:
        return CORRECTIONS[self.name].form

    @property
    def level(self) -> Literal["token", "sequence"]:
        return CORRECTIONS[self.name].level

    @property
    def action(self) -> Literal["truncate", "mask"] | None:
        return CORRECTIONS[self.name].action


class DynamicSampling(Section):
    """DAPO: groups whose raw accuracy is all 0 or all 1 teach nothing; sample others in their place."""

    max_rounds: PositiveInt = 4  # sampling rounds a step may take before it goes on with what it has


class Curriculum(Section):
    """Of the problems held, a step takes those that are solved about as often as `target`; see `trainers/problems.py`."""

    target: Share = 0.5  # of a problem's completions that are right
    candidates: Annotated[int, Field(ge=2)] = 4  # so many times the problems that a round takes are held


class Replay(Section):
    """Problems of which no completion was right come back; see `trainers/problems.py`."""

    share: PositiveShare = 0.25  # of a round's problems, at most
    after: PositiveInt = 4  # steps, at least

    def most(self, problems: int) -> int:
        return int(self.share * problems + 1e-9)  # 0.29 · 100 is 28.999… in floating point


class Budget(Section):
    """GVM: the samples of a step are divided by what a few of each problem show; see `trainers/budget.py`."""

    pilot: Annotated[int, Field(ge=2)] = 4  # samples that every problem gets
    alpha: NonNegativeFloat = 1e-3  # holds back from problems that are hardly ever solved
    beta: NonNegativeFloat = 2.0


class Algorithm(Section):
    advantage: Annotated[Plugin, _unless_named("grpo")] = Plugin(name="grpo")
    loss: Annotated[Plugin, _unless_named("ppo_clip")] = Plugin(name="ppo_clip")
    aggregate: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "token_mean"
    kl: KL = KL()
    entropy: Entropy = Entropy()
    imitation: NonNegativeFloat = 0.0  # weight of the negative log-likelihood of correct completions, a loss of its own (VAPO)
    critic: Critic | None = None
    correction: Correction | None = None  # for sampling from another distribution than the learner's
    dynamic_sampling: DynamicSampling | None = None
    curriculum: Curriculum | None = None
    replay: Replay | None = None
    budget: Budget | None = None  # None: every problem gets `rollout.samples`
    mask_truncated: bool = False  # leave completions cut by the token limit out of the loss
    max_invalid_fraction: Share = 0.2  # more completions than this without a verdict abort the run

    @property
    def has_own_critic(self) -> bool:
        """Whether there is a second model that learns."""
        return self.critic is not None and not self.critic.shared


class Lora(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"
    serve: Literal["merged", "adapter"] = "merged"  # what engines are sent: all weights, adapters added in, or adapters alone


class QuantisedBase(Plugin):
    """What the model's matrices are rounded by before anything is trained: a quantiser (`compress/quantise`), its options."""

    keep_dense: list[str] = ["lm_head"]  # matrices whose name contains one of these are left as they are


class Outliers(Section):
    """The few weights of each matrix of the `quantised_base` that are trained, in place of all; see `compress/outliers.py`."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.005  # of a matrix
    score: Literal["magnitude", "error", "random"] = "magnitude"  # by which they are chosen; random is a control
    train_norms: bool = False  # the norms learn too
    serve: Literal["merged", "sparse"] = "sparse"  # what engines are sent: all weights, or what is trained alone


class Optimizer(Section):
    """AdamW, with linear warm-up and then a constant rate or a cosine to zero."""

    learning_rate: PositiveFloat = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: PositiveFloat = 1.0


class SftOptimizer(Optimizer):
    """The same with the rate that supervised training is usually given."""

    learning_rate: PositiveFloat = 1e-5


class Update(Section):
    """How a step's batch is cut: into mini-batches (one optimiser step each), and those into micro-batches (memory only)."""

    minibatches: PositiveInt = 1
    epochs: PositiveInt = 1
    tokens_per_microbatch: PositiveInt = 16384  # padded prompt + completion tokens
    logits_chunk: PositiveInt = 4096  # positions whose logits exist at one time
    gradient_checkpointing: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps per step of the run."""
        return self.minibatches * self.epochs


class Evaluation(Section):
    every: PositiveInt = 20  # steps
    data: Sources
    limit: PositiveInt | None = None  # problems
    samples: PositiveInt = 1  # completions per problem at the rollout temperature; the eval seed fixes them
    temperatures: list[NonNegativeFloat] = []  # also measured at these, before and after training only; 0 is greedy
    seed: int = 0
    max_new_tokens: PositiveInt | None = None  # default: the rollout's


class Checkpoint(Section):
    every: PositiveInt = 20  # steps; the last step is always kept
    keep_last: PositiveInt = 2
    keep_best: str | None = None  # a metric of which higher is better, e.g. eval/accuracy


class BestCheckpoint(Checkpoint):
    """The same, with the best validation kept."""

    keep_best: str | None = "validation/gain"


class BestPreference(Checkpoint):
    """The same, with the best accuracy on held-out pairs kept."""

    keep_best: str | None = "validation/accuracy"


class Monitor(Section):
    """Alarms for rewards that are earned without solving; see `trainers/monitor.py`, and `trainers/patterns.py` for rules."""

    separator: Annotated[str, Field(min_length=1)] | None = None  # of steps; None: a `process` component's, else a blank line
    watch: list[str] | None = None  # components whose pay is held against accuracy; None: those that pay steps and do not learn
    baseline: PositiveInt = 5  # steps of the run that make it: the policy has hardly changed in them, and noise averages out
    patience: PositiveInt = 2  # steps in a row that a rule must hold: one may be noise, and a hack takes no more than ten
    margin: PositiveShare = 0.05  # of accuracy, that is more or less: about the noise of a step of 256 completions
    gap: PositiveFloat = 0.25  # deviations that pay is ahead of accuracy: no step of an honest run of the toy had above 0.15
    growth: Annotated[float, Field(gt=1)] = 1.1  # of steps or tokens: which problems a step has changes them by half of that
    share: PositiveShare = 0.1  # of completions, more than at the baseline, with a step at most, or that state nothing
    repeated: Annotated[int, Field(ge=2)] = 20  # tokens that count as repeated when they come again: longer than set phrases
    repetition: PositiveShare = 0.1  # of the score, more than at the baseline
    on_alarm: Literal["warn", "stop", "rollback"] = "warn"  # rollback: stop, and leave the checkpoint from before it began


class Stop(Section):
    """End before `steps`: when a metric has not risen for `patience` evaluations, or a budget is spent."""

    metric: str = "eval/accuracy"  # higher is better
    patience: PositiveInt | None = None
    max_hours: PositiveFloat | None = None
    max_tokens: PositiveInt | None = None


class Mode(Section):
    """How far sampling may run ahead of training; the formula is in `trainers/sampler.py`."""

    name: Literal["sync", "one_step_off", "async"] = "sync"
    cap: PositiveInt = 1  # async only: the most steps of training between the weights that begin a group and those it trains

    @model_validator(mode="after")
    def _capped(self) -> Mode:
        if self.name != "async" and self.cap != 1:
            raise ValueError(f"{self.name} has no cap: it is that of async")
        return self

    @property
    def staleness(self) -> int:
        return {"sync": 0, "one_step_off": 1, "async": self.cap}[self.name]

    @property
    def partial(self) -> bool:
        """Whether completions are interrupted for new weights, and go on with them."""
        return self.name == "async"


class Cluster(Section):
    """Rollout workers and learner ranks as processes of a Ray cluster, in place of one process that does everything."""

    address: str = "auto"  # auto: the cluster that RAY_ADDRESS names, else one of this machine; local; HOST:PORT
    workers: PositiveInt = 1  # processes with a rollout engine each
    gpus_per_worker: NonNegativeFloat = 0
    tensor_parallel: PositiveInt = 1  # GPUs that an engine's matrices are split over (vLLM)
    ranks: PositiveInt = 1  # processes that train, with a share of each batch
    gpus_per_rank: NonNegativeFloat = 0
    zero: Literal[0, 1, 2, 3] = 1  # DeepSpeed ZeRO: ranks share 1 optimiser state, 2 gradients too, 3 parameters too
    offload: bool = False  # the optimiser's state lives in the machine's memory
    reference: Literal["shared", "own"] = "shared"  # the KL reference: in the ranks' processes, or in one of its own
    judges: PositiveInt = 1  # processes for the reward model of each `process` component
    gpus_per_judge: NonNegativeFloat = 0
    mode: Annotated[Mode, BeforeValidator(_named)] = Mode()
    bucket_mb: PositiveFloat = 64  # MiB of weights that travel at a time
    transport: Literal["object_store", "nccl"] = "object_store"  # how: by Ray's, or from GPU to GPU (vLLM's weight transfer)
    deadline_s: PositiveFloat = 600  # a worker or rank that does nothing for so long counts as dead
    max_restarts: NonNegativeInt = 5  # of workers, and of learners, before the run gives up

    @model_validator(mode="after")
    def _possible(self) -> Cluster:
        if self.offload and not self.zero:
            raise ValueError("offload moves the optimiser's state that zero 1, 2 and 3 share: with zero 0 nothing is moved")
        if self.gpus_per_rank > 1:
            raise ValueError(f"a rank computes on one GPU: set ranks to more instead of gpus_per_rank {self.gpus_per_rank:g}")
        if self.gpus_per_judge > 1:
            raise ValueError(f"a judge reads on one GPU: set judges to more instead of gpus_per_judge {self.gpus_per_judge:g}")
        if self.tensor_parallel > max(1, self.gpus_per_worker):
            raise ValueError(f"tensor_parallel {self.tensor_parallel} takes as many GPUs: raise gpus_per_worker")
        return self


class Job(Section):
    """What every job has."""

    verb: ClassVar[str] = "train"  # of the command line, that does it
    name: str = "run"
    output: str = ""  # the run folder; default: runs/NAME
    seed: int = 0
    model: str  # toy:NAME, smollm2-135m, a folder, or a hub id
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward passes; parameters and optimiser stay float32
    device: str = "auto"
    threads: PositiveInt | None = None  # CPU threads; default: all cores
    quantised_base: Annotated[QuantisedBase | None, BeforeValidator(_named)] = None  # None: training begins with the model
    lora: Lora | None = None
    outliers: Outliers | None = None  # None, and no lora: all weights are trained
    trust_remote_code: bool = False
    optimizer: Optimizer = Optimizer()
    log: list[Literal["tensorboard", "wandb", "trackio"]] = []

    @property
    def folder(self) -> str:
        return self.output or f"runs/{self.name}"

    @property
    def adapts(self) -> bool:
        """Whether adapters learn, and the model's own weights do not: switched off, they leave what training began with."""
        return self.lora is not None or self.outliers is not None

    @model_validator(mode="after")
    def _tuned(self) -> Job:
        if self.outliers and self.lora:
            raise ValueError("lora and outliers are two ways to train a few weights: leave out one of them")
        if self.outliers and self.quantised_base is None:
            raise ValueError("outliers are weights of a quantised_base: add one, e.g. quantised_base: {name: rtn, bits: 4}")
        return self


class RL(Job):
    job: Literal["rl"] = "rl"
    steps: PositiveInt
    data: Sources
    prompt: Prompt = Prompt()
    length_budget: LengthBudget | None = None  # None: problems have none
    rollout: Rollout = Rollout()
    rewards: Annotated[list[Annotated[Component, BeforeValidator(_named)]], Field(min_length=1), BeforeValidator(_listed)] = [
        Component(name="answer")
    ]
    algorithm: Algorithm = Algorithm()
    update: Update = Update()
    eval: Evaluation | None = None
    monitor: Monitor | None = Monitor()  # None: nothing is watched
    checkpoint: Checkpoint = Checkpoint()
    stop: Stop = Stop()
    cluster: Cluster | None = None  # None: everything in this process

    @property
    def mode(self) -> Mode:
        return self.cluster.mode if self.cluster else Mode()

    @model_validator(mode="after")
    def _consistent(self) -> RL:
        labels = [component.label for component in self.rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two reward components are called {label!r}; give one of them a `label`")
        watched = [self.checkpoint.keep_best, self.stop.metric if self.stop.patience else None]
        if self.eval is None and any(metric and metric.startswith("eval/") for metric in watched):
            raise ValueError("checkpoint.keep_best or stop.patience watches an evaluation, and the recipe has no `eval`")
        for component in self.rewards:
            if component.gate and (named := component.gate.component) not in labels:
                other = nearest(named, labels)
                raise ValueError(f"the gate of {component.label!r} names {named!r}, which is no component{other}")
        if self.monitor and (unknown := set(self.monitor.watch or []) - set(labels)):
            raise ValueError(f"monitor.watch names {min(unknown)!r}, which is no component{nearest(min(unknown), labels)}")
        if self.rollout.tree and self.mode.partial:
            raise ValueError(
                "rollout.tree cannot go on with other weights than it began with: use cluster.mode sync or one_step_off"
            )
        if self.rollout.tree and self.rollout.tree.segment >= self.rollout.max_new_tokens:
            raise ValueError(
                f"rollout.tree.segment {self.rollout.tree.segment} is not below rollout.max_new_tokens "
                f"{self.rollout.max_new_tokens}: the completions would share nothing; set rollout.tree.segment to less"
            )
        if self.algorithm.dynamic_sampling and self.rollout.samples < 2:
            raise ValueError("algorithm.dynamic_sampling looks for groups of mixed accuracy: set rollout.samples >= 2")
        if self.algorithm.critic and self.algorithm.critic.warmup_steps >= self.steps:
            warmup = self.algorithm.critic.warmup_steps
            raise ValueError(
                f"algorithm.critic.warmup_steps {warmup} leaves none of {self.steps} steps to the policy: set one of them"
            )
        if self.algorithm.kl.place == "reward" and "kl" in labels:
            raise ValueError("a reward component is called 'kl', as what algorithm.kl pays is: give it another `label`")
        if self.rollout.tree and self.rollout.samples < 2:
            raise ValueError("rollout.tree grows the completions of a problem from one root: set rollout.samples >= 2")
        if self.rollout.sampling.truncates and self.algorithm.correction is None:
            raise ValueError(
                "top_h, top_p, top_k and min_p bend the sampling distribution away from the policy: "
                "set algorithm.correction (token_tis is usual), or sample without them"
            )
        if self.cluster and self.cluster.transport == "nccl":
            whole = min(self.cluster.gpus_per_worker, self.cluster.gpus_per_rank) >= 1
            if self.rollout.engine.name != "vllm" or not whole or self.device == "cpu":
                raise ValueError(
                    "cluster.transport nccl goes from GPU to GPU: it needs rollout.engine vllm, and cluster.gpus_per_worker "
                    "and cluster.gpus_per_rank of 1 or more (NCCL takes no GPU twice); object_store works everywhere"
                )
        if self.cluster and self.cluster.reference == "own" and not self.algorithm.kl.coefficient:
            raise ValueError("cluster.reference own: there is no reference model without algorithm.kl.coefficient")
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature 0 samples every completion of a group alike: nothing can be learned")
        return self

    @model_validator(mode="after")
    def _compressed(self) -> RL:
        compression, correction, cluster = self.rollout.compression, self.algorithm.correction, self.cluster
        if compression is None:
            return self
        if correction is None and not compression.uncorrected:
            raise ValueError(
                "rollout.compression samples from another policy than the learner's: set algorithm.correction (token_tis is "
                "usual), or rollout.compression.uncorrected=true"
            )
        if correction is not None and compression.uncorrected:
            raise ValueError(
                f"rollout.compression.uncorrected, and algorithm.correction {correction.name}: leave out one of them"
            )
        if self.outliers:
            raise ValueError("rollout.compression would round outliers, which are what is not rounded: leave out one of them")
        if self.lora and self.lora.serve == "adapter":
            raise ValueError(
                "rollout.compression is of whole weights, and lora.serve adapter sends none: set lora.serve=merged"
            )
        if cluster and cluster.transport == "nccl":
            raise ValueError(
                "rollout.compression travels by the object store, where it is small: set cluster.transport=object_store"
            )
        if cluster and cluster.zero == 3:
            raise ValueError(
                "rollout.compression is proved by the learner's putting whole weights in the place of its own, which "
                "cluster.zero 3 cuts up: set cluster.zero to 2 or less"
            )
        if compression.after >= self.steps:
            raise ValueError(f"rollout.compression.after {compression.after} leaves none of {self.steps} steps to the copy")
        return self

    @model_validator(mode="after")
    def _drafted_in_vllm(self) -> RL:
        rollout = self.rollout
        if rollout.drafter is None or rollout.engine.name != "vllm":
            return self
        if rollout.min_p:
            raise ValueError(
                "rollout.drafter: vLLM verifies drafts without min_p; leave out one of them (top_p and top_k work)"
            )
        if rollout.compression:
            raise ValueError(
                "rollout.compression samples from a copy of the policy, and rollout.drafter is for sampling from the policy "
                "itself: leave out one of them"
            )
        for key, tuning in (("lora", self.lora), ("outliers", self.outliers)):
            if tuning and tuning.serve != "merged":
                raise ValueError(
                    f"rollout.drafter is made of whole weights, and {key}.serve {tuning.serve} sends none: "
                    f"set {key}.serve=merged"
                )
        return self

    @model_validator(mode="after")
    def _anytime(self) -> RL:
        rollout, algorithm, anytime = self.rollout, self.algorithm, self.rollout.anytime
        if anytime is None:
            return self
        if rollout.samples % anytime.rows or rollout.samples < 2 * anytime.rows:
            raise ValueError(
                f"rollout.samples {rollout.samples} is not thoughts x {len(anytime.budgets)} budgets x {anytime.summaries} "
                f"summaries of rollout.anytime, with two thoughts at least: {8 * anytime.rows} is eight"
            )
        if anytime.budgets[-1] + anytime.summary_tokens > rollout.max_new_tokens:
            raise ValueError(
                f"rollout.anytime: the last budget {anytime.budgets[-1]} and summary_tokens {anytime.summary_tokens} are more "
                f"than rollout.max_new_tokens {rollout.max_new_tokens}: raise that"
            )
        if self.mode.partial:
            raise ValueError(
                "rollout.anytime cannot go on with other weights than it began with: use cluster.mode sync or one_step_off"
            )
        if rollout.stop:
            raise ValueError(
                "rollout.stop would end completions of rollout.anytime within their thoughts, or within what is forced after "
                "them: leave it out"
            )
        if rollout.tree or algorithm.budget:
            other = "rollout.tree" if rollout.tree else "algorithm.budget"
            raise ValueError(f"rollout.anytime and {other} each decide what is sampled of a problem: leave out one of them")
        if self.length_budget:
            raise ValueError(
                "length_budget says how long completions are to be, and rollout.anytime where thoughts are cut: leave out one "
                "of them"
            )
        if algorithm.mask_truncated:
            raise ValueError(
                "algorithm.mask_truncated would leave out what a thought says where its first summary is cut, and "
                "rollout.anytime cuts thoughts anyhow: set it to false"
            )
        if algorithm.kl.is_paid:
            raise ValueError(
                "algorithm.kl.place reward pays each token once, and rollout.anytime trains a token of a thought in one of the "
                "completions that begin with it: set algorithm.kl.place=loss (with estimator k2, k3 or k3_plus)"
            )
        return self

    @model_validator(mode="after")
    def _budgeted(self) -> RL:
        if self.prompt.tells_budget and self.length_budget is None:
            raise ValueError("prompt.template tells {budget}, and the recipe gives no budgets: add `length_budget`")
        if self.length_budget and self.length_budget.largest > self.rollout.max_new_tokens:
            raise ValueError(
                f"length_budget goes up to {self.length_budget.largest} tokens, and completions are cut at "
                f"rollout.max_new_tokens {self.rollout.max_new_tokens}: lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _choosing(self) -> RL:
        budget, replay, rollout = self.algorithm.budget, self.algorithm.replay, self.rollout
        if budget and self.mode.name != "sync":
            raise ValueError("algorithm.budget goes by what the step's first samples show: use cluster.mode sync")
        if budget and rollout.tree:
            raise ValueError(
                "algorithm.budget and rollout.tree each decide what is sampled of a problem: leave out one of them"
            )
        if budget and self.algorithm.dynamic_sampling:
            raise ValueError("algorithm.budget and algorithm.dynamic_sampling each decide what else is sampled: leave out one")
        if budget and budget.pilot >= rollout.samples:
            raise ValueError(
                f"algorithm.budget.pilot {budget.pilot} leaves nothing to divide of rollout.samples {rollout.samples}"
            )
        if replay and not replay.most(rollout.prompts_per_step):
            raise ValueError(
                f"algorithm.replay.share {replay.share:g} of {rollout.prompts_per_step} problems is none: raise it, or "
                "rollout.prompts_per_step"
            )
        return self


class Sft(Job):
    """Supervised fine-tuning on the sources' solutions, through TRL."""

    job: Literal["sft"] = "sft"
    data: Sources
    prompt: PromptWithoutBudget = Prompt()
    optimizer: SftOptimizer = SftOptimizer()
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 64
    max_length: PositiveInt = 1024
    kl: PositiveFloat | None = None  # λ of what it costs to leave the model it began with: `trainers/near_reference.py`
    evaluated_on: Sources | None = None  # problems whose solutions the trained model is to predict; None: it is not measured


class Judging(Section):
    """How what is to be judged is written down for a reward model; kept beside its weights."""

    template: str = ""  # with {problem}, {previous} and {current}; or, for head: token, {problem} and, at its end, {steps}
    separator: str = "\n\n"  # between steps


class FirstStage(Section):
    """The head learns alone before the rest does (PURE)."""

    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 1e-4


Label = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]  # of what is compared, as it stands in files and claims


class Heads(Job):
    """Heads that guess a model's next tokens, trained on what it says; see `rollout/decoding/heads.py`. The model stays as it
    is."""

    job: Literal["heads"] = "heads"
    heads: Annotated[dict[Label, Annotated[Plugin, BeforeValidator(_named)]], Field(min_length=1)]  # kinds (`rollout/heads`)
    data: Sources  # problems of which it samples completions
    evaluated_on: Sources  # others, of which the heads are to guess the completions
    prompt: PromptWithoutBudget = Prompt()
    rollout: Decoding = Decoding()
    samples: PositiveInt = 1  # completions per problem
    epochs: PositiveInt = 2
    batch_size: PositiveInt = 16  # completions
    tokens_at_once: PositiveInt = 8192  # of a pass, pseudo states included (memory only)
    decay: PositiveShare = 0.8  # γ: what a step weighs beside the one before it
    optimizer: SftOptimizer = SftOptimizer(learning_rate=1e-3, schedule="cosine")

    @model_validator(mode="after")
    def _leaves_the_model(self) -> Heads:
        if self.adapts or self.quantised_base:
            raise ValueError("heads learn, and the model does not: leave out lora, quantised_base and outliers")
        return self


class RewardModel(Job):
    """A classifier of steps or solutions, from judged solutions."""

    job: Literal["reward_model"] = "reward_model"
    kind: Literal["orm", "prm", "hrm"] = "prm"  # judges solutions; steps; steps and pairs of them
    head: Literal["text", "token"] = "text"  # a text for each judgement, or one for all steps; see `rewards/judged_text.py`
    data: Sources  # of judged solutions (`rlcore/data/formats`)
    evaluated_on: Annotated[list[SourceSpec], BeforeValidator(_listed)] = []  # judged solutions: without their problems
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the problems
    neutral: Literal["drop", "positive", "negative"] = "drop"  # what steps count for that are not wrong, and no progress
    repaired: bool = False  # hrm: build the pairs of a wrong step and the right one in its place
    judging: Judging = Judging()
    balance: bool = False  # right and wrong examples weigh alike in sum
    shuffle_labels: bool = False  # a control: nothing can be learned from them
    first_stage: FirstStage | None = None
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 64
    max_length: PositiveInt = 4096  # tokens; longer examples are dropped, and counted
    optimizer: SftOptimizer = SftOptimizer()
    update: Update = Update()
    validate_every: PositiveInt = 20  # steps
    checkpoint: BestCheckpoint = BestCheckpoint()

    @model_validator(mode="after")
    def _possible(self) -> RewardModel:
        judged = "{steps}" if self.head == "token" else "{current}"
        lacking = [part for part in ("{problem}", judged) if self.judging.template and part not in self.judging.template]
        if lacking:
            raise ValueError(f"judging.template must contain {lacking[0]} for head: {self.head}")
        if self.head == "token" and self.judging.template and not self.judging.template.endswith("{steps}"):
            raise ValueError("judging.template must end with {steps} for head: token: each is judged where it ends")
        if self.head == "token" and not self.judging.separator:
            raise ValueError("judging.separator is where a step's judgement stands for head: token: it cannot be empty")
        if self.repaired and self.kind != "hrm":
            raise ValueError(f"repaired pairs are merged steps, which a {self.kind} does not judge: set kind to hrm")
        if self.update.steps > 1:
            raise ValueError("a batch of a reward model is one optimiser step: set batch_size and epochs instead of update's")
        return self


class Latent(Section):
    """Codes that say what a pair was decided by (LPC); see `rlcore/latent.py` for the networks, `trainers/preference/latent.py`
    for how they learn. What the paper gives no number for is a key here; the defaults are ours."""

    codes: PositiveInt = 32  # K; 1 is the control, which has the same networks and nothing to choose
    width: PositiveInt = 128  # of the hidden layer of the prior's and the posterior's network
    scale: PositiveFloat = 0.02  # deviation of the codebook's entries before training
    kl_weight: NonNegativeFloat = 1.0  # of KL(posterior ‖ prior) beside the preference loss
    temperature: tuple[PositiveFloat, PositiveFloat] = (1.0, 0.5)  # of the Gumbel-softmax, at the first and the last step
    prior_share: tuple[Share, Share] = (0.0, 1.0)  # of the prior's code beside the posterior's, at the first and the last step
    rate: PositiveFloat = 1.0  # the networks' and the codebook's learning rate, in multiples of the optimizer's
    reaches_backbone: bool = True  # the networks' gradient goes on into the states that they read


class Preference(Job):
    """A policy from pairs of answers, of which one was liked better."""

    job: Literal["preference"] = "preference"
    data: Sources  # of preference pairs (`rlcore/data/formats`)
    prompt: PromptWithoutBudget = Prompt()  # `template` is for what the user says last
    loss: Annotated[Plugin, _unless_named("dpo")] = Plugin(name="dpo")  # `trainers/preference/losses`
    latent: Latent | None = None  # None: one policy for all that pairs may be decided by
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the prompts
    evaluated_on: Annotated[list[SourceSpec], BeforeValidator(_listed)] = []  # pairs to measure on in the place of those
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 64  # pairs
    max_length: PositiveInt = 1024  # tokens of a prompt and an answer; longer answers are cut, and counted
    optimizer: Optimizer = Optimizer()
    update: Update = Update()
    validate_every: PositiveInt = 20  # steps
    checkpoint: BestPreference = BestPreference()

    @model_validator(mode="after")
    def _possible(self) -> Preference:
        if self.update.steps > 1:
            raise ValueError("a batch of pairs is one optimiser step: set batch_size and epochs instead of update's")
        return self


class Untrained(Job):
    """A job that looks at a model, or changes it otherwise than by training."""

    @model_validator(mode="after")
    def _trains_nothing(self) -> Untrained:
        if self.adapts or self.quantised_base or self.optimizer != Optimizer():
            raise ValueError("nothing is trained: leave out lora, quantised_base, outliers and optimizer")
        return self


class Asked(Decoding):
    """Problems that a model is to solve."""

    data: Sources
    limit: PositiveInt | None = None  # problems
    samples: PositiveInt = 1  # completions per problem


class Evaluate(Untrained):
    """A model, measured by problems, in a run folder: what `rlcore eval` tells of a model, for experiments."""

    job: Literal["eval"] = "eval"
    prompt: PromptWithoutBudget = Prompt()
    eval: Asked
    max_invalid_fraction: Share = 0.2  # more solutions than this without a verdict are an error


class Annotate(Untrained):
    """Trees of solutions, grown step by step and graded: what came of each step is what a reward model can learn of it."""

    job: Literal["annotate"] = "annotate"
    data: Sources
    prompt: PromptWithoutBudget = Prompt()
    rollout: Decoding = Decoding()  # `max_new_tokens` and `stop` are a whole solution's
    separator: str = "\n\n"  # ends a step
    search: Annotated[Plugin, _unless_named("full_tree")] = Plugin(name="full_tree")  # `rollout/searches`
    at_once: PositiveInt = 16  # problems whose trees grow together, and are then written
    max_invalid_fraction: Share = 0.2  # more solutions than this without a verdict end the run

    @model_validator(mode="after")
    def _possible(self) -> Annotate:
        if not self.separator:
            raise ValueError("separator is where a step ends: it cannot be empty")
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature 0 samples every step of a node alike: a tree would have one branch")
        return self


class CalibrationText(Section):
    """What methods look at: problems and their solutions, one after the other, cut into rows."""

    data: Sources
    rows: PositiveInt = 128
    length: PositiveInt = 512  # tokens of a row
    rows_at_once: PositiveInt = 8  # of a pass, and of a step of training


class Altered(Untrained):
    """A model that is changed, and measured by what it still knows."""

    keep_dense: list[str] = ["lm_head"]  # matrices whose name contains one of these are left as they are
    prompt: PromptWithoutBudget = Prompt()
    evaluated_on: Annotated[list[SourceSpec], BeforeValidator(_listed)] = []  # problems whose solutions it is to predict
    eval: Asked | None = None  # None: it solves nothing
    max_invalid_fraction: Share = 0.2  # more solutions than this without a verdict are an error


class Compress(Altered):
    """A model made cheaper to run, by one method after the other; see `compress/`."""

    verb: ClassVar[str] = "compress"
    job: Literal["compress"] = "compress"
    methods: Annotated[list[Annotated[Plugin, BeforeValidator(_named)]], BeforeValidator(_listed)]  # none: the dense model
    calibration: CalibrationText | None = None  # None: no method looks at any text


Perturbation = Literal["gaussian", "uniform", "sign", "positive", "negative", "clipping"]  # `compress/perturbation.py`
Strength = Annotated[float, Field(gt=0, lt=1)]  # norm of a change, relative to that of what is changed


class Quantiser(Plugin):
    """One of `compress/quantise`. `label` names it among what is measured."""

    label: Annotated[str, Field(pattern=r"^([A-Za-z_]\w*)?$")] = ""

    @model_validator(mode="after")
    def _labelled(self) -> Quantiser:
        if not self.label:
            object.__setattr__(self, "label", self.name.rpartition(":")[2])
        return self


class Sensitivity(Altered):
    """What changes of equal norm, and quantisers beside them, cost a model; see `compress/sensitivity.py`."""

    verb: ClassVar[str] = "compress sensitivity"
    job: Literal["sensitivity"] = "sensitivity"
    perturb: Literal["weights", "activations", "both"] = "weights"  # activations: what matrices are given, token by token
    kinds: Annotated[list[Perturbation], Field(min_length=1)] = list(get_args(Perturbation))
    strengths: Annotated[list[Strength], Field(min_length=1)] = [0.02, 0.05, 0.1, 0.2, 0.4]
    compared_at: Strength = 0.1  # the strength at which kinds and layers are compared
    layers: list[Perturbation] = []  # kinds by which each layer is changed alone
    quantisers: Annotated[list[Annotated[Quantiser, BeforeValidator(_named)]], BeforeValidator(_listed)] = []
    evaluated_on: Sources  # problems whose solutions it is to predict

    @model_validator(mode="after")
    def _possible(self) -> Sensitivity:
        for key, values in (("kinds", self.kinds), ("strengths", self.strengths), ("layers", self.layers)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key} {values} names one twice")
        if self.strengths != sorted(self.strengths):
            raise ValueError(f"strengths {self.strengths} do not rise")
        if self.compared_at not in self.strengths:
            raise ValueError(f"compared_at {self.compared_at:g} is none of strengths {self.strengths}: name one of them")
        labels = [*get_args(Perturbation), "dense", *(quantiser.label for quantiser in self.quantisers)]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"quantisers: {twice[0]!r} names two of what is measured: give this one another `label`")
        for quantiser in self.quantisers:
            if ("activations" in quantiser.options) != (self.perturb != "weights"):
                lacking = "leave out its `activations`" if self.perturb == "weights" else "give it `activations`, their bits"
                raise ValueError(f"perturb: {self.perturb}, and quantiser {quantiser.label!r}: {lacking}")
        if self.eval is not None and self.perturb != "weights":
            raise ValueError(f"perturb: {self.perturb} changes activations, which no engine does: leave out `eval`")
        return self


UNDRAFTED = ("plain", "engine")  # what drafters are measured against: one token a pass, in the decoder and in the engine


class DecodeBench(Drawing, Untrained):
    """Drafters against decoding without drafts, on the same prompts; see `rollout/decoding/bench.py`."""

    verb: ClassVar[str] = "decode bench"
    job: Literal["decode_bench"] = "decode_bench"
    data: Sources
    limit: PositiveInt | None = None  # prompts, which the seed draws; None: all of them
    prompt: PromptWithoutBudget = Prompt()
    methods: Annotated[dict[Label, Annotated[Plugin, BeforeValidator(_named)]], Field(min_length=1)]  # drafters, by a label
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    repeats: PositiveInt = 3  # after one that is not measured
    temperature: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _told_apart(self) -> DecodeBench:
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes {self.batch_sizes} name one twice")
        if taken := [label for label in self.methods if label in UNDRAFTED]:
            raise ValueError(f"methods: {taken[0]!r} is measured anyway, without drafts: give the drafter another label")
        names = [self.named(label, size) for size in self.batch_sizes for label in (*UNDRAFTED, *self.methods)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"methods: {twice[0]!r} names two of what is measured: give one another label")
        return self

    def named(self, label: str, batch_size: int) -> str:
        """A method at a batch size, as results call it: LABEL at the first batch size, LABEL_B at the others."""
        return label if batch_size == self.batch_sizes[0] else f"{label}_{batch_size}"


Recipe = RL | Sft | Heads | RewardModel | Preference | Annotate | Compress | Sensitivity | DecodeBench | Evaluate
JOBS: dict[str, type[Job]] = {
    "rl": RL,
    "sft": Sft,
    "heads": Heads,
    "reward_model": RewardModel,
    "preference": Preference,
    "annotate": Annotate,
    "compress": Compress,
    "sensitivity": Sensitivity,
    "decode_bench": DecodeBench,
    "eval": Evaluate,
}
