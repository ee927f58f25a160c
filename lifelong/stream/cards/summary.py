"""Summary of a domain, to be inspected before months of training depend on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import InputError, LifelongError
from lifelong.files import write_text
from lifelong.records import NAME_PATTERN
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import Tally, read_documents, read_splits
from lifelong.stream.cards.domain import (
    SPLITS,
    Domain,
    allow_card,
    known_domains,
    load_domain,
    read_card,
)
from lifelong.stream.cards.overlap import DuplicateFilter
from lifelong.stream.cards.pieces import PIECE_BYTES, Pieces
from lifelong.stream.cards.sources import source_kinds
from lifelong.stream.ordering import key_of, permuted
from lifelong.stream.tokenizers.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SAMPLES = 3
SAMPLE_CHARACTERS = 300
# signatures cost about a second per 3 MB: beyond this much text the rates are those of the beginning
COMPARED_BYTES = 20_000_000
OTHERS_BYTES = 250_000
# of a larger text so many pieces are read, and its figures are estimates
SAMPLED_PIECES = 16


@dataclass(frozen=True)
class Overlap:
    """Documents of a known domain's split that are also, exactly or nearly, in the domain described."""

    domain: str
    split: str
    documents: int
    compared: int

    @property
    def share(self) -> float:
        """Share of the documents compared."""
        return self.documents / self.compared


@dataclass(frozen=True)
class DomainSummary:
    """Figures of a domain. Rates are shares of the documents compared; `fertility` is tokens per word.

    `left_out` counts empty, bad and repeated documents of the training split, `bad_reasons` says why for the
    first. `overlaps` lists only what does overlap; `unread` names known domains that could not be compared.
    `sampled` is the share of a large text that was read: counts of all of it are estimates then.
    """

    name: str
    card: str | None
    licence: str | None
    documents: dict[str, int]
    bytes: dict[str, int]
    left_out: dict[str, int]
    bad_reasons: list[str]
    samples: list[str]
    exact_duplicates: float
    near_duplicates: float
    compared: int
    overlaps: list[Overlap] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    tokens: int | None = None
    fertility: float | None = None
    bytes_per_token: float | None = None
    sampled: float = 1.0

    @property
    def warnings(self) -> list[str]:
        """Warnings to read before training on the domain."""
        found = [f"held-out text of {o.domain} ({o.split}) is in it: {o.documents} of {o.compared} documents"
                 for o in self.overlaps if o.split != "train"]  # fmt: skip
        if self.sampled < 1:
            found.append(
                f"estimated from {self.sampled:.2g} of the text, in {SAMPLED_PIECES} places; a document that cannot be "
                "read may be elsewhere: --full reads all of it"
            )
        if not self.licence:
            found.append("the card names no licence")
        if self.exact_duplicates + self.near_duplicates > 0.05:
            rate = self.exact_duplicates + self.near_duplicates
            found.append(f"{rate:.0%} of its documents repeat others; `dedup: near` drops them")
        if self.bytes["train"] > COMPARED_BYTES and self.sampled == 1:
            found.append(f"repeats and overlap were searched in the first {COMPARED_BYTES // 10**6} MB only")
        if self.left_out["bad"]:
            found.append(f"{self.left_out['bad']} documents could not be read, the first: {self.bad_reasons[0]}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, warnings included."""
        return {**asdict(self), "warnings": self.warnings}


def describe_domain(
    domain: Domain,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    against: Sequence[str] | None = None,
    full: bool = False,
) -> DomainSummary:
    """What the splits of a domain hold, counted, or estimated from a sample where the text is large.

    Args:
        domain: the card.
        tokenizer: for the number of tokens and the fertility.
        against: names of the domains to compare with; all known ones if absent. Those of the hub, and those
            whose files are not here, are left out and named.
        full: read all of it, however large.

    Raises:
        InputError: a split is empty or a document cannot be read.
    """
    tallies = {split: Tally() for split in SPLITS}
    pieces = None if full else _pieces_of_large(domain)
    share = 1.0 if pieces is None else SAMPLED_PIECES / len(pieces)
    seen = DuplicateFilter(near=True)
    samples: list[str] = []
    counted = _Counted(tokenizer)
    compared = 0
    for split, document in counted.passing(_documents(domain, tallies, pieces)):
        if split != "train":
            continue
        if len(samples) < NUM_SAMPLES:
            samples.append(_shortened(document.text))
        if tallies["train"].bytes <= COMPARED_BYTES:
            compared += 1
            seen.is_new(document)
    for split, tally in tallies.items():
        if not tally.documents:
            next(read_documents(domain, split), None)  # which says why
    overlaps, unread = _overlaps(domain, seen, known_domains() if against is None else against)
    train = tallies["train"]
    total_bytes = sum(tally.bytes for tally in tallies.values())
    factors = {split: 1 if split != "train" and split in domain.source.own_splits else 1 / share for split in SPLITS}
    whole_bytes = {split: round(tally.bytes * factors[split]) for split, tally in tallies.items()}
    return DomainSummary(
        name=domain.name,
        card=str(domain.path) if domain.path else None,
        licence=domain.licence,
        documents={split: round(tally.documents * factors[split]) for split, tally in tallies.items()},
        bytes=whole_bytes,
        left_out={"empty": train.empty, "bad": train.bad, "repeated": train.duplicates},
        bad_reasons=train.bad_reasons,
        samples=samples,
        exact_duplicates=seen.num_exact / max(1, compared),
        near_duplicates=seen.num_near / max(1, compared),
        compared=compared,
        overlaps=overlaps,
        unread=unread,
        tokens=round(counted.tokens * sum(whole_bytes.values()) / max(1, total_bytes)) if tokenizer else None,
        fertility=counted.tokens / max(1, counted.words) if tokenizer is not None else None,
        bytes_per_token=total_bytes / max(1, counted.tokens) if tokenizer is not None else None,
        sampled=share,
    )


def _pieces_of_large(domain: Domain) -> Pieces | None:
    """Pieces of a text of which a sample is enough; None where all of it is to be read."""
    files = domain.source.files_of(domain)
    if files is None or domain.take_bytes is not None:
        return None
    pieces = Pieces(files, PIECE_BYTES)
    return pieces if pieces.num_bytes > COMPARED_BYTES and len(pieces) > SAMPLED_PIECES else None


def _documents(domain: Domain, tallies: Mapping[str, Tally], pieces: Pieces | None) -> Iterator[tuple[str, Document]]:
    """Documents with their split; a text from which splits are cut is read once, where that tells the same."""
    alone = list(SPLITS)
    if pieces is not None or (domain.dedup == "none" and domain.take_bytes is None):
        key = key_of("sample of a domain")
        places = [permuted(number, len(pieces), key) for number in range(SAMPLED_PIECES)] if pieces is not None else []
        yield from read_splits(domain, tallies, None if pieces is None else [pieces[place] for place in places])
        alone = [split for split in ("valid", "test") if split in domain.source.own_splits]
    for split in alone:
        yield from ((split, document) for document in read_documents(domain, split, tallies[split]))


class _Counted:
    """Counts words and tokens of the documents that pass."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._encoder = Encoder(tokenizer) if tokenizer is not None else None
        self.tokens = self.words = 0

    def passing(self, documents: Iterable[tuple[str, Document]]) -> Iterable[tuple[str, Document]]:
        iterator = iter(documents)
        while batch := list(islice(iterator, 64)):
            if self._encoder is not None:
                self.tokens += sum(len(ids) for ids in self._encoder.encode_batch([d.text for _, d in batch]))
                self.words += sum(len(d.text.split()) for _, d in batch)
            yield from batch


def _overlaps(domain: Domain, seen: DuplicateFilter, names: Iterable[str]) -> tuple[list[Overlap], list[str]]:
    overlaps, unread = [], []
    for name in names:
        if name == domain.name:
            continue
        try:
            other = load_domain(name)
            if other.source.remote:
                unread.append(name)
                continue
            for split in SPLITS:
                limit = OTHERS_BYTES if split == "train" else COMPARED_BYTES
                found, compared = _count_known(other, split, seen, limit)
                if found:
                    overlaps.append(Overlap(name, split, found, compared))
        except LifelongError:
            unread.append(name)
    return overlaps, unread


def _count_known(other: Domain, split: str, seen: DuplicateFilter, limit: int) -> tuple[int, int]:
    found = compared = size = 0
    for document in read_documents(other, split):
        found += seen.kind_of(document) != "new"
        compared += 1
        size += document.num_bytes
        if size >= limit:
            break
    return found, compared


def _shortened(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rstrip() + " ..."


def add_domain(
    name: str,
    *,
    out: Path = Path("domains"),
    tokenizer: PreTrainedTokenizerBase | None = None,
    full: bool = False,
    **keys: Any,
) -> tuple[Path, DomainSummary]:
    """Writes a card after reading the corpus with it, of a large one a sample; where that fails, nothing is written.

    Args:
        name: of the domain and of the card.
        out: folder of the card.
        tokenizer: for the summary.
        full: read all of it, however large.
        **keys: of the card (`text_field`, `held_out`, `dedup`, ...) and of its source: exactly one of the kinds
            (`files`, `hub`, `python_text`, ...) and what else the kind takes (`valid`, `revision`, ...). None is left
            out. Patterns of files are relative to the working folder.

    Raises:
        InputError: the name is none or taken, not exactly one source is given, or the corpus cannot be read.
    """
    import yaml

    if not NAME_PATTERN.fullmatch(name):
        raise InputError(f"{name!r} is not a valid name: use letters, digits, '.', '_', '-', at most 64")
    card = out / f"{name}.yaml"
    if card.exists():
        raise InputError(f"{card}: there is a card of this name; remove it, or choose another name")
    source, given = _source_of(name, keys, out)
    text = yaml.safe_dump({"name": name, "source": source, **given}, sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / card.name
        draft.write_text(text, encoding="utf-8")
        domain = _read_draft(draft, card)
    summary = describe_domain(domain.model_copy(update={"path": card.resolve()}), tokenizer, full=full)
    write_text(card, text)
    allow_card(domain)
    return card, summary


def _source_of(name: str, keys: Mapping[str, Any], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys divided into those of the source section, its kind first, and the other keys of the card."""
    kinds = source_kinds()
    given = {key: value for key, value in keys.items() if value not in (None, (), []) and (value or key not in kinds)}
    chosen = [kind for kind in kinds if kind in given]
    if len(chosen) != 1:
        *titles, last = (source.title for source in kinds.values())
        raise InputError(f"domain {name!r}: give exactly one of {', '.join(titles)}, or {last}")
    source = kinds[chosen[0]]
    # a key of another kind goes there too: reading the card then tells what this kind takes
    fields = dict.fromkeys(
        [*chosen, *source.model_fields, *(key for kind in kinds.values() for key in kind.model_fields)]
    )
    section = source.portable({key: given.pop(key) for key in fields if key in given}, out)
    return section, given


def _read_draft(draft: Path, card: Path) -> Domain:
    """The card that is about to be written; what is wrong with it is said of the card, not of the draft."""
    try:
        return read_card(draft)
    except InputError as error:
        raise InputError(str(error).replace(str(draft), f"{card} (not written)")) from None
