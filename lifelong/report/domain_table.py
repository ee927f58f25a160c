"""Summary of a domain as a table for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from lifelong.stream.cards.summary import DomainSummary

SHOWN_CHARACTERS = 160


def summary_table(summary: DomainSummary) -> Table:
    """Splits, tokens, repeats, overlap with known domains, and the beginnings of three documents."""
    table = Table(title=summary.name, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, Text(value))  # a corpus may hold anything, square brackets too
    return table


def _rows(summary: DomainSummary) -> Iterator[tuple[str, str]]:
    for split, count in summary.documents.items():
        yield (split, f"{count:,} documents, {summary.bytes[split]:,} bytes")
    left_out = [f"{count:,} {kind}" for kind, count in summary.left_out.items() if count]
    if left_out:
        yield ("left out", ", ".join(left_out))
    yield ("licence", summary.licence or "not stated")
    if summary.tokens is not None:
        yield ("tokens", f"{summary.tokens:,} in all splits, {summary.bytes_per_token:.2f} bytes each")
        yield ("fertility", f"{summary.fertility:.2f} tokens per word")
    for kind, rate in (("exact repeats", summary.exact_duplicates), ("near repeats", summary.near_duplicates)):
        yield (kind, f"{round(rate * summary.compared):,} of {summary.compared:,} documents ({rate:.1%})")
    for overlap in summary.overlaps:
        held_out = "" if overlap.split == "train" else ", held out"
        yield ("overlap", f"{overlap.share:.1%} of {overlap.domain} ({overlap.split}{held_out}) is in it")
    if not summary.overlaps:
        yield ("overlap", "none found with the domains that could be compared")
    if summary.unread:
        yield ("not compared", ", ".join(summary.unread))
    for number, sample in enumerate(summary.samples, start=1):
        text = " ".join(sample.split())
        shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " ..."
        yield (f"sample {number}", shown)
