"""Every path of a run folder by its name; the only file that knows where things are.

Nothing heavy is imported here, and nothing is written.

    RUN/recipe.yaml environment.json ledger.jsonl metrics.jsonl .lock
    RUN/initial/           the model before the first stage: losses.json samples.json tokenizer/
    RUN/stages/NN-DOMAIN/  a committed stage (`StageFolder`): model/ losses.json history.json ...
    RUN/heldout/DOMAIN/    held-out documents
    RUN/memory/NN/         replay memory after stage NN; generated/ where what models wrote is kept
    RUN/.work/NAME/        a stage that is being made (`WorkFolder`): selected/ generated/ grown/ trained/ ...
    RUN/.cache/            tokenised corpora
    RUN/report/ front/ downstream/ harness/ trackers/ rejected/
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import overload

from lifelong.errors import CorruptionError, InputError
from lifelong.files import outsiders

INITIAL = "initial"
COMMITTED_FOLDERS = (INITIAL, "stages", "heldout", "memory")
SHARED_FOLDERS = ("heldout", "memory")
# everything else that we put into a run folder; none of it is committed
OTHERS = (
    "ledger.jsonl", "metrics.jsonl", "recipe.yaml", "environment.json", ".lock", ".work", ".cache", "report",
    "rejected", "trackers", "front", "downstream", "harness",
)  # fmt: skip
_STAGE = re.compile(r"[0-9]+-")
_MODEL_OF_STAGE = re.compile(r"(?:.*/)?(?P<run>[^/]+)/stages/(?P<index>\d+)-[^/]+/(?:model|trunk)/?")


def stage_name(index: int, domain: str) -> str:
    """Folder name of a stage, for example `01-news`; the row before the first stage is `initial`."""
    return INITIAL if index < 0 else f"{index:02d}-{domain}"


def parse_stage_model(source: str) -> tuple[str, int] | None:
    """Name of the run and number of the stage where `source` is the path of a stage's model, present or to come."""
    match = _MODEL_OF_STAGE.fullmatch(source)
    return None if match is None else (match["run"], int(match["index"]))


def generation(memory: Path, number: int) -> Path:
    """What a model wrote, in the folder of a memory that keeps it; models are counted from 0."""
    return memory / "generated" / f"{number:02d}"


class _Folder:
    """A folder with named entries."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Its own name, without the folders above it."""
        return self.path.name


class _Entry:
    """Path of an entry of a folder, as an attribute of that folder."""

    def __init__(self, name: str, doc: str) -> None:
        self.name, self.__doc__ = name, doc

    @overload
    def __get__(self, folder: None, owner: type) -> _Entry: ...
    @overload
    def __get__(self, folder: _Folder, owner: type) -> Path: ...
    def __get__(self, folder: _Folder | None, owner: type) -> Path | _Entry:
        return self if folder is None else folder.path / self.name


class _Part(_Entry):
    """A folder in a folder."""

    @overload  # type: ignore[override]
    def __get__(self, folder: None, owner: type) -> _Part: ...
    @overload
    def __get__(self, folder: _Folder, owner: type) -> StageFolder: ...
    def __get__(self, folder: _Folder | None, owner: type) -> StageFolder | _Part:
        return self if folder is None else StageFolder(folder.path / self.name)


class StageFolder(_Folder):
    """A committed stage, or the result of one phase of a stage; every attribute is a path, whether it exists or not."""

    model = _Entry("model", "Checkpoint after training.")
    trunk = _Entry("trunk", "Checkpoint before the annealing, where the next stage starts from it.")
    tokenizer = _Entry("tokenizer", "The tokenizer of the run, beside the initial model.")
    record = _Entry("record.json", "The stage's line of the ledger.")
    card = _Entry("README.md", "Model card; made of what is committed, like the report.")
    measured = _Entry("measured.json", "Times, machine, threads and packages.")
    recipe = _Entry("recipe.yaml", "The recipe at the commit.")
    losses = _Entry("losses.json", "Held-out losses of all domains, per document.")
    watched = _Entry("watched.json", "Held-out losses of the domains that are watched, per document.")
    losses_before = _Entry("before.json", "Losses of the previous model on domains that joined with this stage.")
    history = _Entry("history.json", "Training curves, probes and facts of all phases.")
    curve = _Entry("curve.json", "Training curve of one phase.")
    samples = _Entry("samples.json", "Texts that the model wrote.")
    chat = _Entry("chat.json", "Answers to the chat prompts, where the base has a chat template.")
    expansion = _Entry("expansion.json", "Report and map of the growth.")
    selection = _Entry("selection.json", "What `select:` chose of the corpus.")
    mix = _Entry("mix.json", "Replay mixes and the steps from which they held.")
    methods = _Entry("methods.safetensors", "State of the methods.")
    moments = _Entry("optimizer.safetensors", "Adam's moments for the next stage, where they are carried on.")
    rounds = _Entry("rounds.json", "Who trained in which round, in a stage of a federation.")

    @property
    def next_model(self) -> Path:
        """The checkpoint from which the following stage starts."""
        return self.trunk if self.trunk.is_dir() else self.model

    def next_moments(self) -> Path:
        """Adam's moments at `next_model`; looks at the disk."""
        return self.trunk / self.moments.name if self.trunk.is_dir() else self.moments


class WorkFolder(StageFolder):
    """`.work/NAME`, where a stage is prepared: a folder for the result of each phase, and what is not committed."""

    selected = _Part("selected", "What `select:` chose.")
    proxied = _Part("proxied", "The memory with public text that stands in for text that nobody has.")
    generated = _Part("generated", "What the previous model wrote: blocks as in a memory, and their targets.")
    grown = _Part("grown", "The previous model at the new size.")
    recovered = _Part("recovered", "The grown model after training on replay alone.")
    trained = _Part("trained", "What the commit renames to `stages/NAME`.")
    texts = _Entry("texts.json", "Files of large corpora as they were when the stage began.")

    def part(self, name: str) -> StageFolder:
        """The result of a phase that names its own folder."""
        return StageFolder(self.path / name)

    def written(self, number: int) -> Path:
        """A batch of streams that the previous model has written."""
        return self.path / "written" / f"{number:05d}.npz"

    @property
    def targets(self) -> Path:
        """Targets of memory blocks, as a cache."""
        return self.path / "targets"

    def round(self, number: int) -> RoundFolder:
        """A finished round of a federation."""
        return RoundFolder(self.path / "rounds" / f"{number:06d}")

    @property
    def finished_rounds(self) -> list[RoundFolder]:
        """Rounds that are kept, oldest first; looks at the disk."""
        return [RoundFolder(path) for path in sorted((self.path / "rounds").glob("[0-9]*"))]

    def seconds(self, phase: str) -> Path:
        """Measured times of `recover`, `train` or `evaluate`."""
        return self.path / f"{phase}-seconds.json"

    def checkpoints(self, phase: str) -> Path:
        """Resumable checkpoints of `recover` or `train`."""
        return self.path / f"{phase}-checkpoints"


class RoundFolder(_Folder):
    """What the server of a federation keeps of a round."""

    rounds = _Entry("rounds.json", "All rounds so far.")
    weights = _Entry("weights.safetensors", "The average.")
    memories = _Entry("memories.safetensors", "What the strategy remembers, where it does.")


class CheckpointFolder(_Folder):
    """What lies in a resumable checkpoint beside what transformers writes."""

    state = _Entry("stage_state.json", "Counters of the phase, and the size of every file; written last.")
    methods = StageFolder.methods


class ReportFolder(_Folder):
    """Folder that `lifelong report` writes, beside its figures."""

    page = _Entry("index.html", "The page.")
    markdown = _Entry("report.md", "The report as Markdown.")
    matrix = _Entry("matrix.json", "Loss matrix, metrics and cost.")


class RunFolder(_Folder):
    """The folder of a run: every path in it by name, whether it exists or not.

        run = RunFolder("runs/news")
        [stage.name for stage in run.stages]                # ['00-wiki', '01-news']
        AutoModelForCausalLM.from_pretrained(run.model("01-news"))
        run.stage("01-news").losses                         # runs/news/stages/01-news/losses.json

    Args:
        path: the folder, which need not exist.
    """

    ledger = _Entry("ledger.jsonl", "One line per committed stage.")
    metrics = _Entry("metrics.jsonl", "What was measured, as it was measured; read by nothing but people and `status`.")
    recipe = _Entry("recipe.yaml", "The recipe in force.")
    environment = _Entry("environment.json", "Machine and packages at the start.")
    lock = _Entry(".lock", "Held by the process that writes.")
    cache = _Entry(".cache", "Tokenised corpora.")
    work_root = _Entry(".work", "Stages that are being made.")
    pending_recipe = _Entry(".work/recipe.yaml", "The recipe of an extension that is not finished.")
    heldouts = _Entry("heldout", "Held-out documents of all domains.")
    memories = _Entry("memory", "Replay memory after each stage.")
    evaluations = _Entry("trackers/evaluation", "The experiment trackers' files of what is measured between phases.")
    fronts = _Entry("front", "Losses between the old and the new weights of a stage.")
    search = _Entry("front/search", "Models of `merge --search`, measured.")
    task_scores = _Entry("downstream", "Scores of fine-tuned copies.")
    harness_scores = _Entry("harness", "Results of lm-evaluation-harness.")

    @classmethod
    def locate(cls, source: Path | str) -> RunFolder | None:
        """The run at `source`; None where `source` is a checkpoint folder or a hub id."""
        folder = cls(source)
        return folder if folder.exists else None

    @property
    def exists(self) -> bool:
        """Whether something was committed here (reads the disk)."""
        return self.ledger.is_file() or self.initial.record.is_file()

    def require(self) -> RunFolder:
        """The folder itself.

        Raises:
            InputError: nothing was committed here.
            CorruptionError: see `require_no_links`.
        """
        self.require_no_links()
        if not self.exists:
            raise InputError(f"{str(self.path)!r} is not a run folder: it has no {self.ledger.name}")
        return self

    def require_no_links(self) -> None:
        """Refuse a folder out of which something leads: it may come from somebody else, and is written and removed.

        Raises:
            CorruptionError: names every symbolic link, device or pipe among what belongs to a run.
        """
        found = [
            self.name_of(path)
            for name in (*COMMITTED_FOLDERS, *OTHERS)
            # trackers keep links of their own within their folders
            for path in outsiders(self.path / name, depth=1 if name == "trackers" else None)
        ]
        if found:
            raise CorruptionError(
                f"run folder {str(self.path)!r}: a run holds files and folders alone, but {', '.join(found[:5])}"
                f"{' and others' * (len(found) > 5)} {'are' if len(found) > 1 else 'is'} not (a symbolic link, a "
                "device or a pipe); nothing was read or changed. Replace a link by what it leads to, if you trust it"
            )

    @property
    def initial(self) -> StageFolder:
        """The model before the first stage."""
        return StageFolder(self.path / INITIAL)

    @property
    def stages(self) -> list[StageFolder]:
        """Committed stages, oldest first; looks at the disk."""
        found = [path for path in (self.path / "stages").glob("*-*") if path.is_dir() and _STAGE.match(path.name)]
        found.sort(key=lambda path: (int(path.name.partition("-")[0]), path.name))
        return [StageFolder(path) for path in found]

    def stage(self, name: str) -> StageFolder:
        """A committed stage, for example `01-news`, or `initial`."""
        return self.initial if name == INITIAL else StageFolder(self.path / "stages" / name)

    def model(self, name: str) -> Path:
        """The checkpoint of a committed stage."""
        return self.stage(name).model

    def work(self, name: str) -> WorkFolder:
        """Folder in which a stage is prepared."""
        return WorkFolder(self.work_root / name)

    def name_of(self, path: Path) -> str:
        """The name by which the ledger lists a file of the run: its path from the run folder."""
        return path.relative_to(self.path).as_posix()

    def heldout(self, domain: str) -> Path:
        """Held-out documents of a domain."""
        return self.heldouts / domain

    def memory(self, index: int) -> Path:
        """Replay memory that stage `index` leaves behind."""
        return self.memories / f"{index:02d}"

    def memory_before(self, index: int) -> Path | None:
        """The newest replay memory of the stages before `index`; looks at the disk."""
        found = [path for path in self.memories.glob("[0-9]*") if path.name.isdecimal() and int(path.name) < index]
        return max(found, key=lambda path: int(path.name), default=None)

    def generations_before(self, index: int) -> list[Path]:
        """What models wrote before stage `index`, where that is kept; oldest first, looks at the disk."""
        memory = self.memory_before(index)
        return sorted(generation(memory, 0).parent.glob("[0-9]*")) if memory is not None else []

    def tracker(self, name: str, phase: str) -> Path:
        """Folder of the experiment trackers' files for a phase of a stage."""
        return self.path / "trackers" / f"{name}-{phase}"

    def rejected(self, name: str) -> Path:
        """A stage that broke its forgetting budget."""
        return self.path / "rejected" / name

    def was_rejected(self, index: int) -> bool:
        """Whether stage `index` broke its budget before; looks at the disk."""
        return any(self.rejected("").glob(f"{stage_name(index, '')}*"))

    @property
    def report(self) -> ReportFolder:
        """The report."""
        return ReportFolder(self.path / "report")

    def front(self, name: str) -> Path:
        """Losses between the old and the new weights of a stage."""
        return self.fronts / f"{name}.json"

    def task_score(self, name: str, task: str) -> Path:
        """Scores of copies of a stage's model, fine-tuned on a task."""
        return self.task_scores / f"{name}-{task}.json"

    def harness(self, name: str) -> Path:
        """Results of lm-evaluation-harness for a stage."""
        return self.harness_scores / f"{name}.json"
