"""Files that survive: atomic writes, hashes, and the model folder of a stage.

Only safetensors, JSON, YAML and Arrow are written here; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import CorruptionError, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK_BYTES = 1 << 20
# beside the tokenizer of a model that was taught by several vocabularies: a folder for each domain
DOMAIN_TOKENIZERS = "domain_tokenizers"
# names under which files and folders are filled before they get their own: what a kill leaves behind
PARTIAL = re.compile(r"\..+\.(tmp|part|partial|[0-9a-f]{8})$")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor nan: both become null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, data: Any) -> None:
    """Like `write_text`; numbers keep all their digits, so that what is read back is bitwise the same."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours.

    Raises:
        CorruptionError: missing, unreadable, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptionError(f"{path}: the file is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptionError(f"{path}: cannot be read as JSON ({error})") from None


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file that carries the hash of the rest of it: for what stands beside the ledger, not in it."""
    write_text(path, _sealed(data))


def read_sealed(path: Path) -> dict[str, Any]:
    """Inverse of `write_sealed`.

    Raises:
        CorruptionError: missing, or any byte of it was changed.
    """
    data = read_json(path)
    if isinstance(data, dict):
        data.pop("sha256", None)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == _sealed(data):
                return data
    raise CorruptionError(f"{path}: its content is not what was written")


def json_fingerprint(data: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _sealed(data: Mapping[str, Any]) -> str:
    return json.dumps({"sha256": json_fingerprint(data), **data}, ensure_ascii=False, indent=1) + "\n"


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder` durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hashes(folders: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of every file below `folders`, by its path relative to `root`."""
    return {
        path.relative_to(root).as_posix(): file_hash(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears complete or not at all: fill the yielded one, it is made durable and renamed."""
    partial = folder.with_name(f".{folder.name}.partial")
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk what was half written is in the way
        raise
    partial.rename(folder)
    sync_folder(folder.parent)


def remove_partials(folder: Path) -> None:
    """Remove everything below `folder` that was still being written when its process died."""
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if PARTIAL.match(name)]:
            folders.remove(name)
            remove_tree(Path(parent) / name)
        for name in files:
            if PARTIAL.match(name):
                (Path(parent) / name).unlink()


def free_name(path: Path) -> Path:
    """`path` with the first number behind it that is not taken; asks no clock, which may go backwards."""
    number = 1
    while (found := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def remove_tree(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """A plain `save_pretrained` folder with the tokenizer beside the weights.

    Args:
        model: to save.
        tokenizer: its own.
        folder: to write.
        weights: what `whole_weights` gave, where the model itself holds only a part of them.
    """
    if weights is not None:
        model = _with_weights(model, weights)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def copy_domain_tokenizers(source: Path, out: Path) -> None:
    """Take along what reads the domains of a checkpoint, where teachers of several vocabularies were merged in it."""
    if (source / DOMAIN_TOKENIZERS).is_dir():
        shutil.copytree(source / DOMAIN_TOKENIZERS, out / DOMAIN_TOKENIZERS)


def is_in_parts(model: PreTrainedModel) -> bool:
    """Whether every process of the run holds only a part of each parameter (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: PreTrainedModel) -> Mapping[str, Tensor] | None:
    """All weights of a model that lies in parts on several processes, on the CPU of the first one; every one calls.

    Returns:
        None where each process has them all anyway; nothing in any but the first.
    """
    if not is_in_parts(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=whole)
    return dict(weights)


def _with_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A stock model of the same configuration with these weights; copies none of them."""
    import torch

    # fully_shard has put a class of its own in front of the model's
    stock = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models."))
    with torch.device("meta"):
        plain: PreTrainedModel = stock(model.config)
    plain.load_state_dict(dict(weights), strict=True, assign=True)
    plain.tie_weights()
    return plain


def load_model(source: str | Path, objective: str, revision: str | None = None) -> PreTrainedModel:
    """A model in float32 with the head of the objective (`clm` or `mlm`), from a folder or the hub.

    Raises:
        InputError: no such checkpoint, or one that transformers cannot load.
    """
    import transformers
    from safetensors import SafetensorError

    auto = transformers.AutoModelForCausalLM if objective == "clm" else transformers.AutoModelForMaskedLM
    try:
        with _in_every_process():
            return auto.from_pretrained(
                str(source), revision=revision or "main", dtype="float32", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"checkpoint {str(source)!r}: transformers cannot load it as {objective}: {reason}") from None


@contextlib.contextmanager
def _in_every_process() -> Iterator[None]:
    """Load weights wherever that is asked for: with FSDP, accelerate may ask for empty ones in all but one process."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def load_config(source: str | Path, revision: str | None = None) -> Any:
    """The configuration of a checkpoint, without its weights.

    Raises:
        InputError: no such checkpoint.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(
            str(source), revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"checkpoint {str(source)!r}: {reason}") from None


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and bytes of all weights and the configuration's architecture."""
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(_bytes_dtype()).numpy().tobytes())
    return digest.hexdigest()


def _bytes_dtype() -> Any:
    import torch

    return torch.uint8
