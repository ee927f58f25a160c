"""What is kept to be used again: a teacher's targets, and the token shards of large corpora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lifelong.cli.terminal import CardsOption, JsonOption, quiet_libraries, say
from lifelong.cli.verbs import HELP, Verbs, add
from lifelong.errors import InputError


class WritesByDefault(Verbs):
    """`lifelong cache MODEL ...` is `lifelong cache write MODEL ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where none is given."""
        if args and args[0] not in (*self.commands, *HELP["help_option_names"]):
            args = ["write", *args]
        return list(super().parse_args(ctx, args))


cache_app = typer.Typer(
    cls=WritesByDefault,
    no_args_is_help=True,
    context_settings=HELP,
    help="Write a teacher's predictions on corpora (`cache MODEL`), and make room among token shards.",
)


def cache_write(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The teacher: checkpoint folder, hub id, or run folder (last stage).")
    ],
    domain: CardsOption,
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Folder of the cache.")],
    tau: Annotated[float | None, typer.Option(help="Keep p >= tau, sample the rest unbiased; default 0.05.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the K most probable tokens instead.")] = None,
    renormalise: Annotated[bool, typer.Option("--renormalise", help="Renormalise the top K to sum to one.")] = False,
    draws: Annotated[int | None, typer.Option(help="Draw this many tokens at random instead.")] = None,
    temperature: Annotated[float, typer.Option(help="As in the recipe that will use it.")] = 1.0,
    sequence_length: Annotated[int, typer.Option(help="As in the recipe.")] = 256,
    objective: Annotated[str, typer.Option(help="clm or mlm.")] = "clm",
    tokens: Annotated[str | None, typer.Option(help="Maximum tokens per domain, e.g. 2M.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Default: the model's own.")] = None,
    mask_seed: Annotated[int, typer.Option(help="mlm: seed of the masks.")] = 0,
    mask_patterns: Annotated[int, typer.Option(help="mlm: masks of each block.")] = 1,
    device: Annotated[str | None, typer.Option(help="Default: cuda if available.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a teacher's predictions on corpora as sparse targets; resumes where an earlier call stopped."""
    from lifelong.schema import parse_count

    count = parse_count(tokens)
    if tokens is not None and not isinstance(count, int):
        raise InputError(f"cache --tokens: a number like 2M, not {tokens!r}")
    quiet_libraries()
    from lifelong.inherit.write_cache import CacheRequest, default_device, make_scheme, write_cache
    from lifelong.ledger.storage import storage_faults
    from lifelong.report.progress import cache_progress

    request = CacheRequest(
        model, domain, make_scheme(tau=tau, top_k=top_k, draws=draws, renormalise=renormalise), temperature, objective,
        sequence_length, count if isinstance(count, int) else None, tokenizer, mask_seed, mask_patterns,
        device=device or default_device(),
    )  # fmt: skip
    then = "then run the same command again: it goes on where it stopped"
    with storage_faults(out, f"cache {str(out)!r}", then), cache_progress(quiet=as_json) as progress:
        written = write_cache(request, out, progress)
    if as_json:
        typer.echo(json.dumps(written.to_json(), indent=1))
    else:
        say(
            f"{out}: {written.blocks:,} blocks, {written.tokens:,} predicted tokens, {written.num_bytes:,} bytes "
            f"({written.bytes_per_token:.1f} per token)"
        )


def cache_prune(
    to: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep this much; default $LIFELONG_CACHE_LIMIT, or 20GB."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the token shards of large corpora that were not used for longest; they are made again when needed."""
    from lifelong.stream.cards.domain import parse_size
    from lifelong.stream.shard_cache import cache_limit, prune_shards, shards_folder

    limit = cache_limit() if to is None else parse_size(to) if to.strip() != "0" else 0
    if not isinstance(limit, int):
        raise InputError(f"cache prune --to: a size like 5GB, not {to!r}")
    folder = shards_folder()
    pruned = prune_shards(folder, limit)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "limit": limit, **pruned.to_json()}, indent=1))
    else:
        say(f"{folder}: {pruned.kept_bytes:,} bytes kept in {pruned.kept:,} shards, {pruned.removed_bytes:,} removed")


add(cache_app, cache_write, "cache write runs/quickstart --domain licences --out targets", "write")
add(cache_app, cache_prune, "cache prune --to 5GB", "prune")
