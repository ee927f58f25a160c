"""Where the text of a run comes from: licence, citation and revision of every corpus, as its ledger keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lifelong.records import RunHistory
from lifelong.report.view import Table, table

NOT_STATED = "not stated"
# what the field calls licences under which a model trained on the text cannot simply be given away
_FORBIDS = re.compile(r"\b(nc|non-?commercial|nd|no-?deriv\w*|research[- ]only|proprietary|all rights reserved|confidential|internal)\b", re.I)  # fmt: skip


def corpora(history: RunHistory) -> Iterator[tuple[str, dict[str, str]]]:
    """Every corpus that the run has read, in the order in which it met them, with what its card said."""
    for name in dict.fromkeys((*history.matrix.domains, *history.matrix.watched, *history.sources)):
        yield name, dict(history.sources.get(name, {}))


def sources_table(history: RunHistory) -> Table | None:
    """Corpora with their licences and citations."""
    rows = [
        (name, facts.get("source") or "–", facts.get("licence") or NOT_STATED, facts.get("revision") or "–",
         facts.get("citation") or "–")
        for name, facts in corpora(history)
    ]  # fmt: skip
    return table(
        ("corpus", "source", "licence", "revision", "citation"), rows, left=(0, 1, 2, 3, 4), long=4, name="corpora"
    )


def forbids_sharing(licence: str | None) -> bool:
    """Whether a licence says that what is made of the text may not be given to everybody."""
    return bool(licence and _FORBIDS.search(licence.replace("_", "-")))
