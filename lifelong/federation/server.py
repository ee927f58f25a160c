"""Federated training: one silo per domain, local steps, averaged by Flower; the server's side and the Flower app.

The recipe is that of joint training, one stage with all domains: `lifelong run` trains it on the text in one place,
a federation trains it where the text is. The server has no text; its run folder is a normal one, whose losses the
silos have measured.

    python -m lifelong.federation APP      writes the Flower app that `flwr run` takes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.evaluate.probes import probe_steps
from lifelong.expand import model_shape
from lifelong.federation import flower
from lifelong.federation.flower import Federation, Figures, Round, Terms, Weights
from lifelong.federation.silo import FederatedSilo, check_federated, put_weights, silo_domains, weights_of
from lifelong.files import atomic_directory, read_json, remove_tree, write_json, write_text
from lifelong.ledger.folder import INITIAL, RoundFolder, RunFolder, stage_name
from lifelong.ledger.history import write_losses
from lifelong.ledger.ledger import Ledger
from lifelong.lm.checkpoint import save_model, weights_fingerprint
from lifelong.lm.flops import forward_flops_per_token, num_parameters, training_flops_per_token
from lifelong.pipeline.begin import initial_model, initial_record, prepare_tokenizer
from lifelong.pipeline.binding import bind_recipe
from lifelong.pipeline.commit import loss_row
from lifelong.pipeline.environment import computed_with, package_versions
from lifelong.recipe.files import load_recipe
from lifelong.recipe.recipe import Recipe
from lifelong.records import (
    ComputeLedger,
    Cost,
    DomainLoss,
    ProbePoint,
    RunObserver,
    RunResult,
    StageRecord,
    TrainPoint,
)
from lifelong.report.write import summarise
from lifelong.stream.tokenizers.load import tokenizer_fingerprint
from lifelong.train.arguments import check_train_section, tokens_per_step, training_arguments


@dataclass(frozen=True)
class FederationPlan:
    """Settings of a federation.

    Attributes:
        local_steps: optimizer steps of a silo in a round (H).
        strategy: how the server averages: a name in `adapters.flower.STRATEGIES`.
        options: of the strategy, by Flower's names.
        min_silos: that must be there for a round; the first meeting needs all.
        timeout: seconds after which a round continues without those that have not answered.
        moments: `keep`: every silo keeps its optimizer's moments from round to round; `reset`: it restarts them.
    """

    local_steps: int = 50
    strategy: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
    min_silos: int = 1
    timeout: float = 3600.0
    moments: str = "keep"

    def check(self, recipe: Recipe) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: recipe or plan.
        """
        check_federated(recipe)
        lines = check_train_section({**recipe.train, **recipe.stages[0].train})
        silos = len(silo_domains(recipe))
        if self.local_steps < 1:
            lines.append(f"local-steps: must be at least 1, not {self.local_steps}")
        if not 1 <= self.min_silos <= silos:
            lines.append(f"min-silos: must be between 1 and the recipe's {silos} domains, not {self.min_silos}")
        if self.moments not in ("keep", "reset"):
            lines.append(f"moments: must be keep or reset, not {self.moments!r}")
        if self.timeout <= 0:
            lines.append(f"timeout: must be more than 0 seconds, not {self.timeout:g}")
        if lines:
            raise InputError(f"federation of {recipe.name}\n  " + "\n  ".join(lines))
        flower.make_strategy(self.terms(silo_domains(recipe)))

    def terms(self, domains: Sequence[str]) -> Terms:
        """The terms that the Flower adapter needs; the domains are those of the recipe."""
        return Terms(len(domains), self.strategy, self.options, self.min_silos, self.timeout, tuple(domains))

    def rounds(self, recipe: Recipe) -> int:
        """Rounds in which all silos together train on the stage's tokens, rounded up."""
        stage = recipe.stages[0]
        asked = {**recipe.train, **stage.train}
        # the server trains nothing: neither its devices nor its precision count
        sizes: dict[str, Any] = {
            key: asked[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps") if key in asked
        }
        arguments = training_arguments({**sizes, "use_cpu": True}, output_dir=Path("unused"), max_steps=1, seed=0)
        per_round = len(silo_domains(recipe)) * self.local_steps * tokens_per_step(arguments, recipe.sequence_length)
        return max(1, -(-stage.tokens // per_round))


def lead_federation(
    recipe: Recipe, out: str | Path, plan: FederationPlan, federate: Callable[[Terms], Federation]
) -> RunResult:
    """The server: rounds until the recipe's tokens are trained on, then the report; continues where a call stopped.

    Args:
        recipe: one stage with all domains; no card is read.
        out: the run folder.
        plan: rounds and averaging.
        federate: makes the federation when its terms are known.

    Raises:
        InputError: recipe, plan or folder are wrong, or a silo cannot begin.
        LifelongError: a round without any silo.
    """
    plan.check(recipe)
    with Ledger.open(Path(out)) as ledger:
        bind_recipe(ledger, recipe)
        if not ledger.stages:
            ServerRun(ledger, recipe, plan, federate(plan.terms(silo_domains(recipe)))).run()
        result = summarise(ledger.out)
        ledger.clear_work_dir()
        return result


class ServerRun:
    """The one stage of a federation, from the first meeting to its commit."""

    def __init__(self, ledger: Ledger, recipe: Recipe, plan: FederationPlan, federation: Federation) -> None:
        self.ledger, self.recipe, self.plan, self.federation = ledger, recipe, plan, federation
        self.domains = silo_domains(recipe)
        self.rounds = plan.rounds(recipe)
        self.work = ledger.work(stage_name(0, self.domains[0]))
        self.tokenizer = prepare_tokenizer(ledger, recipe, [], RunObserver())
        self.history: list[dict[str, Any]] = []

    def run(self) -> StageRecord:
        """All rounds, then the commit."""
        model = initial_model(self.recipe, self.tokenizer)
        initial = weights_of(model)
        weights, memories = self._last_round() or (initial, {})
        settings: dict[str, str | int | float] = {
            "rounds": self.rounds,
            "local-steps": self.plan.local_steps,
            "moments": self.plan.moments,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
        }
        if not self.ledger.records:
            met = self.federation.gather(initial, settings)
            if set(met) != set(self.domains):
                raise InputError(
                    f"federation: the silos hold {', '.join(sorted(met))}; the recipe names {', '.join(self.domains)}"
                )
            self._commit_initial(model, met)
        weights = self.federation.run(
            weights,
            settings,
            rounds=self.rounds,
            done=len(self.history),
            looks={self.rounds, *probe_steps(self.rounds, self.recipe.evaluate.probes)},
            memories=memories,
            finished=self._finished,
        )
        put_weights(model, weights)
        return self._commit(model)

    def _finished(self, done: Round) -> None:
        """Keep a round: average, memories of the strategy, figures."""
        self.history.append({"round": done.number, "trained": done.trained, "evaluated": done.evaluated})
        with atomic_directory(self.work.round(done.number).path) as partial:
            folder = RoundFolder(partial)
            save_file(done.weights, folder.weights)
            if done.memories:
                save_file(done.memories, folder.memories)
            write_json(folder.rounds, {"plan": asdict(self.plan), "rounds": self.history})
        for older in self.work.finished_rounds[:-1]:
            remove_tree(older.path)

    def _last_round(self) -> tuple[Weights, Weights] | None:
        if not (finished := self.work.finished_rounds):
            return None
        last = finished[-1]
        kept = read_json(last.rounds)
        begun, now = kept["plan"], asdict(self.plan)
        if other := [key for key in ("local_steps", "strategy", "options", "moments") if begun[key] != now[key]]:
            raise InputError(
                f"run folder {str(self.ledger.out)!r}: {len(kept['rounds'])} rounds were done with {other[0]} "
                f"{begun[other[0]]!r}, not {now[other[0]]!r}; continue with that, or choose another folder"
            )
        self.history = kept["rounds"]
        return load_file(last.weights), load_file(last.memories) if last.memories.is_file() else {}

    # --- the run folder -------------------------------------------------------------------------------------

    def _losses(self, figures: Mapping[str, Figures]) -> list[DomainLoss]:
        return [
            DomainLoss(name, found["nats"], int(found["tokens"]), int(found["bytes"]))
            for name in self.domains
            if (found := figures.get(name)) is not None
        ]

    def _commit_initial(self, model: PreTrainedModel, met: Mapping[str, Figures]) -> None:
        work, losses = self.ledger.work(INITIAL), self._losses(met)
        write_losses(work.losses, losses)
        write_json(work.samples, [])
        record = initial_record(self.recipe, model, tokenizer_fingerprint(self.tokenizer), losses)
        self.ledger.commit(work.path, record, computed_with=computed_with())

    def _commit(self, model: PreTrainedModel) -> StageRecord:
        folder, losses = self.work.trained, self._losses(self.history[-1]["evaluated"])
        remove_tree(folder.path)
        save_model(model, self.tokenizer, folder.model)
        write_losses(folder.losses, losses)
        write_json(folder.samples, [])
        write_json(folder.history, {**self._curves(), "facts": None})
        write_json(folder.rounds, {"plan": asdict(self.plan), "rounds": without_seconds(self.history)})
        trained = [figures for done in self.history for figures in done["trained"].values()]
        tokens = int(sum(figures["tokens"] for figures in trained))
        length, objective = self.recipe.sequence_length, self.recipe.objective
        step_flops = training_flops_per_token(model, length, objective)
        evaluated = sum(figures["tokens"] for done in self.history for figures in done["evaluated"].values())
        cost = ComputeLedger().adding(
            "train", Cost(tokens, tokens * step_flops, 0.0, sum(figures["seconds"] for figures in trained))
        )
        cost = cost.adding("evaluate", Cost(flops=evaluated * forward_flops_per_token(model, length, objective)))
        record = StageRecord(
            index=0,
            name=stage_name(0, self.domains[0]),
            domain=self.domains[0],
            parent="",
            recipe_hash=self.recipe.fingerprint,
            tokens=tokens,
            shape=model_shape(model.config),
            parameters=num_parameters(model),
            cost=cost.to_json(),
            row=loss_row(losses),
            fingerprints={"tokenizer": tokenizer_fingerprint(self.tokenizer), "model": weights_fingerprint(model)},
            seeds={"stage": self.recipe.seed},
            versions=package_versions(),
            files={},
            notes=tuple(self._absences()),
            committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return self.ledger.commit(folder.path, record, computed_with=computed_with())

    def _curves(self) -> dict[str, Any]:
        """Training and held-out loss by round, as a report reads them; a step is a local step of every silo."""
        train, probes, tokens = [], [], 0
        for done in self.history:
            step, parts = done["round"] * self.plan.local_steps, list(done["trained"].values())
            new = int(sum(part["tokens"] for part in parts))
            tokens += new
            loss = sum(part["loss"] * part["tokens"] for part in parts) / new
            train.append(TrainPoint("train", step, tokens, loss, ce=loss))
            if done["round"] < self.rounds:  # the last one looks at all documents, not at the same few
                probes += [
                    ProbePoint(step, tokens, name, found["nats"] / found["tokens"], int(found["tokens"]))
                    for name, found in done["evaluated"].items()
                ]
        return {"train": [asdict(point) for point in train], "probes": [asdict(point) for point in probes]}

    def _absences(self) -> list[str]:
        missed = {
            name: [done["round"] for done in self.history if name not in done["trained"]] for name in self.domains
        }
        return [f"{name} missed rounds {', '.join(map(str, rounds))}" for name, rounds in missed.items() if rounds]


def without_seconds(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop measured times, which are not part of what is committed."""

    def plain(silos: Mapping[str, Figures]) -> dict[str, Figures]:
        return {name: {key: value for key, value in found.items() if key != "seconds"} for name, found in silos.items()}

    return [{**done, "trained": plain(done["trained"]), "evaluated": plain(done["evaluated"])} for done in history]


# --- Flower's side ------------------------------------------------------------------------------------------

APP_CONFIG = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lifelong-federation"
version = "1.0.0"
description = "One silo per domain: local steps, averaged updates"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "lifelong"

[tool.flwr.app.components]
serverapp = "lifelong_federation:server"
clientapp = "lifelong_federation:client"

# what `flwr run --run-config` may change; paths are those of the server's machine
[tool.flwr.app.config]
recipe = ""
set = ""
out = ""
local-steps = 50
min-silos = 1
timeout = 3600.0
moments = "keep"
strategy = "fedavg"
strategy-options = ""
"""
APP_MODULE = '''\
"""The Flower app of a federation; everything is in lifelong.federation."""

from lifelong.federation import client_app, server_app

client = client_app()
server = server_app()
'''


def write_app(folder: Path) -> None:
    """The folder that `flwr run` takes: it names the apps below and the run's settings.

    Raises:
        InputError: something else is there.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{str(folder)!r} already exists; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "pyproject.toml", APP_CONFIG)
    write_text(folder / "lifelong_federation.py", APP_MODULE)


def client_app() -> Any:
    """The Flower ClientApp: a silo by `recipe`, `domain`, `out` and `set` of the node's own configuration."""
    _quiet()
    return flower.make_client_app(open_silo)


def server_app() -> Any:
    """The Flower ServerApp: a federation by the run's configuration."""

    def lead(config: Mapping[str, Any], federate: Callable[[Terms], Federation]) -> None:
        recipe = load_recipe(_named(config, "recipe", "--run-config"), _overrides(config))
        plan = FederationPlan(
            local_steps=int(config["local-steps"]),
            strategy=str(config["strategy"]),
            options=numbers(str(config["strategy-options"])),
            min_silos=int(config["min-silos"]),
            timeout=float(config["timeout"]),
            moments=str(config["moments"]),
        )
        lead_federation(recipe, config["out"] or Path("runs") / recipe.name, plan, federate)

    _quiet()
    return flower.make_server_app(lead)


def _quiet() -> None:
    """Leave Flower's log to Flower's messages and ours."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def open_silo(config: Mapping[str, Any]) -> FederatedSilo:
    """The silo that a node's configuration describes.

    Raises:
        InputError: a key is missing, or what it names is wrong.
    """
    recipe = load_recipe(_named(config, "recipe", "--node-config"), _overrides(config))
    card = _named(config, "domain", "--node-config")
    return FederatedSilo(recipe, card, Path(str(config.get("out") or Path("runs") / f"silo-{Path(card).stem}")))


def _named(config: Mapping[str, Any], key: str, where: str) -> str:
    if not config.get(key):
        raise InputError(f"federation: {where} needs {key}=..., for example {key}='\"...\"'")
    return str(config[key])


def _overrides(config: Mapping[str, Any]) -> list[str]:
    """`a.b=1;c.d=2`: Flower's configurations know no lists."""
    return [part.strip() for part in str(config.get("set") or "").split(";") if part.strip()]


def numbers(text: str) -> dict[str, float]:
    """`server_momentum=0.9;server_learning_rate=0.7`."""
    numbers = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = part.partition("=")
        try:
            numbers[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"strategy-options: {part!r} is not of the form name=number") from None
    return numbers


def simulate_federation(
    recipe: Recipe,
    cards: Sequence[str | Path],
    out: str | Path,
    plan: FederationPlan | None = None,
    absent: Callable[[str, int], bool] | None = None,
) -> RunResult:
    """A whole federation in this process, with the same apps: to try a recipe before machines are asked.

    Args:
        recipe: as for the server.
        cards: one per silo.
        out: `out/server` and `out/silo-NAME` are written.
        plan: rounds and averaging.
        absent: (domain, round) -> whether that silo does not answer in that round.
    """
    out = Path(out)
    written = RunFolder(out).recipe
    write_text(written, recipe.to_yaml())
    nodes = [
        {"recipe": str(written), "domain": str(card), "out": str(out / f"silo-{Path(card).stem}")} for card in cards
    ]
    grid = flower.simulation_grid(client_app(), nodes, absent)
    return lead_federation(recipe, out / "server", plan or FederationPlan(), lambda terms: Federation(grid, terms))


def main(arguments: Sequence[str]) -> None:
    """Write the Flower app."""
    import typer

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError("usage: python -m lifelong.federation APP   (APP is a new folder for the Flower app)")
    flower.require_flower()
    write_app(Path(arguments[0]))
    typer.echo(
        f"{arguments[0]}: a Flower app\n"
        f'  flwr run {arguments[0]} SUPERLINK --stream --run-config \'recipe="RECIPE" out="RUN" local-steps=50\''
    )
