"""Federated training: the server's command, the silos', and all of it in one process to try a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lifelong.cli.run import finish
from lifelong.cli.terminal import JsonOption, OverrideOption, quiet_libraries, say
from lifelong.cli.verbs import HELP, Verbs, add
from lifelong.errors import InputError

if TYPE_CHECKING:
    from lifelong.federation import FederationPlan

federate_app = typer.Typer(
    cls=Verbs, no_args_is_help=True, context_settings=HELP, help="Train where the text is: one silo per domain."
)
Recipe = Annotated[str, typer.Argument(help="Name or path of the recipe that all machines have.")]
Authority = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificate of the authority that signed the server's.")
]
LocalSteps = Annotated[int, typer.Option(metavar="N", help="Optimizer steps of a silo in a round.")]
MinSilos = Annotated[int, typer.Option(metavar="N", help="A round begins when so many silos are there.")]
Moments = Annotated[str, typer.Option(help="Adam's moments of a silo from round to round: keep or reset.")]
Strategy = Annotated[str, typer.Option(metavar="NAME", help="How updates are averaged: fedavg, fedavgm, fedmedian ...")]
StrategyOptions = Annotated[
    list[str] | None,
    typer.Option("--strategy-option", metavar="NAME=VALUE", help="By Flower's name; may be repeated."),
]


def _plan(
    steps: int, silos: int, moments: str, strategy: str, options: list[str] | None, timeout: float
) -> FederationPlan:
    from lifelong.federation import FederationPlan
    from lifelong.federation.server import numbers

    return FederationPlan(steps, strategy, numbers(";".join(options or ())), silos, timeout, moments)


def serve(
    recipe: Recipe,
    silo: Annotated[
        list[Path] | None, typer.Option(metavar="KEY.pub", help="Public key of a silo; once for every domain.")
    ] = None,
    authority: Authority = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's certificate; names it, localhost and 127.0.0.1.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the server's certificate.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 0.0.0.0, with --insecure 127.0.0.1.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="Port for the silos.")] = 8000,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder; default runs/NAME.")] = None,
    overrides: OverrideOption = None,
    local_steps: LocalSteps = 50,
    min_silos: MinSilos = 1,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="A round continues without later answers.")] = 3600,
    moments: Moments = "keep",
    strategy: Strategy = "fedavg",
    strategy_options: StrategyOptions = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS, no keys: whoever reaches the port takes part.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Lead a federation: waits for the invited silos, averages their rounds, writes a run folder.

    Only silos whose public key is given take part, over TLS; the same command continues a stopped run.
    """
    files = {"--authority": authority, "--certificate": certificate, "--private-key": private_key, "--silo": silo}
    _check_security("serve", files, insecure)
    deploy = _federation()
    from lifelong.recipe.files import load_recipe

    out = out or Path("runs") / load_recipe(recipe, overrides or ()).name
    host = host or ("127.0.0.1" if insecure else "0.0.0.0")  # noqa: S104 - silos come from other machines
    if insecure:
        say(f"--insecure: whoever reaches {host}:{port} takes part and gets the weights, unencrypted", err=True)
    plan = _plan(local_steps, min_silos, moments, strategy, strategy_options, timeout)
    certificates = None
    if authority and certificate and private_key:
        certificates = deploy.Certificates(authority, certificate, private_key)
    say(f"waiting for silos on {host}:{port}; run folder {out}", err=True)
    deploy.serve(deploy.Told(recipe, overrides or (), out), plan, silo or (), certificates, (host, port))
    finish(out, as_json)


def join(
    recipe: Recipe,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server listens.")],
    domain: Annotated[str, typer.Option(metavar="CARD", help="Name or path of this silo's domain card.")],
    key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Private key of this silo; the server has KEY.pub.")
    ] = None,
    authority: Authority = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the silo; default runs/silo-NAME.")] = None,
    overrides: OverrideOption = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no key: for one machine.")] = False,
) -> None:
    """Take part in a federation with one domain; its text stays here. Stop it with Ctrl-C.

    A silo that was stopped continues with the same command after its last finished round.
    """
    _check_security("join", {"--key": key, "--authority": authority}, insecure)
    deploy = _federation()
    out = out or Path("runs") / f"silo-{Path(domain).stem}"
    say(f"silo {Path(domain).stem}: waiting for {server}; folder {out}", err=True)
    deploy.join(deploy.Told(recipe, overrides or (), out), domain, server, key, authority)


def simulate(
    recipe: Recipe,
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="CARD", help="A card per silo; may be repeated. Default: those that the recipe names."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for server and silos.")] = None,
    overrides: OverrideOption = None,
    local_steps: LocalSteps = 50,
    min_silos: MinSilos = 1,
    moments: Moments = "keep",
    strategy: Strategy = "fedavg",
    strategy_options: StrategyOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole federation in this process, without a network, to try a recipe."""
    _federation()
    from lifelong.federation import simulate_federation
    from lifelong.recipe.files import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    cards = domain or [loaded.stages[0].domain, *loaded.stages[0].together_with]
    plan = _plan(local_steps, min_silos, moments, strategy, strategy_options, 3600)
    folder = out or Path("runs") / f"{loaded.name}-federated"
    finish(Path(simulate_federation(loaded, cards, folder, plan).out), as_json)


def _federation() -> Any:
    """What starts Flower, where it is installed."""
    from lifelong.federation.flower import require_flower

    require_flower()  # before torch is loaded
    quiet_libraries()
    from lifelong.federation import deploy

    return deploy


def _check_security(verb: str, files: Mapping[str, object], insecure: bool) -> None:
    given, missing = ([name for name, value in files.items() if bool(value) is there] for there in (True, False))
    if insecure and given:
        raise InputError(f"federate {verb}: {given[0]} and --insecure exclude each other")
    if missing and not insecure:
        raise InputError(
            f"federate {verb}: needs {', '.join(missing)}: TLS, and a key for every silo. --insecure does without, on "
            "one machine (docs/how_to/federate_silos.md makes the files)"
        )


for verb, example in (
    (simulate, "federate simulate clinics.yaml --out runs/trial"),
    (
        serve,
        "federate serve clinics.yaml --silo a.pub --silo b.pub --authority ca.crt"
        " --certificate server.pem --private-key server.key",
    ),
    (join, "federate join clinics.yaml --server HOST:8000 --domain a --key a --authority ca.crt"),
):
    add(federate_app, verb, example)
