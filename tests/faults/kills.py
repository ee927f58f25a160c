"""Kill a run at random moments until it is finished, and compare it with one that was left alone.

One process loads the libraries and finishes a run undisturbed. Every attempt is a fork of it: it runs (or continues) a
stream of three stages, the last of them by `extend`, and is ended before it is done. What an attempt is doing it tells
through a pipe. Two ways to choose the moment:

- aimed: at a random one of the calls and returns of a phase, Python's and C's, as `sys.setprofile` counts them; so that
  a phase of a millisecond is hit as often as a long one;
- anywhere: after a random time, from outside.

Kinds of end: SIGKILL; SIGKILL as a power cut, after which every file that was not made durable loses its end; SIGTERM
and SIGINT, which the run must answer with exit code 130.

    python -m tests.faults.kills --kills 200 [--rich]

`--rich`: four streams in turns (`RICH`) with what is heavy beside training: selection, importances, budgets that steer,
probes, facts, learning rates over the stream, a teacher that leaves when it is surpassed, watched domains.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import recipe_data, write_domain

PHASES = ("preparing", "tokenising", "selecting", "caching", "generating", "targeting", "evaluating", "training", "saving",
          "committing", "importances", "growing", "recovering", "reporting")  # fmt: skip
RICH_ONLY, GENERATED_ONLY = {"selecting", "importances"}, {"generating", "targeting"}
KINDS = {"SIGKILL": signal.SIGKILL, "power cut": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
OF_OBSERVER = {"prepare": "preparing", "grow": "growing", "recover": "recovering", "train": "training",
               "evaluate": "evaluating", "commit": "committing", "generate": "generating", "targets": "targeting",
               "proxy": "preparing"}  # fmt: skip
LEFT_OUT = {"metrics.jsonl", ".lock", ".cache", "report", "environment.json", "measured.json"}
SECONDS_AT_MOST = 300.0
SELECT = {"by": "challenge", "model": "previous", "keep": 0.5, "top_k": 200}
BUDGET = {"replay": {"memory_tokens": 2000, "share": 0.2, "mix": "budget", "probes": 2}, "budget": {"sea": "1%"}}
RICH: dict[str, dict[str, Any]] = {
    "infinite": {**BUDGET, "methods": [{"name": "ewc", "samples": 8}], "lr": {"policy": "infinite"},
                 "inherit": {"alpha": 0.5, "until": "surpassed", "looks": 2},
                 "facts": {"stage": 0, "at": ["30%", "60%"], "repeats": 1, "probes": 2}},
    "prompts": {**BUDGET, "methods": [{"name": "domain-prompts", "tokens": 1}, {"name": "ewc", "samples": 8}],
                "lr": {"policy": "wsd"}, "inherit": {"alpha": 0.5, "until": "surpassed", "looks": 2},
                "facts": {"stage": 1, "at": ["50%"], "repeats": 1, "probes": 2}},
    "watched": {"replay": {"memory_tokens": 2000, "share": 0.25, "policy": "diverse"},
                "methods": [{"name": "mas", "samples": 8}], "inherit": {"alpha": 0.5, "until": 0.5, "on": "new"}},
    "generated": {"replay": {"memory_tokens": 400, "share": 0.5, "generate": {"tokens": 192, "batch_size": 2}},
                  "inherit": {"teacher": "memory", "alpha": 0.5, "until": 1.0, "temperature": 1.0},
                  "methods": [{"name": "ewc", "samples": 8}]},
}  # fmt: skip


def comparable(out: Path) -> dict[str, bytes]:
    """Every byte that two runs of one recipe have in common: all but clock times, the machine, and caches.

    Of the report the matrix and the metrics count.
    """
    files = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not LEFT_OUT & set(path.relative_to(out).parts)
    }
    matrix = json.loads((out / "report/matrix.json").read_text())
    del matrix["cost"]["seconds"], matrix["sha256"]  # the hash is of the times too
    matrix["metrics"].pop("total_seconds", None)
    files["report/matrix.json"] = json.dumps(matrix, sort_keys=True).encode()
    return files


@dataclass
class Stream:
    """Corpora, a recipe that grows, recovers, inherits and replays, and a domain to extend the run by.

    `rich`: one of `RICH`; in `generated` the models write a part of what is replayed, and targets are stored.
    """

    folder: Path
    short: bool = False
    rich: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("sea", "farm", "law"):
            write_domain(self.folder, name, documents=24)
        facts = [{"prompt": f"the {word} is", "target": "blue"} for word in ("boat", "cow")]
        (self.folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))

    @property
    def phases(self) -> set[str]:
        """What an undisturbed run meets."""
        return (
            set(PHASES) - (set() if self.rich else RICH_ONLY) - (set() if self.rich == "generated" else GENERATED_ONLY)
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """Stages that end between two logs, with checkpoints in their middle; `short`: the first alone."""
        data = recipe_data(self.folder)
        for stage in data["stages"]:
            stage["tokens"] = 2500 if self.short else 1500
        if self.short:
            del data["stages"][1:]
            data["tokenizer"] = {"train": {"kind": "bpe", "vocab_size": 300}}
        data |= {"recover": {"tokens": 600}, "methods": [{"name": "l2", "strength": 0.01}],
                 "evaluate": {"tokens": 200, "samples": 1, "probes": 2, "probe_tokens": 100},
                 "train": {**data["train"], "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}}  # fmt: skip
        if self.rich:
            data["stages"][1]["select"] = SELECT
            data |= RICH[self.rich]
            if "facts" in data:
                data["facts"] = {**data["facts"], "file": str(self.folder / "facts.jsonl")}
            if self.rich == "watched":
                data["watch"] = [str(self.folder / "law.yaml")]
        return data

    def run(self, out: Path, observer: Any = None) -> None:
        """The whole stream and, unless short, its extension; goes on where an earlier call was killed."""
        from lifelong.ledger.ledger import read_records
        from lifelong.pipeline import extend_run, run_recipe
        from lifelong.recipe import parse_recipe
        from lifelong.recipe.files import read_recipe_file

        recipe = parse_recipe(self.recipe)
        bound = (out / "recipe.yaml").is_file()
        if not bound or len(read_recipe_file(out).stages) == len(recipe.stages):
            run_recipe(recipe, out, observer)
        if not self.short and (len(read_records(out)) < 4 or (out / ".work").exists()):
            extend_run(out, str(self.folder / "law.yaml"), overrides=["stages.2.expand.layers=4"], observer=observer)


@dataclass
class Tally:
    """What a soak has seen."""

    attempts: int = 0
    runs: int = 0
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    stages_lost: int = 0
    files_compared: int = 0
    files_different: int = 0
    torn: int = 0
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """Ends that came before the attempt was done."""
        return sum(self.hits.values())

    def table(self) -> str:
        """Hits by phase and kind, and what came out."""
        head = f"{'phase':<12}" + "".join(f"{kind:>11}" for kind in KINDS) + f"{'all':>7}"
        rows = [
            f"{phase:<12}" + "".join(f"{self.hits[phase, kind]:>11}" for kind in KINDS)
            + f"{sum(self.hits[phase, kind] for kind in KINDS):>7}"
            for phase in PHASES
        ]  # fmt: skip
        return "\n".join([
            head, *rows,
            f"kills {self.kills}, runs finished {self.runs}, files torn by power cuts {self.torn}, "
            f"stages lost {self.stages_lost},",
            f"files compared {self.files_compared}, different {self.files_different}, "
            f"other findings {len(self.findings)}, seconds {self.seconds:.0f}",
            *self.findings,
        ])  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """The `event`-th call or return of the `visit`-th time that an attempt is in `phase`."""

    phase: str
    visit: int
    event: int
    signal: int


class Teller:
    """In the attempt: says through a pipe what it is doing, and keeps a record of what was made durable."""

    def __init__(self, pipe: int | None = None, synced: int | None = None, aim: Aim | None = None) -> None:
        self.pipe, self.synced, self.aim, self.phase = pipe, synced, aim, ""
        self.visits: Counter[str] = Counter()
        self.events: list[tuple[str, int]] = []
        self.counted = 0
        self.set("preparing")

    def set(self, phase: str) -> None:
        """Enter a phase; the way back from a nested one is a visit of its own."""
        sys.setprofile(None)
        if self.phase:
            self.events.append((self.phase, self.counted))
        self.phase, self.counted = phase, 0
        self.visits[phase] += 1
        if self.pipe is not None:
            os.write(self.pipe, bytes([PHASES.index(phase)]))
        if self.aim is None or (self.aim.phase, self.aim.visit) == (phase, self.visits[phase]):
            sys.setprofile(self.count)

    def count(self, *_: Any) -> None:
        """One call or return; the one that was aimed at is the last, or the signal's to answer."""
        self.counted += 1
        if self.aim is not None and self.counted == self.aim.event:
            sys.setprofile(None)
            os.kill(os.getpid(), self.aim.signal)

    def during(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, told as a phase of its own."""

        def told(*args: Any, **kwargs: Any) -> Any:
            before = self.phase
            self.set(phase)
            result = work(*args, **kwargs)
            self.set(before)
            return result

        return told

    def fsync(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        """`os.fsync` that notes what the file was when it became durable."""

        def noting(target: Any) -> None:
            real(target)
            facts = os.fstat(target if isinstance(target, int) else target.fileno())
            if self.synced is not None:
                os.write(self.synced, f"{facts.st_ino} {facts.st_mtime_ns} {facts.st_size}\n".encode())

        return noting

    @contextlib.contextmanager
    def installed(self) -> Iterator[Any]:
        """The tellers in place; yields the observer of the run."""
        from lifelong.methods import ewc, mas
        from lifelong.pipeline import begin
        from lifelong.pipeline.phases import prepare, remember
        from lifelong.records import RunObserver
        from lifelong.report import write
        from lifelong.train import stage_trainer

        places = [
            (begin, "train_tokenizer", "tokenising"), (prepare, "tokenize_domain", "tokenising"),
            (begin, "write_heldout", "caching"), (remember, "write_memory_snapshot", "caching"),
            (prepare, "select_corpus", "selecting"), (ewc, "fisher_information", "importances"),
            (mas, "mean_over_rows", "importances"), (write, "write_report", "reporting"),
            (stage_trainer.StageTrainer, "_save_checkpoint", "saving"),
        ]  # fmt: skip
        real = [(module, name, getattr(module, name)) for module, name, _ in places] + [(os, "fsync", os.fsync)]
        for module, name, phase in places:
            setattr(module, name, self.during(phase, getattr(module, name)))
        os.fsync = self.fsync(os.fsync)  # type: ignore[assignment]
        teller = self

        class Phases(RunObserver):
            def phase_started(self, phase: str, total_tokens: int) -> None:
                teller.set(OF_OBSERVER[phase])

            def stage_committed(self, record: Any) -> None:
                teller.set("preparing")

        try:
            yield Phases()
        finally:
            sys.setprofile(None)
            for module, name, value in real:
                setattr(module, name, value)


class Attempt:
    """A fork that runs the stream, watched and ended from here."""

    def __init__(self, stream: Stream, out: Path, log: Path, aim: Aim | None = None) -> None:
        reading, writing = os.pipe()
        self.log = log
        self.phases: list[str] = []
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._live(stream, out, writing, aim)
        os.close(writing)
        self.reading = reading

    def _live(self, stream: Stream, out: Path, writing: int, aim: Aim | None) -> None:
        from lifelong.errors import Interrupted, LifelongError

        code = 1
        try:
            self.log.mkdir(parents=True, exist_ok=True)
            synced = os.open(self.log / "synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            messages = os.open(self.log / "messages", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(messages, 1)
            os.dup2(messages, 2)
            try:
                never = Aim("", 0, 0, 0)
                with Teller(writing, synced, aim or never).installed() as observer:
                    stream.run(out, observer)
                code = 0
            except Interrupted:
                code = 130
            except KeyboardInterrupt:  # before the run listens to signals
                code = 130
            except LifelongError as error:
                os.write(2, f"error: {error}\n".encode())
                code = error.exit_code
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def end_after(self, seconds: float, number: int) -> int:
        """Send a signal after some time; the exit code, negative for a signal."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0 and self._listen(left):
            pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.finish()

    def finish(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        while self._listen(SECONDS_AT_MOST):
            pass
        os.close(self.reading)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _listen(self, seconds: float) -> bool:
        """Whether the attempt said something within the time; it says nothing more when it has ended."""
        if not select.select([self.reading], [], [], seconds)[0]:
            return False
        said = os.read(self.reading, 1)
        self.phases += [PHASES[number] for number in said]
        return bool(said)


def cut_power(out: Path, log: Path, draw: random.Random) -> int:
    """What was not made durable loses its end; the number of files that did."""
    durable: dict[int, tuple[int, int]] = {}
    for line in (log / "synced").read_text().splitlines():
        inode, modified, size = map(int, line.split())
        durable[inode] = modified, size
    torn = 0
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock"):
        facts = path.stat()
        if facts.st_size and durable.get(facts.st_ino) != (facts.st_mtime_ns, facts.st_size):
            os.truncate(path, draw.choice([0, draw.randrange(facts.st_size)]))
            torn += 1
    return torn


@dataclass
class Reference:
    """A run that was left alone: its bytes, its time, and the calls and returns of every visit of every phase."""

    files: dict[str, bytes]
    events: dict[str, list[int]]
    seconds: float

    @classmethod
    def of(cls, stream: Stream, out: Path) -> Reference:
        """Run here and not in a fork: what it imports need not be imported again, nor be counted as part of a phase.

        `out` may hold a run that this process has finished before.
        """
        stream.run(out)
        teller, started = Teller(), time.monotonic()
        counted = out.with_name("counted")
        with teller.installed() as observer:
            stream.run(counted, observer)
            teller.set("preparing")
        events: dict[str, list[int]] = {phase: [] for phase in PHASES}
        for phase, count in teller.events:
            events[phase].append(count)
        assert {phase for phase, counts in events.items() if counts} == stream.phases, (
            "a phase of the run was never met"
        )
        assert comparable(out) == comparable(counted)
        return cls(comparable(out), events, time.monotonic() - started)

    def aim(self, phase: str, kind: str, draw: random.Random, fresh: bool) -> Aim:
        """A random moment of a phase; of its next visit where a run goes on, as the later ones may be behind it."""
        counts = self.events[phase]
        visit = draw.randrange(len(counts)) if fresh and draw.random() < 0.5 else 0
        return Aim(phase, visit + 1, draw.randint(1, max(1, counts[visit])), KINDS[kind])


def soak(
    folder: Path,
    kills: int,
    seed: int = 0,
    report: Callable[[Tally], None] | None = None,
    finished: tuple[Stream, Path] | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Kill runs until `kills` ends came before their time, and finish every run that was begun.

    `finished` is a stream and a run of it that this process left alone; made here where not given. `tally` goes on.
    """
    draw, tally, started = random.Random(seed), tally or Tally(), time.monotonic()
    stream, undisturbed = finished or (Stream(folder / "corpora"), folder / "undisturbed")
    reference = Reference.of(stream, undisturbed)
    kinds = ["SIGKILL", "SIGKILL", "power cut", "SIGTERM", "SIGINT"]
    # in the order in which a run meets the phases, so that one run takes many kills; None: anywhere
    aims = [*(phase for phase in PHASES if phase in stream.phases), None, None]
    plan = [(aims[i % len(aims)], draw.choice(kinds)) for i in range(kills)]
    plan.reverse()
    while plan and len(tally.findings) < 10:
        out, log = folder / f"run-{tally.runs}", folder / f"log-{tally.runs}"
        _one_run(stream, out, log, plan, reference, tally, draw)
        _compare(out, reference.files, tally)
        tally.runs += 1
        if report is not None:
            report(tally)
        if not tally.findings:
            shutil.rmtree(out)
    tally.seconds += time.monotonic() - started
    return tally


def _one_run(
    stream: Stream, out: Path, log: Path, plan: list[tuple[str | None, str]], reference: Reference, tally: Tally,
    draw: random.Random,
) -> None:  # fmt: skip
    """Attempts until one comes to the end; what was hit leaves the plan."""
    committed = set[str]()
    while True:
        tally.attempts += 1
        phase, kind = plan[-1] if plan else (None, "")
        aim = reference.aim(phase, kind, draw, not committed) if phase is not None else None
        attempt = Attempt(stream, out, log, aim)
        anywhere = kind and aim is None
        code = attempt.end_after(draw.random() * reference.seconds, KINDS[kind]) if anywhere else attempt.finish()
        kept = {path.parent.name for path in out.glob("stages/*/record.json")}
        tally.stages_lost += len(committed - kept)
        committed = kept
        if code == 0:
            return
        phase = attempt.phases[-1] if attempt.phases else "preparing"
        expected = [-signal.SIGKILL] if kind in ("SIGKILL", "power cut") else [130]
        if kind == "SIGTERM" and phase == "preparing":
            expected.append(-signal.SIGTERM)  # before the run has begun to listen
        if not kind or code not in expected:
            said = (log / "messages").read_text()[-1500:] if (log / "messages").exists() else ""
            tally.findings.append(f"{phase}, {kind or 'left alone'}: exit code {code} instead of {expected}\n{said}")
            return
        tally.hits[phase, kind] += 1
        plan.pop()
        if kind == "power cut" and (log / "synced").exists():
            tally.torn += cut_power(out, log, draw)


def _compare(out: Path, reference: dict[str, bytes], tally: Tally) -> None:
    from lifelong.ledger.ledger import check_run

    try:
        found = comparable(out)
        tally.findings += check_run(out)
    except Exception as error:
        tally.findings.append(f"{out.name}: cannot be compared ({error})")
        return
    tally.files_compared += len(reference)
    different = [name for name in {**reference, **found} if reference.get(name) != found.get(name)]
    tally.files_different += len(different)
    tally.findings += [f"{out.name}: {name} differs" for name in different[:3]]


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> int:
    """Run a soak and print its table."""
    import warnings

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless named")
    parser.add_argument("--keep", type=Path, help="new folder for the run that was left alone")
    parser.add_argument("--rich", action="store_true", help="the streams of RICH in turns")
    parser.add_argument(
        "--pieces", type=int, metavar="BYTES", help="read corpora in pieces of this size, as large ones"
    )
    options = parser.parse_args()
    if options.rich and options.keep:
        parser.error("--keep is for the one stream without --rich")
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)

    def told(now: Tally) -> None:
        print(f"{now.table()}\n", file=sys.stderr, flush=True)

    with _folder(options.folder) as folder:
        if options.pieces:
            from lifelong.stream import shards

            shards.WHOLE_BYTES, shards.PIECE_BYTES, shards._BLOCKS_A_PIECE = 0, options.pieces, 1
            os.environ["LIFELONG_CACHE"] = str(folder / "cache")
        tally, streams = Tally(), list(RICH) if options.rich else [""]
        for number, rich in enumerate(streams):
            here, kills = folder / rich, len(range(number, options.kills, len(streams)))
            finished = Stream(here / "corpora", rich=rich), here / "undisturbed"
            soak(here, kills, options.seed + number, told, finished, tally)
        if options.keep is not None:
            shutil.rmtree(options.keep, ignore_errors=True)
            shutil.copytree(folder / "undisturbed", options.keep)
    print(f"seed {options.seed}\n{tally.table()}")
    return 1 if tally.stages_lost or tally.files_different or tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
