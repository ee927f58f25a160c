"""Commands on corpora: domain cards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lifelong.cli.terminal import JsonOption, quiet_libraries, say, show
from lifelong.cli.verbs import HELP, Verbs, add
from lifelong.errors import InputError, did_you_mean

TABLE_ROWS = 500  # a longer list is for a pager or grep: rich takes seconds to lay it out

FullOption = Annotated[bool, typer.Option("--full", help="Read all of a large corpus, not a sample.")]

domain_app = typer.Typer(
    cls=Verbs, no_args_is_help=True, context_settings=HELP, help="Add, list, inspect and check corpora."
)


def domain_add(
    name: Annotated[str, typer.Argument(help="Name of the domain.")],
    files: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Training files; may be repeated.")] = None,
    valid: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Held-out files, or the split of --hub; default: by hash.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Test files, or the split of --hub.")] = None,
    hub: Annotated[str | None, typer.Option(metavar="ID", help="Data set on the Hugging Face hub.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the hub data set.")] = None,
    python_text: Annotated[str | None, typer.Option(metavar="KIND", help="Text installed with Python.")] = None,
    split: Annotated[str | None, typer.Option(help="Training split of the hub data set.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read the hub data set as it arrives.")] = False,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    messages_field: Annotated[
        str | None, typer.Option(help="Field of messages, lists of {role, content}, instead of text.")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="Share held out for each split not given.")] = None,
    dedup: Annotated[str | None, typer.Option(help="Drop repeated documents: none, exact or near.")] = None,
    on_bad_document: Annotated[str | None, typer.Option(help="error or skip.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the corpus.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the card or its source; may be repeated."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Count tokens with this one.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the card.")] = Path("domains"),
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a card after reading the corpus, of a large one a sample, and show what it holds."""
    from lifelong.stream.cards.summary import add_domain

    quiet_libraries()
    options = {
        "files": files, "valid": valid, "test": test,
        "hub": hub, "config": config, "revision": revision, "split": split, "streaming": streaming or None,
        "python_text": python_text,
        "text_field": text_field, "messages_field": messages_field, "held_out": held_out, "dedup": dedup,
        "on_bad_document": on_bad_document, "licence": licence,
    }  # fmt: skip
    keys = {**options, **_keys(settings or ())}
    card, summary = add_domain(name, out=out, tokenizer=_tokenizer(tokenizer), full=full, **keys)
    _show_summary(summary, as_json)
    if not as_json:
        say(f"card: {card}")


def domain_list(as_json: JsonOption = False) -> None:
    """List every known card with its licence and where its text is."""
    from rich.table import Table
    from rich.text import Text

    from lifelong.stream.cards.domain import list_domains

    if as_json:
        typer.echo(json.dumps(list_domains(), indent=1))
        return
    rows = [
        (str(entry["name"]), str(entry.get("licence") or "not stated"),
         f"broken: {entry['fault']}" if "fault" in entry else str(entry["source"]))
        for entry in list_domains()
    ]  # fmt: skip
    if len(rows) > TABLE_ROWS:
        say("\n".join("  ".join(row) for row in rows))
        return
    table = Table()
    for heading in ("domain", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    show(table)


def domain_show(
    card: Annotated[str, typer.Argument(metavar="CARD", help="Name or path of a domain card.")],
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Count tokens with this one.")] = None,
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Documents, bytes, samples, repeats and overlap with other domains."""
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.cards.summary import describe_domain

    domain = load_domain(card)
    quiet_libraries()
    _show_summary(describe_domain(domain, _tokenizer(tokenizer), full=full), as_json)


def domain_check(
    cards: Annotated[list[str], typer.Argument(metavar="CARD", help="Names or paths of domain cards.")],
    allow_paths: Annotated[
        bool, typer.Option("--allow-paths", help="Take what a card from elsewhere names outside of its folder.")
    ] = False,
) -> None:
    """Read every document of the named domains once; what looks unwise is listed."""
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.cards.summary import describe_domain

    quiet_libraries()
    for card in cards:
        summary = describe_domain(load_domain(card, allow_paths=allow_paths), full=True)
        say(f"{summary.name}: {sum(summary.documents.values()):,} documents read")
        for warning in summary.warnings:
            say(f"  ! {warning}")
        if not summary.warnings:
            say("  no problems found")


def _keys(settings: Sequence[str]) -> dict[str, Any]:
    """Keys of a card from `licence=X` and `source.format=text`; values are YAML.

    Raises:
        InputError: no `=`, or a key that neither a card nor any kind of source has.
    """
    from lifelong.recipe.files import apply_override
    from lifelong.stream.cards.domain import Domain
    from lifelong.stream.cards.sources import source_kinds

    known = set(Domain.model_fields) - {"name", "path", "source"}
    known.update(key for source in source_kinds().values() for key in source.model_fields)
    keys: dict[str, Any] = {}
    for setting in settings:
        apply_override(keys, setting.removeprefix("source."))
    for key in keys:
        if key not in known:
            raise InputError(f"--set {key}: unknown key{did_you_mean(key, known)}")
    return keys


def _tokenizer(source: str | None) -> Any:
    if source is None:
        return None
    from lifelong.stream.tokenizers.load import load_tokenizer

    return load_tokenizer(source)


def _show_summary(summary: Any, as_json: bool) -> None:
    """A domain as a table for 80 columns, and its warnings."""
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=1))
        return
    from lifelong.report.domain_table import summary_table

    show(summary_table(summary))
    for warning in summary.warnings:
        say(f"! {warning}")


for verb, name, example in (
    (domain_add, "add", "domain add contracts --files 'contracts/*.jsonl.gz' --licence CC-BY-4.0"),
    (domain_list, "list", "domain list"),
    (domain_show, "show", "domain show licences"),
    (domain_check, "check", "domain check licences python-stdlib"),
):
    add(domain_app, verb, example, name)
