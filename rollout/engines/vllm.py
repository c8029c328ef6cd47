"""vLLM in this process, on a CPU or a GPU: the fast engine. Same contract as the transformers engine, same recipe.

Where it differs: its random numbers are vLLM's, so the tokens of a seed are other ones, and a completion that goes on from a
forced prefix continues with fresh numbers instead of the unbroken run's. It applies min-p after top-h and before the rest, and
`rlcore.types.Sampling` has it last: with min_p and top_p together the nucleus is made of what min-p left, and is the smaller
one (the log-probs are those of what it sampled from). In float32 its log-probs are the learner's to 1e-5.

With a drafter (`rollout.drafters`) all of that holds, but that vLLM has no min-p then, and that what is drafted has a part in
which tokens are sampled, in distribution the same. So a seed's tokens are other ones than without, and they depend on what they
are batched with where that decides about drafts: `compressed` drafts for nobody as long as one of the sequences under way is
`tokens` short of the context, the others (`rollout.vllm_proposer`) for no large batch. `history` drafts what was said before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from pydantic import PositiveFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.latent import load_latent
from rlcore.models import ModelSpec, context, pick_device, without_weights
from rlcore.protocols import Bucket, Engine, Manifest, Tokens
from rlcore.run.metrics import Max, Mean, Metrics
from rlcore.types import Code, Completion, FinishReason, Request, seed_from
from rollout.admission import refuse_unfit
from rollout.codes import Settings, decoded
from rollout.drafters.compressed import Compressed
from rollout.drafters.gsd import Gsd
from rollout.drafters.history import History
from rollout.drafters.ngram import Ngram
from rollout.latent import CODE_WEIGHTS, LATENT_ASKED, LATENT_SYNCED, CodeChooser, refuse_code
from rollout.sync import Intake, SyncError, checksum, decoded_otherwise, patches
from rollout.transport import is_announced
from rollout.vllm_copy import CompressedCopy
from rollout.vllm_proposer import ASKED, PROPOSER
from rollout.vllm_sampling import mend_sampling

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that weights are handed over as they are
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cores are shared with the learner
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one position more than the context; see Vllm
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULT_CACHE_GB = 1.0
# Imported by vLLM's workers: they import vLLM.
LATENT_PROCESSOR = "rollout.latent_processor:LatentProcessor"
TOP_H_PROCESSOR = "rollout.top_h_processor:TopHProcessor"
TOP_H_UNKNOWN = "vLLM must be told of top_h before it starts: give the engine its option, {name: vllm, top_h: true}"
COUNTERS = "vllm:spec_decode_num_"  # passes that verified drafts, tokens drafted, those accepted
LONGEST_DRAFT = 128  # that vLLM verifies
Hosted = History | Ngram | Gsd  # they draft by what was said, and draw nothing at random


class Vllm(Engine):
    """`max_num_seqs` is the number of sequences decoded together, `kv_cache_gb` the memory (GiB) of their keys and values,
    `max_model_len` the longest prompt with its completion (default: the model's context), `tensor_parallel` the number of GPUs
    that the model is split over. `top_h`: requests may ask for it. `code`: the usual one of a model with latent codes
    (`rollout.latent`), which otherwise answers with the expected one; its backbone is held a second time, to read prompts
    with. `drafter` guesses tokens that the model verifies: a second copy of the weights, whose keys and values are in
    `kv_cache_gb` too, or one that drafts by what was said, as long as no more than `drafts_up_to` sequences are under way: a
    large batch keeps the machine busy without, and what is drafted in vain takes its time."""

    verifies = Compressed | Hosted

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        *,
        max_num_seqs: PositiveInt = 256,
        kv_cache_gb: PositiveFloat = DEFAULT_CACHE_GB,
        max_model_len: PositiveInt | None = None,
        tensor_parallel: PositiveInt = 1,
        top_h: bool = False,
        code: Code | None = None,
        drafter: Compressed | Hosted | None = None,
        drafts_up_to: PositiveInt = 32,
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.config import WeightTransferConfig
        except ImportError as error:
            raise UserError("rollout.engine vllm needs the package: pip install 'rlcore[cpu]' or 'rlcore[gpu]'") from error
        self.capacity = max_num_seqs
        self.context = max_model_len or context(spec.location, spec.trust_remote_code)
        self.tokenizer, self.stop_ids, self.adapter_rank = tokenizer, sorted(stop_ids), spec.adapter_rank
        plain = without_weights(spec.location, spec.trust_remote_code)  # to check updates against
        self._intake = Intake({name: tuple(p.shape) for name, p in plain.named_parameters()})
        on_cpu = pick_device(spec.device) == "cpu"
        self._location, self._chooser, self._top_h, self._drafter = spec.location, _chooser(spec, code), top_h, drafter
        if drafter is not None:
            _refuse_drafts(drafter, spec, self._chooser, top_h)
        wanted = {LATENT_PROCESSOR: self._chooser is not None, TOP_H_PROCESSOR: top_h}
        processors = [name for name, is_wanted in wanted.items() if is_wanted]
        if processors:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # there, processors are of another kind
        self._llm = vllm.LLM(
            model=spec.location,
            dtype=spec.dtype,
            trust_remote_code=spec.trust_remote_code,
            enforce_eager=on_cpu,
            max_model_len=self.context + 1,  # scoring a sequence that fills the context makes vLLM draw one token more
            max_num_seqs=max_num_seqs,
            tensor_parallel_size=tensor_parallel,
            kv_cache_memory_bytes=int(kv_cache_gb * 2**30),
            # For a prompt that is begun in one pass and ended in a later one vLLM draws twice, and turns the random numbers
            # back in between: on a CPU they cannot be.
            enable_chunked_prefill=not on_cpu,
            enable_prefix_caching=True,  # the completions of a group share their prompt
            logprobs_mode="processed_logprobs",  # of the distribution sampled from; the default ignores the temperature
            generation_config="vllm",  # no penalties or truncations that the recipe does not know of
            enable_lora=spec.adapter_rank > 0,
            max_lora_rank=max(8, spec.adapter_rank),
            max_loras=1,
            lora_target_modules=_linears(plain),
            # vLLM asks for that where it serves adapters; elsewhere its default will do.
            max_num_batched_tokens=max(self.context + 1, max_num_seqs * (drafter.depth + 1))
            if isinstance(drafter, Hosted) and spec.adapter_rank
            else None,
            disable_log_stats=drafter is None,  # its counters tell what became of the drafts
            speculative_config=_speculation(drafter, spec) if drafter else None,
            use_tqdm_on_load=False,
            logits_processors=processors or None,
            worker_extension_cls=f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}",
            weight_transfer_config=WeightTransferConfig(backend="nccl"),  # it needs no GPU until tensors are broadcast
        )
        self._counted: dict[str, int] = {}  # of drafts, when `metrics` was asked for last
        self._draft_seconds = 0.0  # of the last sync, for the compressed copy
        self._sampled = 0  # tokens, since `metrics` was asked for last
        if isinstance(drafter, Compressed):
            self._draft_seconds = max(self._llm.collective_rpc("copy_with", args=(drafter, spec)))
        elif drafter is not None:
            self._llm.collective_rpc("draft_with", args=(drafter, spec, drafts_up_to))
        self._reloading = False  # vLLM is between the start and the finish of a weight update
        self._arriving: dict[str, Tensor] = {}  # of an adapter or a sparse update
        self._adapter: Any = None  # the vllm.lora.request.LoRARequest that is served
        self._requests: dict[str, Request] = {}  # vLLM's request id → what was asked
        self._submitted = 0

    @property
    def version(self) -> int:
        return self._intake.version

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def submit(self, requests: Sequence[Request]) -> None:
        self._intake.refuse_torn()
        refuse_unfit(requests, self.context)
        if self._drafter is not None and any(request.sampling.min_p for request in requests):
            raise UserError("vLLM verifies drafts without min_p: leave out rollout.min_p or rollout.drafter")
        if not self._top_h and any(request.sampling.top_h < 1 for request in requests):
            raise UserError(TOP_H_UNKNOWN)
        for request, code in zip(requests, self._codes(requests), strict=True):
            self._submitted += 1
            self._requests[str(self._submitted)] = request
            prompt = [*request.prompt_ids, *request.prefix.token_ids]
            told = code | {ASKED: (str(self._submitted), request)} if isinstance(self._drafter, Hosted) else code
            self._add(str(self._submitted), prompt, self._sampling_params(request, told))

    def poll(self) -> list[Completion]:
        outputs = self._llm.llm_engine.step() if self._requests else []
        return self._ended({o.request_id: self._completion(o, o.outputs[0].finish_reason) for o in outputs if o.finished})

    def interrupt(self) -> list[Completion]:
        from vllm.v1.engine import FinishReason as Ended

        engine = self._llm.llm_engine
        states = list(engine.output_processor.request_states.items())
        stopped = [state.make_request_output([], None, Ended.ABORT, None) for _, state in states]
        engine.abort_request([name for name, _ in states], internal=True)
        return self._ended({output.request_id: self._completion(output, "interrupted") for output in stopped})

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        from vllm import SamplingParams

        if self.busy:
            raise RuntimeError("logprobs while completions are under way: vLLM's steps would end some, unseen")
        self._intake.refuse_torn()
        if self._chooser is not None:
            raise UserError(LATENT_ASKED)
        scoring = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, flat_logprobs=True)
        for i, (prompt_ids, token_ids) in enumerate(sequences):
            self._add(f"score-{i}", [*prompt_ids, *token_ids], scoring)
        scored: dict[str, list[float]] = {}
        while len(scored) < len(sequences):
            scored |= {output.request_id: output.prompt_logprobs.logprobs for output in self._llm.llm_engine.step()}
        return [scored[f"score-{i}"][-len(token_ids) :] if token_ids else [] for i, (_, token_ids) in enumerate(sequences)]

    def begin_sync(self, manifest: Manifest) -> None:
        if self.busy:
            raise RuntimeError("sync while completions are under way: interrupt() first, then submit them with their prefix")
        if self._chooser is not None:
            raise UserError(LATENT_SYNCED)
        if isinstance(self._drafter, Compressed) and manifest.kind != "full":
            raise SyncError(
                f"a compressed copy is made of whole weights, and weight update {manifest.version} brings {manifest.kind} ones"
            )
        self._intake.begin(manifest)
        self._arriving.clear()
        self._finish()  # what a sync that failed has left half done
        if manifest.kind in ("full", "codes"):
            self._llm.start_weight_update()
            self._reloading = True
            if isinstance(self._drafter, Compressed):
                self._llm.collective_rpc("begin_copy")

    def receive(self, bucket: Bucket) -> None:
        self._intake.check(bucket)
        manifest = self._intake.expected(bucket)
        if is_announced(bucket):
            wrong = self._llm.collective_rpc("receive_weights", args=(_update_info(bucket), dict(bucket.checksums)))
            if names := [name for each in wrong for name in each]:
                raise SyncError(f"{names[0]!r} was not received as it was sent in weight update {bucket.version}")
        elif manifest.kind == "codes":
            wrong = self._llm.collective_rpc("load_codes", args=(bucket, dict(manifest.compressed)))
            if names := [name for each in wrong for name in each]:
                raise SyncError(f"{names[0]!r} was not decoded as it was sent in weight update {bucket.version}, or not loaded")
        elif manifest.kind == "full":
            taken = self._llm.collective_rpc("load_weights", args=(list(bucket.tensors.items()),))
            if set(taken) != {len(bucket.tensors)}:
                raise SyncError(f"vLLM took {taken} of the {len(bucket.tensors)} tensors of bucket {bucket.index}")
        else:
            self._arriving |= {name: tensor.cpu().clone() for name, tensor in bucket.tensors.items()}

    def end_sync(self) -> None:
        manifest = self._intake.end()
        match manifest.kind:
            case "full" | "codes":
                self._finish()
                self._adapter = None
            case "adapter":
                self._adapt(manifest.version)
            case "sparse":
                self._patch()
        self._arriving.clear()
        self._llm.llm_engine.reset_prefix_cache()

    def join(self, group: Mapping[str, Any]) -> None:
        self._finish()  # vLLM leaves no group in the middle of an update
        self._llm.collective_rpc("shutdown_weight_transfer_engine")
        self._llm.init_weight_transfer_engine({"init_info": dict(group)})

    def checksums(self) -> dict[str, int]:
        """Of the embeddings and norms; the matrices are packed together for vLLM's kernels, and split where there is tensor
        parallelism."""
        found: dict[str, int] = self._llm.collective_rpc("weight_checksums", args=(dict(self._intake.served),))[0]
        return found

    def metrics(self) -> Metrics:
        if self._drafter is None:
            return {}
        counted = {m.name: m.value for m in self._llm.get_metrics() if m.name.startswith(COUNTERS) and hasattr(m, "value")}
        since = {name.removeprefix(COUNTERS): count - self._counted.get(name, 0) for name, count in counted.items()}
        self._counted = counted
        passes, drafted, accepted = since["drafts"], since["draft_tokens"], since["accepted_tokens"]
        sampled, seconds = passes + accepted, self._draft_seconds  # each pass adds a token of its own
        if isinstance(self._drafter, Hosted):  # there are passes without drafts too
            told = self._llm.collective_rpc("told_of_drafts")
            passes, seconds = told[0][0], max(each for _, each in told)
            sampled, self._sampled = self._sampled, 0
        return {
            "drafter/accepted": Mean(accepted, drafted),
            "drafter/tokens_per_pass": Mean(sampled, passes),
            "drafter/seconds": Max(seconds),
        }

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, *, kv_cache_gb: float = DEFAULT_CACHE_GB, **_: Any) -> int:
        return int(kv_cache_gb * 2**30)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _add(self, name: str, token_ids: list[int], params: SamplingParams) -> None:
        self._llm.llm_engine.add_request(name, {"prompt_token_ids": token_ids}, params, lora_request=self._adapter)

    def _codes(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """What the processor of latent codes is to be told of each request."""
        if self._chooser is not None:
            return [{CODE_WEIGHTS: weights} for weights in self._chooser.weights(requests).tolist()] if requests else []
        for request in requests:
            refuse_code(request.code, self._location)
        return [{}] * len(requests)

    def _sampling_params(self, request: Request, told: dict[str, Any]) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked, drawn = request.sampling, len(request.prefix.token_ids)
        if asked.top_h < 1:
            told = told | {"top_h": (asked.top_h, asked.top_h_normalized)}
        return SamplingParams(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            max_tokens=asked.max_new_tokens - drawn,
            # A prefix used up its random numbers: going on with the same ones would tie its tokens to the new ones.
            seed=seed_from(request.seed, drawn) if drawn else request.seed,
            stop=list(asked.stop),
            include_stop_str_in_output=True,
            stop_token_ids=self.stop_ids,
            detokenize=bool(asked.stop),
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=told,
        )

    def _completion(self, output: RequestOutput, reason: FinishReason) -> Completion:
        request, sampled = self._requests.pop(output.request_id), output.outputs[0]
        token_ids = list(sampled.token_ids)
        logprobs = list(sampled.logprobs.logprobs) if request.sampling.temperature else [0.0] * len(token_ids)
        text = self.tokenizer.decode([*request.prefix.token_ids, *token_ids], skip_special_tokens=True)
        self._sampled += len(token_ids)
        return request.completed(token_ids, logprobs, self.version, reason, text)

    def _ended(self, completions: dict[str, Completion]) -> list[Completion]:
        if completions and isinstance(self._drafter, Hosted):
            self._llm.collective_rpc("end_drafts", args=(completions,))
        return list(completions.values())

    # -- new weights ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._reloading:
            self._llm.finish_weight_update()
            self._reloading = False
            if isinstance(self._drafter, Compressed):
                self._draft_seconds = max(self._llm.collective_rpc("end_copy"))

    def _adapt(self, version: int) -> None:
        """Adapters reach vLLM as PEFT's files; every version gets its own id, so that no cache can serve an older one."""
        if not self.adapter_rank:
            raise SyncError("an adapter arrived, and the engine was made without adapter_rank")
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in self._arriving})
        with tempfile.TemporaryDirectory() as folder:
            config = LoraConfig(r=self.adapter_rank, lora_alpha=self.adapter_rank, target_modules=modules)
            config.save_pretrained(folder)
            named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in self._arriving.items()}
            save_file(named, Path(folder) / "adapter_model.safetensors")
            self._adapter = LoRARequest(f"version-{version}", version + 1, folder)
            self._llm.llm_engine.add_lora(self._adapter)

    def _patch(self) -> None:
        """The matrices are packed for vLLM's kernels, and nothing can be set in them: they are loaded anew from the checkpoint
        that the engine was made from, with what has arrived in its places."""
        self._llm.start_weight_update()
        self._reloading = True
        taken = self._llm.collective_rpc("load_patched", args=(self._location, dict(self._arriving)))
        if set(taken) != {len(self._intake.served)}:
            raise SyncError(f"vLLM took {taken} of the {len(self._intake.served)} tensors of {self._location}")
        self._finish()


def _chooser(spec: ModelSpec, code: Code | None) -> CodeChooser | None:
    """Of a model with latent codes."""
    if (latent := load_latent(spec.location)) is None:
        refuse_code(code, spec.location)
        return None
    return CodeChooser(latent, spec.load().eval().get_decoder(), code)


def _speculation(drafter: Compressed | Hosted, spec: ModelSpec) -> dict[str, Any]:
    """The fields of vLLM's SpeculativeConfig."""
    if isinstance(drafter, Compressed):
        return drafter.speculation(spec)
    return {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": drafter.depth}


def _refuse_drafts(drafter: Compressed | Hosted, spec: ModelSpec, chooser: CodeChooser | None, top_h: bool) -> None:
    if top_h:
        raise UserError("vLLM verifies drafts without top_h: leave out that option of the engine, or the drafter")
    if spec.adapter_rank and isinstance(drafter, Compressed):
        raise UserError("a compressed copy is made of whole weights, and this engine serves an adapter: set lora.serve=merged")
    if chooser is not None:
        raise UserError(f"vLLM drafts for no model with latent codes, as that at {spec.location} is: leave out the drafter")
    if isinstance(drafter, Hosted) and drafter.depth > LONGEST_DRAFT:
        raise UserError(f"vLLM verifies drafts of {LONGEST_DRAFT} tokens at most: lower rollout.drafter.depth {drafter.depth}")


class WeightReceiver:
    """What vLLM's workers (of tensor-parallel engines, each its own process) do with a bucket, between vLLM's own start and end
    of a weight update: it mixes this into their class. Layer by layer: a layer takes effect when the last of its tensors has
    come, so that no second copy of the model ever exists."""

    vllm_config: Any
    device: Any
    model_runner: Any
    weight_transfer_engine: Any
    update_weights: Any
    copy: CompressedCopy | None = None  # that drafts

    def weight_checksums(self, served: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Of those that this process has whole."""
        model = self.model_runner.get_model()
        named = {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters()}
        return {
            name: checksum(parameter[: shape[0]])  # vLLM pads the vocabulary
            for name, shape in served.items()
            if (parameter := named.get(name)) is not None and parameter.shape[1:] == shape[1:] and len(parameter) >= shape[0]
        }

    def load_weights(self, tensors: Sequence[tuple[str, Tensor]]) -> int:
        """How many of them the model took."""
        from vllm.config import set_current_vllm_config

        offered = iter(tensors)
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.get_model().load_weights(offered)
        if self.copy is not None:
            self.copy.load(tensors)
        return len(tensors) - len(list(offered))

    def load_patched(self, folder: str, sparse: Mapping[str, Tensor]) -> int:
        """Load the checkpoint in `folder`, with what a sparse update changes of it; how many tensors the model took."""
        changed = {name: (where, values) for name, where, values in patches(sparse)}
        taken = 0
        for path in sorted(Path(folder).glob("model*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    tensor = file.get_tensor(name)
                    if name in changed:
                        where, values = changed[name]
                        tensor.view(-1)[where] = values.to(tensor)
                    taken += self.load_weights([(name, tensor)])
        return taken

    def load_codes(self, bucket: Bucket, settings: Settings) -> list[str]:
        """Decode a bucket and load it; the names of the weights that were not decoded as at the sender's, or not taken."""
        tensors = {name: tensor.to(self.device) for name, tensor in bucket.tensors.items()}
        plain = decoded(tensors, settings, self.vllm_config.model_config.dtype)
        return decoded_otherwise(plain, bucket) or list(plain)[self.load_weights(list(plain.items())) :]

    def receive_weights(self, update_info: dict[str, Any], checksums: Mapping[str, int]) -> list[str]:
        """Take a bucket from the learner's GPU; the names of those of its tensors that did not arrive as they were sent."""
        checked = _Checked(self.load_weights, update_info["names"], checksums)
        self.weight_transfer_engine.set_weight_update_target(checked, self.vllm_config.model_config)
        self.update_weights(update_info)
        self.weight_transfer_engine.reset_weight_update_target()
        return checked.wrong

    def copy_with(self, drafter: Compressed, spec: ModelSpec) -> float:
        """Make the draft model, which is the policy as it was loaded, what `drafter` makes of it; the seconds that took."""
        mend_sampling(self.device)
        self.copy = CompressedCopy(self, drafter.codec(spec), self.vllm_config.model_config.dtype)
        self.copy.begin()
        self.copy.load((name, weight.detach()) for name, weight in spec.load().named_parameters())
        return self.end_copy()

    def begin_copy(self) -> None:
        assert self.copy is not None  # `copy_with` comes first
        self.copy.begin()

    def end_copy(self) -> float:
        """The seconds that the draft model took since it began."""
        assert self.copy is not None
        self.copy.end()
        return self.copy.seconds

    def draft_with(self, drafter: Hosted, spec: ModelSpec, at_most: int) -> None:
        """Have the proposer that vLLM made draft by this one; see `rollout.vllm_proposer`."""
        mend_sampling(self.device)
        self.model_runner.drafter.host(drafter, spec, at_most, self.model_runner)

    def end_drafts(self, completions: dict[str, Completion]) -> None:
        self.model_runner.drafter.end(completions)

    def told_of_drafts(self) -> tuple[int, float]:
        told: tuple[int, float] = self.model_runner.drafter.told()
        return told


class _Checked:
    """The model, as vLLM's transfer loads the tensors `names` into it. Whatever has another checksum is kept out, and the rest
    of the bucket taken in, since the sender waits for whoever stops in the middle."""

    def __init__(self, load: Callable[[Any], int], names: Sequence[str], checksums: Mapping[str, int]) -> None:
        self.load, self.wrong, self._checksums = load, list(names), checksums

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            if self._checksums.get(name) == checksum(tensor):
                self.load([(name, tensor)])
                self.wrong.remove(name)


def _update_info(bucket: Bucket) -> dict[str, Any]:
    """The fields of vLLM's NCCLWeightTransferUpdateInfo."""
    return {
        "names": list(bucket.tensors),
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.tensors.values()],
        "shapes": [list(tensor.shape) for tensor in bucket.tensors.values()],
    }


def _linears(model: PreTrainedModel) -> list[str]:
    """What PEFT calls all-linear. Without the head: with an adapter there, vLLM 0.32 cannot score prompts on a CPU."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
