"""A federation as it is deployed: SuperLink, three SuperNodes, `flwr run`; one silo is killed and started again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lifelong.federation.server import write_app
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenize import train_tokenizer
from tests.support import write_domain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed"),
]
NAMES = ("sea", "farm", "law")
ROUNDS, LOCAL_STEPS = 6, 2
RECIPE = {
    "name": "deployed",
    "model": {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24},
    "sequence_length": 32,
    "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "use_cpu": True},
    "evaluate": {"tokens": 300, "samples": 0},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machines:
    """Processes that end with the test, each with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, {}
        self.environment = {
            **os.environ,
            # Flower 1.42 starts its own commands by name, whether the environment is activated or not
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            executable = str(Path(sys.executable).parent / command[0])
            self.running[name] = subprocess.Popen(
                [executable, *command[1:]],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        return self.running[name]

    def kill(self, name: str) -> None:
        """SIGKILL to a machine with everything on it."""
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


@contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    made = Machines(folder)
    try:
        yield made
    finally:
        for name in list(made.running):
            made.kill(name)


def wait_for(what: Callable[[], Any], seconds: float, otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.5)


def is_open(link: str) -> bool:
    host, _, port = link.partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def check_no_text(folder: Path, server: Path) -> None:
    """No sentence of any corpus lies on the server, in Flower's folders or in a log."""
    openings = [
        json.loads(line)["text"][:40].encode()
        for path in folder.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    for path in [*server.rglob("*"), *(folder / "flower").rglob("*"), *folder.glob("*.log")]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(opening in content for opening in openings), path


def federation_in(folder: Path, link: str, connection: str, rounds: int) -> tuple[Path, dict[str, Path]]:
    """Recipe and cards of a federation, its Flower app, and how to reach it."""
    cards = {name: write_domain(folder, name, documents=30) for name in NAMES}
    train_tokenizer([load_domain(card) for card in cards.values()], vocab_size=300).save_pretrained(
        folder / "tokenizer"
    )
    recipe, tokens = folder / "recipe.yaml", rounds * 3 * LOCAL_STEPS * 4 * 32
    stages = [{"domain": "sea", "together_with": ["farm", "law"], "tokens": tokens}]
    tokenizer = {"checkpoint": str(folder / "tokenizer")}
    recipe.write_text(json.dumps({**RECIPE, "stages": stages, "tokenizer": tokenizer}))
    write_app(folder / "app")
    (folder / "flower").mkdir()
    (folder / "flower/config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\n{connection}\n'
    )
    return recipe, cards


def make_certificates(folder: Path) -> None:
    """An authority and a server's certificate, as docs/how_to/federate_silos.md has them made."""
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile names",
    ):
        (folder / "names").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1")
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="needs openssl and ssh-keygen")
def test_over_tls_only_invited_silos_take_part(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    link, server = f"localhost:{free_port()}", tmp_path / "server"
    recipe, cards = federation_in(tmp_path, link, f'root-certificates = "{tmp_path / "ca.crt"}"', 2)
    for name in (*NAMES, "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / name], check=True)
    with machines(tmp_path) as all_:

        def silo(name: str, key: str, out: str, *security: str) -> None:
            all_.start(
                out, "lifelong", "federate", "join", str(recipe), "--server", link, "--domain", str(cards[name]),
                "--out", str(tmp_path / out), *security, *(("--key", key) if key else ()),
            )  # fmt: skip

        all_.start(
            "server", "lifelong", "federate", "serve", str(recipe), "--out", str(server), "--port", link.split(":")[1],
            "--authority", "ca.crt", "--certificate", "server.pem", "--private-key", "server.key", "--local-steps", str(LOCAL_STEPS),
            *(part for name in NAMES for part in ("--silo", f"{name}.pub")),
        )  # fmt: skip
        wait_for(lambda: is_open(link), 180, lambda: all_.log("server"))
        for what in (("supernode", "register", "stranger.pub", "here"), ("run", str(tmp_path / "app"), "here")):
            assert all_.start(f"stranger-{what[0]}", "flwr", *what).wait(120), all_.log(f"stranger-{what[0]}")
        tls = ("--authority", "ca.crt")
        silo("law", "stranger", "uninvited", *tls)
        silo("law", "", "unencrypted", "--insecure")
        for name in NAMES:
            silo(name, name, f"silo-{name}", *tls)

        def logs() -> str:
            return "\n".join(f"== {name}\n{all_.log(name)[-2000:]}" for name in all_.running)

        wait_for(lambda: all_.running["server"].poll() is not None, 900, logs)
        assert all_.running["server"].returncode == 0, logs()
        assert "forgetting" in all_.log("server")
    rounds = json.loads((server / "stages/00-sea/rounds.json").read_text())["rounds"]
    assert all(set(done["trained"]) == set(NAMES) for done in rounds)
    assert (tmp_path / "silo-law").exists()
    assert not (tmp_path / "uninvited").exists()
    assert not (tmp_path / "unencrypted").exists()
    assert check_run(server) == []


def test_a_silo_is_killed_and_comes_back(tmp_path: Path) -> None:
    link, server = f"127.0.0.1:{free_port()}", tmp_path / "server"
    recipe, cards = federation_in(tmp_path, link, "insecure = true", ROUNDS)

    def rounds_done() -> int:
        return max((int(path.name) for path in (server / ".work/00-sea/rounds").glob("[0-9]*")), default=0)

    def finished() -> bool:
        return (server / "stages/00-sea/record.json").is_file()

    with machines(tmp_path) as all_:

        def silo(name: str) -> None:
            node = f'recipe="{recipe}" domain="{cards[name]}" out="{tmp_path / ("silo-" + name)}"'
            all_.start(
                name, "flower-supernode", "--insecure", "--superlink", link, "--port", str(free_port()), "--node-config", node
            )  # fmt: skip

        def logs() -> str:
            return "\n".join(f"== {name}\n{all_.log(name)[-3000:]}" for name in ("run", "law", "sea"))

        all_.start(
            "link", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", link.split(":")[1]
        )  # fmt: skip
        wait_for(lambda: "Uvicorn running" in all_.log("link"), 120, lambda: all_.log("link"))
        for name in NAMES:
            silo(name)
        settings = f'recipe="{recipe}" out="{server}" local-steps={LOCAL_STEPS} timeout=600.0'
        all_.start("run", "flwr", "run", str(tmp_path / "app"), "here", "--stream", "--run-config", settings)
        wait_for(lambda: rounds_done() >= 1, 600, logs)
        time.sleep(2)  # the next round is on its way
        all_.kill("law")
        gone_after = rounds_done()
        wait_for(lambda: rounds_done() > gone_after, 600, logs)
        silo("law")
        wait_for(finished, 900, logs)

    history = json.loads((server / "stages/00-sea/rounds.json").read_text())["rounds"]
    present = {name: [done["round"] for done in history if name in done["trained"]] for name in NAMES}
    assert present["sea"] == present["farm"] == list(range(1, ROUNDS + 1))
    missed = sorted(set(present["sea"]) - set(present["law"]))
    assert missed, "the silo was killed and missed nothing"
    assert present["law"][-1] == ROUNDS
    assert missed[-1] < ROUNDS
    assert history[-1]["trained"]["law"]["position"] >= len(present["law"]) * LOCAL_STEPS
    assert check_run(server) == []
    assert all(value is not None for value in read_history(server).matrix.nats_per_token[0])

    # what every silo has handed out last, averaged by hand
    tokens = [history[-1]["trained"][name]["tokens"] for name in NAMES]
    last = [load_file(next((tmp_path / f"silo-{name}").glob("state/*/model/model.safetensors"))) for name in NAMES]
    average = load_file(server / "stages/00-sea/model/model.safetensors")
    for key, array in average.items():
        by_hand = sum(part[key].astype(np.float64) * n for part, n in zip(last, tokens, strict=True)) / sum(tokens)
        np.testing.assert_allclose(array, by_hand, rtol=0, atol=2e-7)

    check_no_text(tmp_path, server)
