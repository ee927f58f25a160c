"""Input at random: whatever is given, a command ends with a message and a code, in time, and leaves nothing behind.

A target makes a case from a random generator and puts it to the code in this process. An outcome is a code (0 done, 2
and 3 refused, 130 interrupted) or a finding: an exception that is no answer, a hang, a folder that a refusal has left.
What is found is kept in `cases/` and put again by every run of the tests.

    python -m tests.faults.fuzz --cases 10000 --keep
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
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

import yaml

CASES = Path(__file__).parent / "cases"
HERE = "@corpora@"
SECONDS_AT_MOST = 20.0
CODES = ("0", "2", "3", "130")
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 0.5, -0.5, 10**13, 10**30, 1e308, 1e-300, float("nan"), float("inf"), "", "abc", "%",
    "5%", "-5%", "nan", "1e400", "2M", "../x", "x" * 5000, "/dev/null", "/proc/self/mem", "/", ".", "~", "\x07", "\x00", "\x1b[31m",
    "$HOME", "$NOT_THERE", "${", "\N{SNOWMAN}", [], {}, [[]], [None], ["a"], {"a": 1}, {"": None}, {1: 2}, [1, "a"], "none", "all",
    "2020-13-45", "previous", "licences", "org/model",
]  # fmt: skip
YAML_TEXT = [
    "!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "!!binary /w==", "!!set {a}", "0b_", "2020-13-45", "9" * 5000,
    "0x" + "f" * 5000, "[" * 3000, "{a: " * 900, "&a [*a]", "*a", "&a x", "<<: {a: 1}", "? [a]", "\t", "\x00", "- ", ": ", "{", "]",
    "'", '"\\ud800"', "|\n", "!!python/name:os.system", "%YAML 9.9", "---\n", "...\n", "~", ".nan", "-.inf", "1_000", "12:30:45",
    "!!omap [a: 1]", "!!pairs [a: 1]", "\ufeff", "# x", "on: yes", "1e400", "\N{SNOWMAN}",
]  # fmt: skip


class Hang(BaseException):
    """It took too long."""


class Begun(BaseException):
    """A run would begin now; what it was given is accepted."""


@dataclass
class World:
    """Corpora, a recipe and a finished run that cases are made of; `scratch` is empty before every case."""

    corpora: Path
    finished: Path
    scratch: Path
    recipe: dict[str, Any]
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from lifelong.plugins import shipped_folder

        shipped = sorted(shipped_folder("recipes").rglob("*.yaml"))
        self.texts = [yaml.safe_dump(self.recipe), *(path.read_text() for path in shipped)]

    def clear(self) -> Path:
        """An empty folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        return self.scratch


Case = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """How a case is made, and how it is put; `share` of all cases."""

    make: Callable[[random.Random, World], Case]
    put: Callable[[Case, World], Any]
    share: float


TARGETS: dict[str, Target] = {}


def target(share: float) -> Callable[[type], type]:
    """Register a class with `make` and `put` under its name."""

    def register(kind: type) -> type:
        TARGETS[kind.__name__] = Target(kind.make, kind.put, share)  # type: ignore[attr-defined]
        return kind

    return register


# --- making ---------------------------------------------------------------------------------------------------------


def packed(content: bytes) -> str:
    """Bytes as a case holds them."""
    return base64.b64encode(content).decode()


def mutated(draw: random.Random, content: bytes) -> bytes:
    """Bytes with one to three changes: flipped, cut, doubled, removed, put in."""
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        end = min(len(content), place + draw.choice([1, 1, 4, 30, 1000]))
        change = draw.choice(["flip", "cut", "double", "remove", "insert"])
        if change == "flip" and place < len(content):
            content = content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
        elif change == "cut":
            content = content[:place]
        elif change == "double":
            content = content[:end] + content[place:]
        elif change == "remove":
            content = content[:place] + content[end:]
        else:
            content = content[:place] + draw.randbytes(draw.choice([1, 2, 8])) + content[place:]
    return content


def mutated_yaml(draw: random.Random, text: str) -> str:
    """YAML with one to three changes: values, lines, indentation, bytes."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(lines))
        key, colon, _ = lines[place].partition(":")
        change = draw.choice(["value", "value", "value", "key", "remove", "double", "indent", "bytes"])
        if change == "value" and colon:
            lines[place] = f"{key}: {draw.choice(YAML_TEXT)}"
        elif change == "key":
            lines[place] = f"{draw.choice(YAML_TEXT)}: {lines[place].strip()}"
        elif change == "remove" and len(lines) > 1:
            del lines[place]
        elif change == "double":
            lines.insert(place, lines[place])
        elif change == "indent":
            lines[place] = " " * draw.randint(0, 9) + lines[place].lstrip()
        else:
            lines[place] = mutated(draw, lines[place].encode()).decode("utf-8", "replace")
    return "\n".join(lines) + "\n"


def places_of(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree of plain values."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield (*above, key)
        yield from places_of(value, (*above, key))


def with_value(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with a value at a place."""
    data = copy.deepcopy(data)
    node = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return data


# --- putting --------------------------------------------------------------------------------------------------------


def command(arguments: list[str], world: World) -> int:
    """Exit code of a command, in the empty folder; a refusal leaves nothing there."""
    from lifelong.cli import main
    from lifelong.cli.terminal import state
    from lifelong.pipeline import loop

    def begun(*_: Any) -> Any:
        raise Begun

    before, opened, argv = Path.cwd(), loop.open_together, sys.argv
    given = {path.name for path in world.scratch.iterdir()}
    sys.argv, loop.open_together = ["lifelong", *arguments], begun
    os.chdir(world.scratch)
    try:
        main()
        return 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        left = {path.name for path in world.scratch.iterdir()} - given
        if code == 2 and left:
            raise AssertionError(f"exit code 2, and {sorted(left)} is left") from None
        return code
    finally:
        sys.argv, loop.open_together, state.verbose = argv, opened, False
        os.chdir(before)


def checked(recipe: Any) -> None:
    """All that is checked before a run begins."""
    from lifelong.recipe.check import check_launch, check_recipe

    check_launch(recipe)
    check_recipe(recipe)
    assert recipe.to_yaml()
    assert recipe.fingerprint


@target(0.25)
class RecipeText:
    """The text of a shipped recipe, changed."""

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        return {"text": mutated_yaml(draw, draw.choice(world.texts))}

    @staticmethod
    def put(case: Case, world: World) -> None:
        from lifelong.recipe.files import load_recipe

        path = world.clear() / "recipe.yaml"
        path.write_text(case["text"])
        load_recipe(path).to_yaml()


@target(0.2)
class RecipeValue:
    """A good recipe with one to three values replaced, or sections added."""

    SECTIONS: tuple[tuple[Any, ...], ...] = (
        *((name,) for name in ("methods", "lr", "budget", "facts", "expect", "recover", "objective", "seed", "description")),
        *(("stages", 1, name) for name in ("select", "train", "together_with")),
        *(("stages", 1, "expand", name) for name in ("positions", "vocab_size", "mode", "strategy", "placement", "experts", "kv_heads")),
        *(("inherit", name) for name in ("teacher", "on", "temperature", "until", "schedule")),
        *(("replay", name) for name in ("mix", "policy", "probes")),
        *(("evaluate", name) for name in ("probes", "samples", "split", "probe_tokens")),
        *(("tokenizer", name) for name in ("checkpoint", "merge", "fixed")),
    )  # fmt: skip

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        data = world.recipe
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            places = [*places_of(data), *RecipeValue.SECTIONS]
            with contextlib.suppress(KeyError, IndexError, TypeError):
                place = draw.choice(places)
                data = with_value(data, place, RecipeValue.value(draw, place))
        return {"data": data}

    @staticmethod
    def value(draw: random.Random, place: tuple[Any, ...]) -> Any:
        """Anything; or what fits the section, with anything in it."""
        nasty = draw.choice(NASTY)
        fitting: dict[Any, list[Any]] = {
            "methods": [
                [{"name": name, key: nasty}]
                for name, key in (
                    ("ewc", "samples"),
                    ("ewc", "online"),
                    ("l2", "strength"),
                    ("mas", "samples"),
                    ("si", "strength"),
                    ("gem", "memory"),
                    ("lora", "rank"),
                    ("average", "decay"),
                )
            ],
            "lr": [
                {"policy": policy, key: nasty}
                for policy in ("wsd", "infinite", "rewarm")
                for key in ("warmup", "decay", "floor")
            ],
            "select": [{"by": by, "model": nasty} for by in ("challenge", "perplexity", "none")]
            + [{"by": "challenge", "share": nasty}],
            "teacher": [{"cache": nasty}, {"by_domain": {"sea": nasty}}, {"mixture": [nasty]}, "previous"],
            "budget": [{"sea": nasty}, {"farm": "2%"}],
            "facts": [{"at": [nasty]}, {"at": [0.5], "stage": nasty}, {"file": nasty, "at": [0.5]}],
            "expect": [{"ap": {"value": nasty}}, {"ap": {"value": 1, "tolerance": nasty}}],
            "tokenizer": [{"checkpoint": nasty}, {"merge": {"sea": nasty}}],
        }
        numbers = [-1, 0, 1, 2, 3, 7, 50, 64, 0.5, 10**6, 10**13, "2M"]
        return draw.choice([nasty, draw.choice(numbers), draw.choice(fitting.get(place[-1], [nasty]))])

    @staticmethod
    def put(case: Case, _: World) -> None:
        from lifelong.recipe.files import parse_recipe

        checked(parse_recipe(case["data"]))


@target(0.12)
class TrainValue:
    """Any TrainingArguments field with any value, alone or in a stage."""

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        import transformers

        names = [entry.name for entry in dataclasses.fields(transformers.TrainingArguments)]
        section = {draw.choice(names): draw.choice(NASTY) for _ in range(draw.choice([1, 1, 2]))}
        place = draw.choice([("train",), ("stages", 1, "train")])
        before = world.recipe["train"] if place == ("train",) else {}
        return {"data": with_value(world.recipe, place, {**before, **section})}

    put = RecipeValue.put


@target(0.12)
class ModelValue:
    """Any size and any key of the configuration with any value."""

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        from lifelong.expand import new_config
        from lifelong.plugins import plugin_names

        family = draw.choice(plugin_names("lifelong.expand.families"))
        keys = sorted(new_config(family, vocab_size=300, max_positions=32).to_dict())
        model = {"family": family, "layers": 2, "hidden_size": 32, "heads": 2}
        if draw.random() < 0.5:
            model["config"] = {draw.choice(keys): draw.choice(NASTY)}
        else:
            axes = (
                "layers",
                "hidden_size",
                "intermediate_size",
                "heads",
                "kv_heads",
                "head_dim",
                "vocab_size",
                "experts",
            )
            model[draw.choice(axes)] = draw.choice([*NASTY, 3, 5, 10**6, 10**9, 2**31, 2**62])
        objective = "mlm" if family in ("bert", "roberta", "modernbert") else "clm"
        data = {**world.recipe, "model": model, "objective": objective}
        return {"data": with_value(data, ("stages", 1, "expand"), {"layers": draw.choice([3, 4, 10**13])})}

    put = RecipeValue.put


@target(0.17)
class CardText:
    """The text of a card, changed; what can be read of it is read."""

    CARD = (
        "name: sea\nsource:\n  files: [sea.train.jsonl]\n  valid: [sea.valid.jsonl]\n  test: [sea.test.jsonl]\n"
        "licence: CC0-1.0\ntext_field: text\ndedup: near\nheld_out: 0.1\non_bad_document: skip\nmax_document_bytes: 1MB\n"
        "take_bytes: 10k\ncitation: x\ndescription: y\n"
    )

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        del world
        return {"text": mutated_yaml(draw, CardText.CARD)}

    @staticmethod
    def put(case: Case, world: World) -> None:
        folder = world.clear()
        for path in world.corpora.glob("sea.*.jsonl"):
            shutil.copy(path, folder)
        (folder / "sea.yaml").write_text(case["text"])
        read(folder / "sea.yaml")


def read(card: Path) -> None:
    """The first documents of a card's splits."""
    from lifelong.stream.cards.documents import read_documents
    from lifelong.stream.cards.domain import load_domain

    domain = load_domain(card)
    for split in ("train", "valid"):
        for _, document in zip(range(200), read_documents(domain, split), strict=False):
            assert isinstance(document.text, str)


@target(0.12)
class Corpus:
    """A file of every format, changed; or one that grows a thousandfold when it is read."""

    @staticmethod
    def content(draw: random.Random, ending: str) -> bytes:
        rows = [{"text": "word " * draw.randint(0, 40) + str(number)} for number in range(20)]
        if draw.random() < 0.3:
            rows[draw.randrange(20)]["text"] = draw.choice(NASTY)
        if "parquet" in ending:
            import pyarrow as pa
            import pyarrow.parquet as pq

            stream = io.BytesIO()
            pq.write_table(pa.table({"text": [str(row["text"]) for row in rows]}), stream)
            return stream.getvalue()
        if "sv" in ending:
            text = io.StringIO()
            writer = csv.writer(text, delimiter="\t" if "tsv" in ending else ",")
            writer.writerows([["text", "n"], *((str(row["text"]), 1) for row in rows)])
            return text.getvalue().encode("utf-8", "surrogatepass")
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        del world
        ending = draw.choice(
            ["jsonl", "json", "csv", "tsv", "parquet", "txt", "jsonl.gz", "csv.gz", "jsonl.zst", "txt.zst"]
        )
        bomb = draw.random() < 0.02 and not ending.startswith("parquet")
        content = b'{"text": "' + bytes(20_000_000) if bomb else Corpus.content(draw, ending)
        before = draw.random() < 0.5
        if before and not bomb:
            content = mutated(draw, content)
        if ending.endswith("gz"):
            content = gzip.compress(content, 9)
        elif ending.endswith("zst"):
            import pyarrow as pa

            content = pa.compress(content, codec="zstd", asbytes=True)
        if not before and not bomb:
            content = mutated(draw, content)
        card: dict[str, Any] = {"source": {"files": [f"x.{ending}"]}, "on_bad_document": draw.choice(["error", "skip"])}
        card |= draw.choice([{}, {"dedup": "near"}, {"take_bytes": "1k"}, {"max_document_bytes": 100}])
        return {"name": f"x.{ending}", "content": packed(content), "card": card}

    @staticmethod
    def put(case: Case, world: World) -> None:
        folder = world.clear()
        (folder / case["name"]).write_bytes(base64.b64decode(case["content"]))
        (folder / "x.yaml").write_text(yaml.safe_dump(case["card"]))
        read(folder / "x.yaml")


@target(0.015)
class Arguments:
    """Words in any order behind every verb; a run that would begin is accepted."""

    VERBS = (
        "run",
        "extend",
        "plan",
        "expand",
        "evaluate",
        "cache",
        "check",
        "merge",
        "report",
        "list",
        "schema",
        "domain",
    )
    OPTIONS = (
        "--set", "--out", "--size", "--domain", "--tokens", "--devices", "--device", "--sharding", "--flops", "--mfu", "--weight",
        "--stage", "--weights", "--expect", "--layers", "--hidden-size", "--files", "--python-text", "--held-out", "--tau",
        "--json", "--no-text", "-v", "--help", "--allow-paths", "--temperature", "--sequence-length", "--objective",
    )  # fmt: skip

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        values = [str(value) for value in NASTY if "\x00" not in str(value)]
        paths = [
            f"a.b.{'c.' * 60}d=1",
            "train.optim=best",
            "stages.1.tokens=-1",
            "stages.9.tokens=1",
            "model.layers=0",
            "name=../x",
        ]
        words = [*values, *paths, "RUN", "RECIPE", "CARD", "quickstart", "recipes", "domains", "recipe", "add", "show"]
        arguments = [draw.choice(Arguments.VERBS)]
        if draw.random() < 0.6:
            first = {"run": "RECIPE", "plan": "RECIPE", "domain": "check"}.get(arguments[0], "RUN")
            arguments.append(first)
        for _ in range(draw.randint(0, 3)):
            arguments += draw.choice([[draw.choice(words)], [draw.choice(Arguments.OPTIONS), draw.choice(words)]])
        return {"arguments": arguments}

    @staticmethod
    def put(case: Case, world: World) -> int:
        folder = world.clear()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(world.recipe))
        shutil.copytree(world.finished, folder / "run")
        names = {"RUN": "run", "RECIPE": "recipe.yaml", "CARD": str(world.corpora / "sea.yaml")}
        return command([names.get(word, word) for word in case["arguments"]], world)


@target(0.005)
class RunFolder:
    """A finished run with one file changed, with the hashes of the ledger made right again or not; it is read."""

    @staticmethod
    def make(draw: random.Random, world: World) -> Case:
        files = sorted(path for path in world.finished.rglob("*") if path.is_file() and ".cache" not in path.parts)
        path = draw.choice(files)
        plain = [entry for entry in files if entry.suffix == ".json"]
        content = path.read_bytes()
        if draw.random() < 0.6:
            path = draw.choice(plain)
            data = json.loads(path.read_bytes())
            places = list(places_of(data)) or [()]
            data = with_value(data, place, draw.choice(NASTY)) if (place := draw.choice(places)) else draw.choice(NASTY)
            content = json.dumps(data).encode()
        else:
            content = mutated(draw, content)
        verb = draw.choice(["check", "report", "report", "report", "merge", "extend", "compare"])
        name = path.relative_to(world.finished).as_posix()
        return {"name": name, "content": packed(content), "forged": draw.random() < 0.7, "verb": verb}

    @staticmethod
    def put(case: Case, world: World) -> int:
        run = Path(shutil.copytree(world.finished, world.clear() / "run"))
        (run / case["name"]).write_bytes(base64.b64decode(case["content"]))
        if case["forged"]:
            forge(run, case["name"])
        more = {"extend": ["--domain", "licences", "--tokens", "1k"], "merge": ["--weight", "0.5", "--out", "merged"]}
        arguments = {"compare": ["report", "run", str(world.finished)]}.get(case["verb"], [case["verb"], "run"])
        return command([*arguments, *more.get(case["verb"], [])], world)


def forge(run: Path, name: str) -> None:
    """Make the ledger's hash of a file right, and every hash from there on."""
    lines, parent = [], ""
    for line in (run / "ledger.jsonl").read_bytes().splitlines():
        try:
            data = {**json.loads(line), "parent": parent}
            if name in data["files"]:
                data["files"][name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
            data.pop("sha256")
        except (ValueError, TypeError, KeyError):
            return
        body = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        parent = hashlib.sha256(body).hexdigest()
        lines.append(b'{"sha256":"' + parent.encode() + b'",' + body[1:])
        if (record := run / ("initial" if data["index"] == -1 else f"stages/{data['name']}") / "record.json").is_file():
            record.write_bytes(lines[-1] + b"\n")
    (run / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


@target(0.0)
class Training:
    """A `train:` section that is accepted, trained with to the end. Only by name: a case takes seconds."""

    make = TrainValue.make

    @staticmethod
    def put(case: Case, world: World) -> int:
        from lifelong.cli import main

        data = copy.deepcopy(case["data"])
        section = {**data["train"], **data["stages"][1].get("train", {})}
        data |= {"train": section, "inherit": None, "replay": None, "stages": [{**data["stages"][0], "tokens": 600}]}
        data |= {"evaluate": {"tokens": 200, "samples": 0}, "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}}}
        (world.clear() / "recipe.yaml").write_text(yaml.safe_dump(data))
        argv, sys.argv = (
            sys.argv,
            ["lifelong", "run", str(world.scratch / "recipe.yaml"), "--out", str(world.scratch / "out")],
        )
        try:
            main()
            return 0
        except SystemExit as end:
            code = int(end.code or 0)
            if code == 2 and (world.scratch / "out").exists():
                raise AssertionError("exit code 2, and the run folder is left") from None
            return code
        finally:
            sys.argv = argv


# --- judging --------------------------------------------------------------------------------------------------------


def _alarm(*_: Any) -> None:
    raise Hang


def outcome(name: str, case: Case, world: World) -> tuple[str, str]:  # noqa: PLR0911 - as many as there are outcomes
    """Code of a case, or what was found; and of a finding where."""
    from lifelong.cli.faults import fault_message
    from lifelong.errors import Interrupted, LifelongError

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_AT_MOST)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = TARGETS[name].put(case, world) or 0
        if "Traceback" in said.getvalue() or str(code) not in CODES:
            return f"code {code}", said.getvalue()[-2000:]
        return str(code), ""
    except (LifelongError, Interrupted) as error:
        return str(error.exit_code), ""
    except Begun:
        return "0", ""
    except Hang:
        return "hang", traceback.format_exc()[-2000:]
    except Exception as error:
        if fault_message(error) is not None:
            return "2", ""
        return "left behind" if isinstance(error, AssertionError) else "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # commands listen to it


def place_of(trace: str) -> str:
    """The last frame of this package, and the exception: findings of one place are one finding."""
    lines = trace.strip().splitlines() or ["?"]
    frames = [line.strip() for line in lines if "/lifelong/" in line and line.strip().startswith("File")]
    own = frames[-1].partition("/lifelong/")[2].split('"')[0] + frames[-1].partition("line")[2] if frames else "?"
    return f"{own}: {lines[-1][:150]}"


Found = Callable[[str, str, Case, str], None]


def fuzz(
    world: World,
    cases: int,
    seed: int = 0,
    names: list[str] | None = None,
    seconds: float = float("inf"),
    tell: Found = lambda *_: None,
) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Put cases, for so many seconds at most; the tally by target and outcome, and a trace for each finding."""
    tally: dict[str, Counter[str]] = {name: Counter() for name in TARGETS}
    found: dict[str, str] = {}
    draw, began = random.Random(seed), time.monotonic()
    chosen = names or list(TARGETS)
    shares = [TARGETS[name].share or float(bool(names)) for name in chosen]
    for _ in range(cases):
        if time.monotonic() - began > seconds:
            break
        name = draw.choices(chosen, shares)[0]
        case = TARGETS[name].make(draw, world)
        ended, trace = outcome(name, case, world)
        tally[name][ended] += 1
        place = f"{name}: {ended}: {place_of(trace)}"
        if ended not in CODES and place not in found:
            found[place] = trace
            tell(name, place, case, trace)
    return tally, found


def kept_cases() -> list[Path]:
    """Cases that were once found."""
    return sorted(CASES.glob("*.json"))


def kept(path: Path, world: World) -> tuple[str, Case, str]:
    """Target and case of a file, and what was found."""
    data = json.loads(path.read_text().replace(HERE, str(world.corpora)))
    return data["target"], data["case"], data["found"]


def keep(name: str, case: Case, place: str, world: World) -> Path:
    """Write a case beside the others; the corpora are elsewhere when it is put again."""
    CASES.mkdir(exist_ok=True)
    text = json.dumps({"target": name, "found": place, "case": case}, indent=1).replace(str(world.corpora), HERE)
    path = CASES / f"{name.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text + "\n")
    return path


def table(tally: dict[str, Counter[str]]) -> str:
    """Markdown: targets by outcomes."""
    outcomes = [*CODES, *sorted({name for counts in tally.values() for name in counts} - set(CODES))]
    rows = [["target", "cases", *outcomes]]
    rows += [
        [name, str(counts.total()), *(str(counts[key]) for key in outcomes)] for name, counts in tally.items() if counts
    ]
    together = sum(tally.values(), Counter())
    rows.append(["all", str(together.total()), *(str(together[key]) for key in outcomes)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def make_world(folder: Path) -> World:
    """Everything that cases are made of."""
    from tests.faults.kills import Stream

    stream = Stream(folder / "corpora", short=True)
    stream.run(folder / "finished")
    return World(stream.folder, folder / "finished", folder / "scratch", Stream(stream.folder).recipe)


def main() -> int:
    """Put cases until all have been put; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--keep", action="store_true", help="write findings to tests/faults/cases/")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"

        def tell(name: str, place: str, case: Case, trace: str) -> None:
            print(f"\n--- {place}\n{json.dumps(case, default=str)[:300]}\n{trace[-1500:]}", flush=True)
            if options.keep:
                print(keep(name, case, place, world), flush=True)

        world = make_world(Path(folder))
        tally, found = fuzz(world, options.cases, options.seed, options.target, tell=tell)
    print(f"\n{table(tally)}\n{len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
