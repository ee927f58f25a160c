"""Tokens for a domain: tokenizer and vocabulary of a checkpoint grow together, and what that does to the domain's text.

A new token begins as the mean of the tokens that it was split into, in the embedding and in the output. The rows
of old tokens keep their bits, so that old logits are exact; behind the softmax old tokens share their probability with
the new ones, so that a loss may rise at first. Training on the domain makes use of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lifelong.errors import InputError
from lifelong.evaluate.cards import EvaluationSettings, evaluate_heldouts
from lifelong.expand import expand_checkpoint
from lifelong.expand.family import family_of
from lifelong.expand.shards import FileEntry
from lifelong.expand.source import source_folder
from lifelong.lm.checkpoint import load_config, load_model, to_accelerator
from lifelong.records import DomainLoss, ExpansionReport
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.heldout import Heldout, write_heldout
from lifelong.stream.tokenizers.grow import GrownTokenizer, grow_tokenizer
from lifelong.stream.tokenizers.load import DOMAIN_TOKENIZERS, load_tokenizer

SAMPLE_BYTES = 20_000_000
HELDOUT_TOKENS, LONGEST_WINDOW = 20_000, 256
STALE = ("vocab.*", "merges.txt", "*.model", "tokenizer*", "added_tokens.json", "special_tokens_map.json")


@dataclass(frozen=True)
class AddedTokens:
    """New tokens of a growth, and the held-out text of their card before and after."""

    card: str
    count: int
    tokens_per_word: tuple[float, float]
    bits_per_byte: tuple[float, float]
    documents: int
    tokens: tuple[str, ...]

    def note(self) -> str:
        """One line."""
        words, bits = self.tokens_per_word, self.bits_per_byte
        return (
            f"{self.count} tokens of {self.card}: {words[0]:.3f} -> {words[1]:.3f} tokens per word, {bits[0]:.4f} -> "
            f"{bits[1]:.4f} bits per byte on {self.documents} held-out documents, before any training"
        )


def expand_with_tokens(
    source: str | Path, out: str | Path, card: str, count: int, *, targets: Mapping[str, int], **options: Any
) -> ExpansionReport:
    """Grow a checkpoint by new tokens for a domain, and by sizes.

    Args:
        source: folder, hub id or run folder.
        out: new folder.
        card: domain card whose training text says which tokens.
        count: how many.
        targets: further sizes; the vocabulary is as large as it has to be.
        options: of `expand_checkpoint`.

    Raises:
        InputError: no such card, too little text, or a tokenizer that cannot get tokens; nothing was written.
    """
    if count < 1:
        raise InputError(f"--add-tokens-from: the number of tokens is at least 1, not {count}")
    if "vocab_size" in targets:
        raise InputError("--vocab-size: --add-tokens-from makes the vocabulary as large as it has to be; leave it out")
    domain = load_domain(card)
    folder = source_folder(str(source))
    if (folder / DOMAIN_TOKENIZERS).is_dir():
        raise InputError(f"--add-tokens-from: {str(folder)!r} reads every domain with a tokenizer of its own")
    before = load_tokenizer(folder)
    grown = grow_tokenizer(before, _sample(domain), count)
    config = load_config(folder)
    size = int(config.vocab_size)
    settings = EvaluationSettings(
        HELDOUT_TOKENS,
        min(LONGEST_WINDOW, getattr(config, "max_position_embeddings", None) or LONGEST_WINDOW),
        family_of(config).objective,
        "valid",
    )

    def finish(partial: Path, rows: Sequence[FileEntry]) -> dict[str, Any]:
        for entry in rows:
            write_means(entry, grown.pieces)
        _write_tokenizer(partial, grown)
        with TemporaryDirectory() as temporary:
            texts = _heldouts(domain, (before, grown.tokenizer), Path(temporary))
            losses = (
                _loss(folder, texts[0], before, settings),
                _loss(partial, texts[1], grown.tokenizer, settings),
            )
            words = sum(len(texts[0].text(index).split()) for index in range(len(texts[0])))
            added = AddedTokens(
                domain.name,
                count,
                (texts[0].num_tokens / max(1, words), texts[1].num_tokens / max(1, words)),
                (losses[0].bits_per_byte, losses[1].bits_per_byte),
                len(texts[0]),
                tuple(grown.tokenizer.convert_ids_to_tokens(list(grown.pieces))),
            )
        return {"added_tokens": asdict(added), "notes": (added.note(),)}

    return expand_checkpoint(
        source, out, targets={**targets, "vocab_size": max(size, grown.size)}, finish=finish, **options
    )


def write_means(entry: FileEntry, pieces: Mapping[int, Sequence[int]]) -> None:
    """Make rows of a written parameter the mean of others."""
    with entry.path.open("r+b") as file:

        def row(number: int) -> torch.Tensor:
            file.seek(entry.offset + number * entry.row_bytes)
            return torch.frombuffer(bytearray(file.read(entry.row_bytes)), dtype=entry.dtype)

        for number, parts in pieces.items():
            mean = torch.stack([row(part) for part in parts]).double().mean(0).to(entry.dtype)
            file.seek(entry.offset + number * entry.row_bytes)
            file.write(mean.view(torch.uint8).numpy().tobytes())


def _sample(domain: Domain) -> Iterator[str]:
    """The first documents of the training text."""
    size = 0
    for document in read_documents(domain, "train"):
        yield document.text
        if (size := size + document.num_bytes) >= SAMPLE_BYTES:
            return


def _write_tokenizer(folder: Path, grown: GrownTokenizer) -> None:
    """Save the tokenizer in place of the old one.

    Raises:
        InputError: what `AutoTokenizer` reads of it is another one.
    """
    for path in {path for pattern in STALE for path in folder.glob(pattern)}:
        path.unlink()
    grown.tokenizer.save_pretrained(folder)
    again, ids = load_tokenizer(folder), list(grown.pieces)
    texts = [grown.tokenizer.decode([number]) for number in ids]
    if again.convert_ids_to_tokens(ids) != grown.tokenizer.convert_ids_to_tokens(ids) or (
        again(texts).input_ids != grown.tokenizer(texts).input_ids
    ):
        raise InputError(
            f"--add-tokens-from: {type(again).__name__} does not read the grown tokenizer back as it was written"
        )


def _heldouts(domain: Domain, tokenizers: Sequence[Any], folder: Path) -> list[Heldout]:
    """The same held-out documents as each tokenizer reads them."""
    before, after = tokenizers
    first = write_heldout(domain, "valid", before, HELDOUT_TOKENS, folder / "before")
    second = write_heldout(domain, "valid", after, HELDOUT_TOKENS, folder / "after")  # fewer tokens: no fewer documents
    return [first, Heldout(second.path, len(first))]


def _loss(model: str | Path, heldout: Heldout, tokenizer: Any, settings: EvaluationSettings) -> DomainLoss:
    loaded = load_model(model, settings.objective)
    to_accelerator(loaded)
    return evaluate_heldouts(loaded, [heldout], tokenizer, settings)[0]
