"""Tokenisation: training a tokenizer on the stream, and tokenising each corpus once, to Arrow."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lifelong import distributed
from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.files import file_hash, read_sealed, remove_tree, sync_folder, write_sealed
from lifelong.stream.blocks import BlockStore, BlockWriter
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import Tally, read_documents, source_fingerprint, with_progress
from lifelong.stream.cards.domain import Domain
from lifelong.stream.ordering import key_of
from lifelong.stream.packing import Packer
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import END_OF_TEXT, MASK, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = (END_OF_TEXT, PAD, MASK)
TOKENIZER_KINDS = ("bpe",)
_SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
_CACHE_FORMAT = 1
# how much is read to draw the training sample from, in multiples of the sample
_READ_FACTOR = 16
# path, inode, size and time of the blocks that this process has compared with their hash
_verified: set[tuple[str, int, int, int]] = set()


def default_cache_dir() -> Path:
    """`$LIFELONG_CACHE`, else `lifelong` in the user's cache folder."""
    named = os.environ.get("LIFELONG_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifelong"


def train_tokenizer(
    domains: Sequence[Domain],
    *,
    kind: str = "bpe",
    vocab_size: int = 8192,
    seed: int = 0,
    max_bytes: int = 20_000_000,
    read: Callable[[str, int], None] | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the training splits, with end-of-text, padding and mask tokens.

    Every domain gives the same number of bytes, drawn by hash of (seed, document) from the beginning of its
    corpus, so a large domain does not decide the vocabulary alone.

    Args:
        domains: what to train on.
        kind: `bpe`.
        vocab_size: with the special tokens; at least 259.
        seed: of the sample.
        max_bytes: of text, over all domains.
        read: is told how many bytes of which domain have been read.

    Raises:
        InputError: the size cannot be, or the text is too small for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind not in TOKENIZER_KINDS:
        raise UnknownNameError("tokenizer kind", kind, TOKENIZER_KINDS, "tokenizer.train.kind")
    if vocab_size < _SMALLEST_VOCABULARY:
        raise InputError(
            f"tokenizer.train.vocab_size: {vocab_size} is too small; 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens need at least {_SMALLEST_VOCABULARY}"
        )
    if conversations := [domain.name for domain in domains if domain.messages_field is not None]:
        raise InputError(
            f"tokenizer.train: domain {conversations[0]!r} holds messages, which need a chat template, and a new "
            "tokenizer has none; set tokenizer.checkpoint to that of a chat model"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = max(1, max_bytes // max(1, len(domains)))
    texts = (text for domain in domains for text in _sample(domain, share, seed, read))
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        names = ", ".join(domain.name for domain in domains)
        raise InputError(
            f"tokenizer.train.vocab_size: the text of {names} gives only "
            f"{backend.get_vocab_size()} tokens; ask for at most that, or add text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )


def _sample(domain: Domain, max_bytes: int, seed: int, read: Callable[[str, int], None] | None) -> Iterator[str]:
    kept: list[tuple[int, int, str]] = []
    held = seen = 0
    documents: Iterable[Document] = read_documents(domain, "train")
    if read is not None:
        documents = with_progress(documents, partial(read, domain.name))
    for number, document in enumerate(documents):
        heapq.heappush(kept, (-key_of(seed, "tokenizer", document.key), number, document.text))
        held += document.num_bytes
        seen += document.num_bytes
        while held > max_bytes and len(kept) > 1:
            held -= len(heapq.heappop(kept)[2].encode())
        if seen >= _READ_FACTOR * max_bytes:
            break
    yield from (text for _, _, text in sorted(kept, key=lambda item: item[1]))


def tokenize_domain(
    domain: Domain,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    cache_dir: Path | None = None,
    num_proc: int | None = None,
    chosen: NDArray[np.bool_] | None = None,
    tell: Callable[[str], None] = warnings.warn,
    read: Callable[[str, int], None] | None = None,
) -> BlockStore:
    """The blocks of a split; tokenised once, then opened from the cache.

    What the cache holds is verified by its hash once a process (about 1 GB/s), and made again where it is damaged.

    Of the processes of one run the first tokenises, the others wait and map the same file.

    Documents are BOS (EOS where there is none, or CLS), their tokens, EOS (or SEP).

    Args:
        domain: the card.
        split: train, valid or test.
        tokenizer: any of transformers; the fast ones use all cores.
        sequence_length: tokens of a block.
        cache_dir: where the result is kept, by fingerprint of source, tokenizer and settings.
        num_proc: worker processes; without it the threads of `tokenizers` in this process. Worth it from
            about 16 cores on, where one process can no longer read fast enough.
        chosen: whether each document of the split is taken, in the order of `read_documents`; all if absent.
        tell: is told where the cache was damaged.
        read: is told how many bytes of which domain have been tokenised.

    Raises:
        InputError: see `read_documents`.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    folder = distributed.run_on_main_process(
        lambda: _tokenized(domain, split, tokenizer, sequence_length, cache, num_proc, chosen, tell, read)
    )
    return BlockStore(folder / "blocks.arrow")


def _tokenized(
    domain: Domain,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    cache: Path,
    num_proc: int | None,
    chosen: NDArray[np.bool_] | None,
    tell: Callable[[str], None],
    read: Callable[[str, int], None] | None,
) -> Path:
    """Folder of the cache that holds the blocks, filled where it is not there."""
    encoder = Encoder(tokenizer)
    settings = block_settings(domain, encoder, sequence_length, source_fingerprint(domain, split, cache / "digests"))
    if chosen is not None:
        settings["chosen"] = hashlib.sha256(chosen.tobytes()).hexdigest()

    def documents(tally: Tally) -> Iterable[Document]:
        found = read_documents(domain, split, tally)
        taken = found if chosen is None else itertools.compress(found, chosen)
        return taken if read is None else with_progress(taken, partial(read, domain.name))

    folder = cache / "blocks" / f"{domain.name}-{split}-{settings_hash(settings)[:20]}"
    facts = {"domain": domain.name, "split": split}
    write_once(folder, documents, encoder, settings, facts=facts, num_proc=num_proc, tell=tell)
    return folder


def block_settings(domain: Domain, encoder: Encoder, sequence_length: int, source: str) -> dict[str, Any]:
    """All that decides what blocks hold; `source` pins the content of the text and how it is read."""
    settings: dict[str, Any] = {
        "format": _CACHE_FORMAT,
        "source": source,
        "tokenizer": encoder.fingerprint,
        "sequence_length": sequence_length,
    }
    if domain.messages_field is not None:
        settings["template"] = encoder.template_fingerprint
    return settings


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_once(
    folder: Path,
    documents: Callable[[Tally], Iterable[Document]],
    encoder: Encoder,
    settings: Mapping[str, Any],
    *,
    facts: Mapping[str, Any],
    num_proc: int | None = None,
    tell: Callable[[str], None] = warnings.warn,
) -> None:
    """Fill a folder with the blocks of documents where it does not hold them, whole, already.

    Args:
        folder: of `blocks.arrow` and `manifest.json`.
        documents: read only where they are needed.
        encoder: of the tokenizer.
        settings: see `block_settings`.
        facts: for the manifest.
        num_proc: worker processes; threads without it.
        tell: is told where the folder was damaged.
    """
    if folder.exists() and not _is_as_written(folder, settings):
        tell(
            f"{folder}: is damaged, or was written before such folders had a hash: {facts['domain']} is tokenised again"
        )
        remove_tree(folder)
    if not folder.exists():
        _tokenize_to(folder, documents, encoder, settings, facts, num_proc)


def _is_as_written(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether blocks and manifest are what was written; the blocks are read once a process."""
    try:
        manifest, blocks = read_sealed(folder / "manifest.json"), (folder / "blocks.arrow").stat()
        state = (str(folder), blocks.st_ino, blocks.st_size, blocks.st_mtime_ns)
        if manifest["settings"] != settings:
            return False
        if state not in _verified and manifest["blocks_sha256"] != file_hash(folder / "blocks.arrow"):
            return False
    except (CorruptionError, OSError, KeyError):
        return False
    _verified.add(state)
    return True


def manifest_of(store: BlockStore) -> dict[str, Any]:
    """Counts made when the store was written: documents, bytes, tokens, left out, fingerprints."""
    manifest: dict[str, Any] = json.loads((store.path.parent / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def _tokenize_to(
    folder: Path,
    documents: Callable[[Tally], Iterable[Document]],
    encoder: Encoder,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    num_proc: int | None,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    tally = Tally()
    try:
        with BlockWriter(temporary / "blocks.arrow", encoder.vocab_size) as writer:
            packer = Packer(settings["sequence_length"], writer.append)
            texts = (document.text for document in documents(tally))
            for ids in encoder.encode_all(texts, num_proc=num_proc):
                packer.add(ids)
            packer.finish()
        counts = {**tally.to_json(), "blocks": writer.num_blocks, "tokens": writer.num_tokens}
        digest = file_hash(temporary / "blocks.arrow")
        manifest = {**facts, **counts, "blocks_sha256": digest, "settings": dict(settings)}
        write_sealed(temporary / "manifest.json", manifest)
        sync_folder(temporary)
        try:
            temporary.rename(folder)
            sync_folder(folder.parent)
        except OSError:
            # another process finished the same work first; its result is the same
            if not _is_as_written(folder, settings):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
