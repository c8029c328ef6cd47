"""The embedded engine: a transformers model in this process, on any device. Runs everywhere; vLLM is for speed.

Continuous batching over a slot cache (`rollout.cache`): rows enter when a slot is free, identical prompts are prefilled once
and different ones packed (`rlcore.packing`), finished rows leave at once. It keeps its own copy of the weights, which only
`sync` changes.

With a drafter (`rollout.drafters`) the rows are those of a `rollout.decoding.decode.Decoder` instead, and a poll is one round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.latent import load_latent
from rlcore.models import ModelSpec, context_of
from rlcore.packing import distinct, pack
from rlcore.protocols import Bucket, Engine, Manifest, Tokens
from rlcore.run.metrics import Mean, Metrics
from rlcore.types import Code, Completion, FinishReason, Request
from rollout import attention
from rollout.admission import refuse_unfit
from rollout.cache import Decode, Prefill, SlotCache
from rollout.decoding.decode import Counts, Decoder
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.worth import Worth
from rollout.latent import LATENT_ASKED, LATENT_SYNCED, CodeChooser, refuse_code
from rollout.sampling import SamplingRows, sample, uniforms
from rollout.stop_strings import ends_with
from rollout.sync import Intake, adapted, checksum, patches

DEFAULT_BATCH = 256


class Transformers(Engine):
    """`batch_size` is the number of rows decoded together; memory grows with it times the longest request. `code`: the usual
    one of a model with latent codes (`rollout.latent`), which otherwise answers with the expected one. `drafter` guesses tokens
    that the model verifies; it keeps what it learned over weight syncs. It is asked where its drafts pay
    (`rollout.decoding.worth`), or with `always_draft` in every round. Raises UserError for a drafter where there are latent
    codes, and for one that is not for this model."""

    verifies = Drafter

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        *,
        batch_size: PositiveInt = DEFAULT_BATCH,
        code: Code | None = None,
        drafter: Drafter | None = None,
        always_draft: bool = False,
    ) -> None:
        latent = load_latent(spec.location)
        if always_draft and drafter is None:
            raise UserError("always_draft: there is no drafter; leave it out, or set rollout.drafter")
        if latent is None:
            refuse_code(code, spec.location)
        elif drafter is not None:
            raise UserError(f"no draft is verified for a model with latent codes, as {spec.location} is: leave out the drafter")
        model = spec.load()
        model.set_attn_implementation(attention.NAME)
        self.model, self.tokenizer = model.eval(), tokenizer
        self._chooser = None if latent is None else CodeChooser(latent, model.get_decoder(), code)
        self._code_logits = None if latent is None else latent.logits(model.get_output_embeddings().weight)
        self.stop_ids = torch.tensor(sorted(stop_ids), device=model.device)
        self.capacity = batch_size
        self.context = context_of(model.config)
        self._intake = Intake({name: tuple(p.shape) for name, p in model.named_parameters()})
        self._arriving: dict[str, Tensor] = {}  # of an adapter or a sparse update
        self._merged: dict[str, Tensor] = {}  # the weights under the adapter that is served
        self._patched: dict[str, tuple[Tensor | slice, Tensor]] = {}  # by sparse updates: where, and what was there
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []  # the request in each used slot
        self._decoder: Decoder | None = None
        if drafter is not None:
            drafter.load(spec)
            always = always_draft or drafter.draws
            self._decoder = Decoder(model, drafter, stop_ids, tokenizer, None if always else Worth())
        self._release()

    @property
    def version(self) -> int:
        return self._intake.version

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting or (self._decoder and self._decoder.rows))

    def submit(self, requests: Sequence[Request]) -> None:
        self._intake.refuse_torn()
        refuse_unfit(requests, self.context)
        if self._chooser is None:
            for request in requests:
                refuse_code(request.code, self.model.name_or_path)
        self._waiting.extend(requests)

    @torch.inference_mode()
    def poll(self) -> list[Completion]:
        if self._decoder is not None:
            return self._verify_drafts(self._decoder)
        self._admit()
        if (finished := self._leave()) or not self._rows:
            return finished
        self._decode()
        return self._leave()

    @torch.inference_mode()
    def interrupt(self) -> list[Completion]:
        stopped = [self._completion(slot, "interrupted") for slot in range(len(self._rows))]
        stopped += [self._told(row) for row in (self._decoder.interrupt() if self._decoder else ())]
        stopped += [
            request.completed((), (), self.version, "interrupted", self._decoded(request.prefix.token_ids))
            for request in self._waiting
        ]
        self._rows.clear()
        self._waiting.clear()
        return stopped

    @torch.inference_mode()
    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        self._intake.refuse_torn()
        if self._chooser is not None:
            raise UserError(LATENT_ASKED)
        result = []
        for prompt_ids, token_ids in sequences:
            ids = torch.tensor([[*prompt_ids, *token_ids]], device=self.model.device)
            logits = self.model(ids, logits_to_keep=len(token_ids) + 1).logits[0, :-1].float()
            result.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist())
        return result

    def begin_sync(self, manifest: Manifest) -> None:
        if self.busy:
            raise RuntimeError("sync while completions are under way: interrupt() first, then submit them with their prefix")
        if self._chooser is not None:
            raise UserError(LATENT_SYNCED)
        self._intake.begin(manifest)
        self._arriving.clear()

    @torch.inference_mode()
    def receive(self, bucket: Bucket) -> None:
        self._intake.check(bucket)
        if self._intake.expected(bucket).kind in ("adapter", "sparse"):
            self._arriving |= {name: tensor.clone() for name, tensor in bucket.tensors.items()}
            return
        served = dict(self.model.named_parameters())
        for name, tensor in self._intake.decode(bucket, self.model.dtype, self.model.device).items():
            served[name].copy_(tensor)

    @torch.inference_mode()
    def end_sync(self) -> None:
        match self._intake.end().kind:
            case "full" | "codes":
                self._merged.clear()
                self._patched.clear()
            case "adapter":
                self._merge()
            case "sparse":
                self._patch()
        self._arriving.clear()
        if self._decoder is not None:
            self._decoder.synced()

    @torch.inference_mode()
    def checksums(self) -> dict[str, int]:
        served = dict(self.model.named_parameters())
        whole = {name: checksum(parameter) for name, parameter in served.items() if name not in self._merged}
        patched = {name: where for name, (where, _) in self._patched.items() if isinstance(where, Tensor)}
        return whole | {f"{name}.values": checksum(served[name].view(-1)[where]) for name, where in patched.items()}

    def _merge(self) -> None:
        """Serve W + B·A for every adapted weight; the W are kept for the adapters to come."""
        served = dict(self.model.named_parameters())
        for name in adapted(self._arriving):
            base = self._merged.setdefault(name, served[name].clone())
            a, b = (self._arriving[f"{name.removesuffix('.weight')}.lora_{half}.weight"].to(base.device) for half in "AB")
            served[name].copy_(base + (b.float() @ a.float()).to(base.dtype))

    def _patch(self) -> None:
        """Serve what has arrived in its places; what was there is kept, and set back by the sparse update to come."""
        served = {name: parameter.view(-1) for name, parameter in self.model.named_parameters()}
        for name, (where, before) in self._patched.items():
            served[name][where] = before
        self._patched.clear()
        for name, where, values in patches(self._arriving):
            where = where.to(self.model.device) if isinstance(where, Tensor) else where
            self._patched[name] = where, served[name][where].clone()
            served[name][where] = values.to(served[name])

    def metrics(self) -> Metrics:
        if self._decoder is None:
            return {}
        counts, self._decoder.counts = self._decoder.counts, Counts()
        return {
            "drafter/accepted": Mean(counts.accepted, counts.drafted),
            "drafter/tokens_per_pass": Mean(counts.tokens, counts.trees),
            "drafter/used": Mean(counts.asked, counts.trees),
        }

    def close(self) -> None:
        self._release()
        if self._decoder is not None:
            self._decoder.target.release()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, *, batch_size: int = DEFAULT_BATCH, **_: Any) -> int:
        return min(sequences, batch_size) * sequence_bytes

    def _release(self) -> None:
        self._cache = SlotCache(self.model.config, 0, 0, self.model.dtype, self.model.device)
        self._state = RowState(0, 0, self.model.device)

    # -- with a drafter ---------------------------------------------------------------------------------------------------

    def _verify_drafts(self, decoder: Decoder) -> list[Completion]:
        """Prefill waiting requests into free rows; then one round of all rows."""
        if entering := self._entering(len(decoder.rows)):
            decoder.enter(entering)
        return [self._told(row) for row in decoder.round()] if decoder.rows else []

    def _told(self, row: Row) -> Completion:
        assert row.finish_reason is not None
        return row.request.completed(row.sampled, row.logprobs, self.version, row.finish_reason, self._decoded(row.tokens))

    # -- one round of the batch: admit, draw, leave -----------------------------------------------------------------------

    def _admit(self) -> None:
        """Prefill waiting requests into free slots and draw the token after each prompt."""
        entering = self._entering(len(self._rows))
        if not entering:
            return
        self._reserve(entering)
        start, device = len(self._rows), self.model.device
        self._rows += entering
        prompts, which = distinct([(*r.prompt_ids, *r.prefix.token_ids) for r in entering])
        source = torch.tensor(which, device=device)
        logits = self._prefill(prompts, source, start)[source]
        for slot, request in enumerate(entering, start):
            self._state.enter(slot, request)
        if self._chooser is not None:
            self._state.codes[start : len(self._rows)] = self._chooser.weights(entering)
        self._settings = SamplingRows.of([r.sampling for r in self._rows], logits.shape[-1], device)
        self._draw(logits, slice(start, len(self._rows)))

    def _entering(self, rows: int) -> list[Request]:
        """The waiting requests that there is room for beside so many rows."""
        return [self._waiting.popleft() for _ in range(min(self.capacity - rows, len(self._waiting)))]

    def _prefill(self, prompts: list[tuple[int, ...]], source: Tensor, start: int) -> Tensor:
        """Logits (prompts, V) after each prompt. Slot `start + i` gets the keys and values of prompt `source[i]`."""
        packed = pack(prompts, self.model.device)
        self._cache.enter(Prefill.of(packed, source, start))
        hidden = self.model.get_decoder()(
            packed.ids,
            position_ids=packed.positions,
            attention_mask=packed.mask,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        logits: Tensor = self.model.get_output_embeddings()(hidden[packed.row, packed.start + packed.length - 1])
        return logits

    def _decode(self) -> None:
        """One more token for every row."""
        rows = slice(0, len(self._rows))
        lengths = self._state.lengths[rows]
        width = int(lengths.max()) + 1
        columns = torch.arange(width, device=lengths.device)
        self._cache.enter(Decode(lengths, width))
        logits = self.model(
            self._state.last[rows, None],
            position_ids=lengths[:, None],
            attention_mask=torch.where(columns <= lengths[:, None], 0.0, -torch.inf).to(self.model.dtype)[:, None, None, :],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, 0]
        lengths += 1
        self._draw(logits, rows)

    def _draw(self, logits: Tensor, rows: slice) -> None:
        state = self._state
        index = torch.arange(rows.start, rows.stop, device=logits.device)
        position = state.drawn[rows]
        if self._code_logits is not None:
            logits = logits + (state.codes[rows] @ self._code_logits).to(logits.dtype)
        tokens, logprobs = sample(logits, self._settings.rows(rows), state.uniforms[index, position])
        state.tokens[index, position] = tokens
        state.logprobs[index, position] = logprobs
        state.last[rows] = tokens
        position += 1

    def _leave(self) -> list[Completion]:
        """Take finished rows out of the batch; the last rows move into their slots."""
        count, state = len(self._rows), self._state
        stopped = torch.isin(state.last[:count], self.stop_ids)
        full = state.drawn[:count] >= state.limit[:count]
        reasons: dict[int, FinishReason] = dict.fromkeys(full.nonzero()[:, 0].tolist(), "length")
        reasons |= dict.fromkeys(stopped.nonzero()[:, 0].tolist(), "stop")
        reasons |= dict.fromkeys((i for i, r in enumerate(self._rows) if r.sampling.stop and self._at_stop_string(i)), "stop")
        finished = [self._completion(slot, reason) for slot, reason in sorted(reasons.items())]
        for slot in sorted(reasons, reverse=True):
            last = len(self._rows) - 1
            if slot != last:
                self._cache.move(last, slot, int(state.lengths[last]))
                state.move(last, slot)
                self._settings.move(last, slot)
                self._rows[slot] = self._rows[last]
            self._rows.pop()
        return finished

    # -- what a row leaves behind ----------------------------------------------------------------------------------------

    def _at_stop_string(self, slot: int) -> bool:
        drawn = int(self._state.drawn[slot])
        return ends_with(self._rows[slot].sampling.stop, self._state.tokens[slot, :drawn].tolist(), self.tokenizer)

    def _completion(self, slot: int, reason: FinishReason) -> Completion:
        request, state = self._rows[slot], self._state
        kept, drawn = len(request.prefix.token_ids), int(state.drawn[slot])
        tokens = state.tokens[slot, :drawn].tolist()
        logprobs = state.logprobs[slot, kept:drawn].tolist()
        return request.completed(tokens[kept:], logprobs, self.version, reason, self._decoded(tokens))

    def _decoded(self, tokens: Tokens) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _reserve(self, entering: Sequence[Request]) -> None:
        """Make room for the rows there are and those to come; what is under way is carried over."""
        coming = [*self._rows, *entering, *self._waiting]
        slots = min(self.capacity, len(coming))
        capacity = max(len(r.prompt_ids) + r.sampling.max_new_tokens for r in coming)
        if self._state.fits(slots, capacity):
            return
        slots, capacity = max(slots, self._state.slots), max(capacity, self._state.capacity)
        if not self._rows:
            self._release()  # nothing to carry over: the old cache need not stand beside the new one
        cache = SlotCache(self.model.config, slots, capacity, self.model.dtype, self.model.device)
        state = RowState(slots, capacity, self.model.device, 0 if self._code_logits is None else len(self._code_logits))
        cache.take(self._cache, len(self._rows))
        state.take(self._state, len(self._rows))
        self._cache, self._state = cache, state


class RowState:
    """The per-slot tensors of the batch beside the cache."""

    def __init__(self, slots: int, capacity: int, device: torch.device, codes: int = 0) -> None:
        self.slots, self.capacity = slots, capacity
        self.tokens = torch.zeros(slots, capacity, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(slots, capacity, device=device)
        self.uniforms = torch.zeros(slots, capacity, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)  # columns of the cache that are filled
        self.drawn = torch.zeros(slots, dtype=torch.long, device=device)  # completion tokens, forced prefix included
        self.limit = torch.zeros(slots, dtype=torch.long, device=device)
        self.last = torch.zeros(slots, dtype=torch.long, device=device)
        self.codes = torch.zeros(slots, codes, device=device)  # the share of each latent code

    def _fields(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def fits(self, slots: int, capacity: int) -> bool:
        return slots <= self.slots and capacity <= self.capacity

    def enter(self, slot: int, request: Request) -> None:
        prefix = request.prefix.token_ids
        limit = request.sampling.max_new_tokens
        self.tokens[slot, : len(prefix)] = torch.tensor(prefix, dtype=torch.long)
        self.uniforms[slot, :limit] = torch.from_numpy(uniforms(request.seed, limit))
        self.lengths[slot] = len(request.prompt_ids) + len(prefix)
        self.drawn[slot] = len(prefix)
        self.limit[slot] = limit

    def move(self, source: int, target: int) -> None:
        for field in self._fields():
            field[target] = field[source]

    def take(self, old: RowState, rows: int) -> None:
        for mine, theirs in zip(self._fields(), old._fields(), strict=True):
            mine[(slice(rows), *(slice(n) for n in theirs.shape[1:]))] = theirs[:rows]
