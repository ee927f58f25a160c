"""The checkpoint that grows: where it is, what it is, and what belongs to it beside its weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lifelong.errors import InputError, UnknownNameError
from lifelong.expand.family import Family, family_of
from lifelong.expand.lazy import Fetch, Rows, checkpoint_class, empty_model, stored_tensors
from lifelong.expand.shards import INDEX, WEIGHTS, CheckpointReader
from lifelong.expand.verify import from_weights
from lifelong.ledger.folder import RunFolder
from lifelong.lm.checkpoint import SAFE, load_config
from lifelong.lm.foreign import loading
from lifelong.stream.tokenizers.load import copy_domain_tokenizers

PROCESSORS = "*processor_config.json"
COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates/*", "generation_config.json",
    PROCESSORS, "README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A checkpoint to grow: its model without weights, and functions that give its parameters."""

    empty: Any
    fetch: Fetch
    rows: Rows
    dtype: Callable[[str], torch.dtype]
    left_out: tuple[str, ...] = ()


def source_config(source: str) -> tuple[Any, tuple[str, ...]]:
    """The configuration of a checkpoint, or of its text part where a family covers that alone, which a note says."""
    source = _newest_model(source)
    file = Path(source) / "config.json"
    if (Path(source) / "adapter_config.json").is_file():
        beside = "holds an adapter beside the model" if file.is_file() else "is an adapter, not a model"
        raise InputError(
            f"{source!r} {beside} (adapter_config.json): merge it into its base model first "
            "(peft: merge_and_unload), or grow the base model and carry the adapter over with grow_adapter"
        )
    if not Path(source).exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise InputError(f"checkpoint {source!r}: there is no such folder")
    if Path(source).is_dir() and not file.is_file():
        raise InputError(f"checkpoint {source!r}: no config.json in this folder")
    if file.is_file():
        try:
            written = json.loads(file.read_text(encoding="utf-8"))
            _covered_type(written.get("model_type", "none"), written.get("text_config") or {})
        except (ValueError, AttributeError) as error:
            raise InputError(f"{file}: no configuration ({error})") from None
    whole = load_config(source)
    text = whole.get_text_config()
    if _covered_type(whole.model_type, text.to_dict()) == whole.model_type:
        return whole, ()
    for key in ("dtype", "tie_word_embeddings", "eos_token_id"):  # the whole model goes by its own
        if getattr(whole, key, None) is not None:
            setattr(text, key, getattr(whole, key))
    return text, (
        f"the text part of a {whole.model_type} checkpoint is grown, as a {text.model_type} model of its own; what "
        "sees or hears stays behind",
    )


def _covered_type(model_type: str, text: Mapping[str, Any]) -> str:
    """The type of a checkpoint, or of its text part, that a family covers.

    Raises:
        UnknownNameError: neither is covered.
    """
    try:
        family_of(model_type)
    except UnknownNameError:
        with contextlib.suppress(UnknownNameError):
            family_of(inner := str(text.get("model_type")))
            return inner
        raise
    return model_type


def _newest_model(source: str) -> str:
    """The model of the newest stage where `source` is a run folder.

    Raises:
        InputError: the run has no stage yet.
    """
    run = RunFolder.locate(source)
    if run is None:
        return source
    if not run.require().stages:
        raise InputError(f"{source!r} is a run folder without a committed stage: there is no model to grow yet")
    return str(run.stages[-1].model)


def source_folder(source: str) -> Path:
    """The folder with the files of a checkpoint; of the hub it is fetched.

    Raises:
        InputError: it cannot be fetched.
    """
    source = _newest_model(source)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json", *COMPANIONS]))
    except Exception as error:
        raise InputError(f"checkpoint {source!r}: {' '.join(str(error).split())[:300]}") from None


@contextlib.contextmanager
def open_source(folder: Path, family: Family, config: Any) -> Iterator[Source]:
    """The weights of a checkpoint folder, which can be read inside.

    Raises:
        InputError: there are none, or they are not those of the configuration.
    """
    empty = empty_model(checkpoint_class(config, family.objective), config)
    if not ((folder / WEIGHTS).exists() or (folder / INDEX).exists()):
        raise InputError(f"checkpoint {str(folder)!r}: has neither {WEIGHTS} nor {INDEX}")
    if not family.converted_files:
        with CheckpointReader(folder, family, empty) as reader:
            yield Source(empty, reader.fetch, reader.rows, reader.dtype, tuple(reader.left_out))
        return
    with loading("checkpoint", folder):
        model = type(empty).from_pretrained(folder, dtype="auto", **SAFE)
    weights = stored_tensors(model)
    rows: Rows = lambda name, start, stop: weights[name][start:stop]  # noqa: E731
    yield Source(empty, from_weights(weights), rows, lambda name: weights[name].dtype)


def write_companions(source: Path, out: Path, *, text_only: bool) -> None:
    """The tokenizer, templates, settings of generation and processors, model card and licence, as they are.

    With a text part alone nothing goes that prepares images.
    """
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file() and not (text_only and path.match(PROCESSORS)):
                copy = out / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    copy_domain_tokenizers(source, out)
