"""A federation on several machines: Flower's processes, started so that nobody takes part who was not invited.

Flower's SuperLink answers three interfaces on one port, and only that of the silos asks for a key: through the others
whoever reaches the port registers a key of his own or starts an app on every machine. It therefore listens on this
machine alone, and `front_door` passes on to it what silos send, and nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, LifelongError
from lifelong.federation.server import FederationPlan, write_app
from lifelong.federation.silo import FederatedSilo, silo_domains
from lifelong.files import write_text
from lifelong.ledger.folder import RunFolder, stage_name
from lifelong.recipe.files import find_recipe, load_recipe
from lifelong.recipe.recipe import Recipe

HERE = "localhost"
STARTS_WITHIN = 180.0  # seconds, on a machine that is busy
LAST_LINES = 12
FLEET = "/v1/fleet/{action:str}"


@dataclass(frozen=True)
class Certificates:
    """Files of the server's TLS; its certificate names the server, `localhost` and `127.0.0.1`."""

    authority: Path
    certificate: Path
    private_key: Path


@dataclass(frozen=True)
class Told:
    """What both sides are told: the recipe by name or path, changes of its keys, and a folder."""

    recipe: str
    overrides: Sequence[str]
    out: Path

    def config(self, **more: Any) -> dict[str, Any]:
        """As Flower's configurations have it, which know no lists."""
        if bad := [change for change in self.overrides if ";" in change or "'" in change]:
            raise InputError(
                f"--set {bad[0]}: a federation cannot pass on ; and ' in a value; write it into the recipe"
            )
        path = str(find_recipe(self.recipe).resolve())
        return {"recipe": path, "set": ";".join(self.overrides), "out": str(self.out.resolve()), **more}


def serve(
    told: Told,
    plan: FederationPlan,
    keys: Sequence[Path],
    certificates: Certificates | None,
    address: tuple[str, int],
) -> None:
    """The server of a federation until its run is finished; the same call continues one that was stopped.

    Args:
        told: recipe and run folder.
        plan: rounds and averaging.
        keys: public keys of the silos that are let in.
        certificates: of the server; None: no TLS and no keys, whoever reaches the port takes part.
        address: host and port for the silos.

    Raises:
        InputError: recipe, plan, a key or a file is wrong, or the port is taken.
        LifelongError: the federation ended before its run was finished.
    """
    recipe = load_recipe(told.recipe, told.overrides)
    plan.check(recipe)
    if certificates is not None:
        _check_files(certificates, keys, silo_domains(recipe))
    _check_free(*address)
    config = told.config(
        **{"local-steps": plan.local_steps, "min-silos": plan.min_silos, "timeout": float(plan.timeout)},
        **{"moments": plan.moments, "strategy": plan.strategy},
        **{"strategy-options": ";".join(f"{name}={value!r}" for name, value in plan.options.items())},
    )
    with tempfile.TemporaryDirectory(prefix="lifelong-federation-") as home, ExitStack() as stack:
        flower = _Flower(Path(home))
        link = flower.link(stack, certificates, address)
        for key in keys:
            flower.once("flwr", "supernode", "register", str(key), "here")
        if certificates is not None:
            stack.enter_context(front_door(link, certificates, address))
        write_app(Path(home) / "app")
        write_text(settings := Path(home) / "run.toml", _toml(config, "\n"))
        arguments = ("run", str(Path(home) / "app"), "here", "--stream", "--run-config", str(settings))
        subprocess.run([flower.command("flwr"), *arguments], env=flower.environment, check=False)  # noqa: S603
    if not _is_finished(recipe, told.out):
        raise LifelongError(f"federation: ended before {str(told.out)!r} was finished; the log above says why")


def join(told: Told, card: str, server: str, key: Path | None, authority: Path | None) -> None:
    """A silo: replaces this process by Flower's, which waits for the server and works until it is stopped.

    Args:
        told: recipe and folder of the silo.
        card: its domain card.
        server: HOST:PORT.
        key: its private key; its public half is given to the server.
        authority: certificate by which the server is known; None: no TLS.

    Raises:
        InputError: a file is missing, or recipe and card do not fit each other.
    """
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--server: HOST:PORT, for example federation.example.org:8000, not {server!r}")
    for option, path in (("--key", key), ("--authority", authority)):
        _check_file(option, path)
    FederatedSilo(load_recipe(told.recipe, told.overrides), card, told.out)  # says what is wrong before it waits
    path = Path(card)
    node = _toml(told.config(domain=str(path.resolve()) if path.is_file() else card), " ")
    security = ["--root-certificates", str(authority)] if authority else ["--insecure"]
    security += ["--auth-supernode-private-key", str(key)] if key else []
    local = ("--port", str(_free_port()))  # of its own process that does the work
    arguments = ["flower-supernode", "--superlink", server, *security, *local, "--node-config", node]
    flower = _Flower(None)
    os.execve(flower.command(arguments[0]), arguments, flower.environment)  # noqa: S606 - no shell is wanted


@contextmanager
def front_door(link: str, certificates: Certificates, address: tuple[str, int]) -> Iterator[None]:
    """Pass on what silos send to the SuperLink at `link`, over TLS on both sides, and refuse everything else."""
    import ssl

    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    trusted = ssl.create_default_context(cafile=str(certificates.authority))
    inside = httpx.AsyncClient(base_url=f"https://{link}", verify=trusted, timeout=None)  # noqa: S113 - silos have theirs

    async def forward(request: Request) -> Response:
        action = request.path_params["action"]
        if not action.replace("-", "").isalnum():
            return Response(status_code=404)
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        sent = inside.build_request("POST", f"/v1/fleet/{action}", headers=headers, content=request.stream())
        answer = await inside.send(sent, stream=True)
        passed = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        passed.raw_headers = [(name.lower(), value) for name, value in answer.headers.raw]
        return passed

    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[Route(FLEET, forward, methods=["POST"])]),
            host=address[0],
            port=address[1],
            ssl_certfile=str(certificates.certificate),
            ssl_keyfile=str(certificates.private_key),
            log_level="warning",
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _wait(lambda: server.started or not thread.is_alive(), "the port for the silos did not open")
    if not server.started:
        raise InputError(f"--host, --port: cannot listen on {address[0]}:{address[1]}")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


class _Flower:
    """Flower's own commands, with a home of their own where one is given."""

    def __init__(self, home: Path | None) -> None:
        self.home, self.bin = home, Path(sys.executable).parent
        # Flower starts its own commands by name, whether the environment is activated or not
        search = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        self.environment = {**os.environ, "PATH": search, **({"FLWR_HOME": str(home / "flower")} if home else {})}

    def command(self, name: str) -> str:
        return str(self.bin / name)

    def link(self, stack: ExitStack, certificates: Certificates | None, address: tuple[str, int]) -> str:
        """Start the SuperLink; where it is reached from here."""
        assert self.home is not None
        if certificates is None:
            security, (host, port) = ["--insecure"], address
            connection = "insecure = true"
        else:
            files = certificates.authority, certificates.certificate, certificates.private_key
            options = ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile")
            security = [part for pair in zip(options, map(str, files), strict=True) for part in pair]
            security += ["--enable-supernode-auth"]
            host, port = "127.0.0.1", _free_port()
            connection = f"root-certificates = {json.dumps(str(certificates.authority.resolve()))}"
        address_here = f"{HERE if certificates else '127.0.0.1'}:{port}"
        (self.home / "flower").mkdir()
        write_text(
            self.home / "flower/config.toml",
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address_here}"\n{connection}\n',
        )
        log = stack.enter_context((self.home / "superlink.log").open("wb"))
        listening = ("--disable-runtime-dependency-installation", "--host", host, "--port", str(port))
        process = subprocess.Popen(  # noqa: S603
            [self.command("flower-superlink"), *security, *listening], stdout=log, stderr=log, env=self.environment
        )
        stack.callback(_end, process)

        def text() -> str:
            return (self.home / "superlink.log").read_text(errors="replace") if self.home else ""

        _wait(lambda: "Uvicorn running" in text() or process.poll() is not None, "Flower's SuperLink did not start")
        if process.poll() is not None:
            raise LifelongError(f"federation: Flower's SuperLink ended at once\n{_last(text())}")
        return address_here

    def once(self, name: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603
            [self.command(name), *arguments], capture_output=True, text=True, env=self.environment, check=False
        )
        if done.returncode:
            raise InputError(f"federation: {name} {' '.join(arguments)}\n{_last(done.stdout + done.stderr)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check_files(certificates: Certificates, keys: Sequence[Path], domains: Sequence[str]) -> None:
    for option, path in zip(
        ("--authority", "--certificate", "--private-key"),
        (certificates.authority, certificates.certificate, certificates.private_key),
        strict=True,
    ):
        _check_file(option, path)
    for key in keys:
        _check_file("--silo", key)
        if not key.read_bytes().startswith(b"ecdsa-"):
            raise InputError(
                f"--silo: {str(key)!r} is not a public ECDSA key; ssh-keygen -t ecdsa -b 384 -f NAME makes NAME.pub"
            )
    if len(keys) != len(domains):
        raise InputError(
            f"--silo: the recipe has {len(domains)} domains ({', '.join(domains)}), and {len(keys)} keys were given; "
            "each silo is let in by its public key"
        )


def _check_file(option: str, path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise InputError(f"{option}: there is no file {str(path)!r}")


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host, --port: cannot listen on {host}:{port}: {error.strerror or error}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ready: Any, otherwise: str) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while not ready():
        if time.monotonic() > deadline:
            raise LifelongError(f"federation: {otherwise} within {STARTS_WITHIN:g} s")
        time.sleep(0.2)


def _toml(values: Mapping[str, Any], between: str) -> str:
    """Keys and values; strings literally, so that paths need no escapes."""
    return between.join(
        f"{key}='{value}'" if isinstance(value, str) else f"{key}={value}" for key, value in values.items()
    )


def _last(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-LAST_LINES:])


def _is_finished(recipe: Recipe, out: Path) -> bool:
    return RunFolder(out).stage(stage_name(0, silo_domains(recipe)[0])).record.is_file()
