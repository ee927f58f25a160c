"""Runs that replay what their models write: said in the ledger, charged, planned, killed and resumed to the same bits."""

import json
import shutil

import pytest

from lifelong.errors import InputError
from lifelong.files import read_json
from lifelong.inherit.teachers.memory import SMALLEST_TAU, TAU, tau_of, visits
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.plan.stages import planned_memory, planned_visits
from lifelong.recipe import parse_recipe
from lifelong.recipe.check import check_recipe
from lifelong.records import RunObserver
from lifelong.replay.memory import ReplayMemory
from lifelong.replay.settings import SELF_GENERATED
from tests.support import recipe_data, run_cli, tiny_checkpoint

TEACHER = {"teacher": "memory", "on": "replay", "alpha": 1.0, "schedule": "constant", "temperature": 1.0}


@pytest.fixture(scope="module")
def base(cards, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), cards)


def data_of(cards, base, names=("sea", "farm"), **replay):
    """A checkpoint through some stages; the second grows."""
    data = recipe_data(
        cards, model={"checkpoint": str(base)}, inherit=dict(TEACHER), evaluate={"tokens": 200, "samples": 0}
    )
    del data["tokenizer"]
    data["stages"] = [{"domain": str(cards / f"{name}.yaml"), "tokens": 1024} for name in names]
    if len(names) > 1:
        data["stages"][1]["expand"] = {"layers": 3}
    # eight rows a step, streams of two blocks, two of them side by side
    data["replay"] = {
        "memory_tokens": 512, "share": 0.5, "generate": {"tokens": 256, "length": 64, "batch_size": 2}, **replay
    }  # fmt: skip
    return data


class Stops(RunObserver):
    """Ends a run when a phase has done this much."""

    def __init__(self, phase, tokens):
        self.at, self.seen = (phase, tokens), []

    def phase_started(self, phase, total_tokens):
        self.seen.append(phase)
        if self.at == (phase, "start"):
            raise ZeroDivisionError

    def advanced(self, phase, tokens, total):
        assert tokens <= total
        if self.at == (phase, tokens):
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def run(cards, base, tmp_path_factory):
    """Public text, self-generated text and kept text, all of it read more than once."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    proxy = {str(cards / "town.yaml"): 96}
    recipe = parse_recipe(data_of(cards, base, memory_tokens=192, share=0.75, proxy=proxy))
    run_recipe(recipe, out)
    return recipe, out


def test_ledger_says_who_wrote_what(run, base):
    _, out = run
    initial, *stages = read_records(out)
    assert check_run(out) == []
    assert initial.generated is None
    assert b'"generated"' not in (out / "ledger.jsonl").read_bytes().splitlines()[0]
    for before, record in zip([initial, *stages], stages, strict=False):
        facts = record.generated
        assert (facts["written_by"], facts["model"]) == (before.name, before.fingerprints["model"])
        assert (facts["tokens"], facts["length"], facts["temperature"], facts["seed"]) == (256, 64, 1.0, 0)
        assert (facts["blocks"], facts["blocks_with_targets_of_a_pass"]) == (8, 4)
        assert 1 <= len(facts["samples"]) <= 4
        assert record.replay[SELF_GENERATED] > 0
        assert record.replay["town"] > 0
        assert record.cost["generate"]["flops"] > record.cost["generate"]["teacher_flops"] > 0
    assert stages[0].generated["text"] != stages[1].generated["text"]
    assert not list(out.glob("memory/*/generated"))  # the newest alone is asked for: nothing is kept
    memory = ReplayMemory.open(out / "memory/01")
    assert set(memory.domains) == {"town", "sea", "farm"}
    assert memory.num_tokens <= 192


def test_targets_of_kept_text_are_written_once_where_it_is_read_more_than_once(run):
    recipe, out = run
    for index, record in enumerate(read_records(out)[1:]):
        assert planned_visits(recipe, index).stores_kept
        assert record.cost["targets"]["flops"] > 0
        assert record.cost["train"]["teacher_flops"] == 0.0  # nobody ran beside the student
        points = json.loads((out / "stages" / record.name / "history.json").read_text())["train"]
        assert all(point["kl"] is not None and point["alpha"] == 1.0 for point in points)


def test_plan_counts_what_the_run_is_charged(run):
    recipe, out = run
    plan = plan_recipe(recipe)
    for stage, record in zip(plan.stages, read_records(out)[1:], strict=True):
        cost = record.cost["generate"]
        assert stage.generation_flops == pytest.approx(cost["flops"] - cost["teacher_flops"])
        assert stage.generated_tokens == 256
        assert stage.teacher_flops == pytest.approx(cost["teacher_flops"] + record.cost["targets"]["flops"], rel=0.35)
        assert stage.memory.teacher == 0
        assert stage.replay_share == 0.75
    notes = "\n".join(plan.notes)
    assert "stage 0: the model before it writes 256 tokens" in notes
    assert "targets are written once, cheaper than a teacher at every visit" in notes


def test_a_run_killed_while_it_writes_ends_in_the_same_bits(run, tmp_path):
    recipe, whole = run
    out = tmp_path / "killed"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("0[01]-*", "memory", "report"))
    initial = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)[0]
    (out / "ledger.jsonl").write_bytes(initial)
    written = []
    for phase, tokens in (
        ("generate", 64), ("generate", 224), ("targets", "start"), ("grow", "start"), ("commit", "start")
    ):  # fmt: skip
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe, out, Stops(phase, tokens))
        written.append(len(list(out.glob(".work/00-*/written/*.npz"))))
    assert written[:2] == [0, 1]  # a round that is done is not written again
    run_recipe(recipe, out)
    assert (out / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    assert check_run(out) == []
    assert not (out / ".work").exists()


def test_what_every_model_wrote_stays_within_its_tokens(cards, base, tmp_path):
    data = data_of(cards, base, ("sea", "farm", "law"), memory_tokens=0)
    data["replay"]["generate"]["from"] = "every"
    data["replay"]["generate"]["start"] = str(cards / "town.yaml")
    data["replay"]["generate"]["start_tokens"] = 4
    recipe = parse_recipe(data)
    run_recipe(recipe, tmp_path / "run")
    records = read_records(tmp_path / "run")[1:]
    assert check_run(tmp_path / "run") == []
    assert [record.generated["tokens"] for record in records] == [256, 128, 64]  # 85 is two blocks and a part
    kept = sorted((tmp_path / "run/memory/02/generated").iterdir())
    memories = [ReplayMemory.open(folder) for folder in kept]
    assert [memory.num_tokens for memory in memories] == [64, 64, 64]
    assert [memory.experiences[0].stage for memory in memories] == [0, 1, 2]
    assert not (tmp_path / "run/memory/02/memory.json").exists()
    assert {record.generated["start"] for record in records} == {"town"}
    assert all(set(record.replay) == {SELF_GENERATED} for record in records)
    assert records[2].cost["train"]["teacher_flops"] == 0.0
    planned = plan_recipe(recipe).stages
    assert [stage.generated_tokens for stage in planned] == [256, 128, 64]


def test_kept_text_that_is_read_too_seldom_has_the_previous_model_beside_it(cards, base, tmp_path):
    data = data_of(cards, base, share=0.2)
    del data["replay"]["generate"]
    recipe = parse_recipe(data)
    run_recipe(recipe, tmp_path / "run")
    first, second = read_records(tmp_path / "run")[1:]
    assert "targets" not in {**first.cost, **second.cost}
    assert first.cost["train"]["teacher_flops"] == 0.0  # nothing is in the memory yet
    assert second.cost["train"]["teacher_flops"] > 0
    plan = plan_recipe(recipe)
    assert plan.stages[1].teacher_flops == pytest.approx(second.cost["train"]["teacher_flops"], rel=0.3)
    assert plan.stages[1].memory.teacher > 0
    assert any("the previous model teaches it online" in note for note in plan.notes)


def test_visits_decide_and_set_the_noise(cards, base):
    recipe = parse_recipe(data_of(cards, base))
    assert planned_memory(recipe, 0) == ({}, 256.0)
    kept, generated = planned_memory(recipe, 1)
    assert (sum(kept.values()), generated) == (512.0, 256.0)
    found = planned_visits(recipe, 1)  # 512 replayed tokens in equal parts
    assert (found.kept, found.generated) == (0.5, 1.0)
    linear = recipe.inherit.model_copy(update={"schedule": "linear", "until": 0.5})
    assert visits(linear, 512, kept, generated).kept == 0.25
    assert [tau_of(number) for number in (0.2, 1, 4, 1000)] == [TAU, TAU, TAU / 4, SMALLEST_TAU]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay.generate.tokens": 31}, "replay.generate.tokens: 31 is too few for one block of sequence_length 32"),
        ({"replay.generate.temperature": 0}, "replay.generate.temperature: input should be greater than 0, not 0"),
        ({"replay.generate.length": 600}, "must be between sequence_length 32 and the model's 512 positions"),
        ({"replay.generate.start": "nowhere"}, "nowhere"),
        ({"replay.generate.start": "TOWN", "replay.generate.start_tokens": 40}, "leave no room in a block"),
        ({"objective": "mlm"}, "a masked model fills gaps and writes no text"),
        ({"replay.proxy": {"TOWN": 20}}, "20 tokens are too few for one block"),
        ({"replay.proxy": {"TOWN": 5000}}, "proxy: 5,000 tokens do not fit into memory_tokens 512"),
        ({"inherit.on": "new"}, "knows targets of replayed text alone"),
        ({"inherit.until": "surpassed"}, "stored targets have none"),
        ({"replay.share": 0}, "inherit.teacher: memory: nothing is replayed"),
        ({"inherit.teacher": "memmory"}, "memmory"),
    ],
)  # fmt: skip
def test_bad_input_has_one_message(cards, base, tmp_path, changes, message):
    data = data_of(cards, base)
    changes = json.loads(json.dumps(changes).replace("TOWN", str(cards / "town.yaml")))
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = data
        for section in sections:
            target = target[section]
        target[key] = value
    with pytest.raises(InputError) as caught:
        run_recipe(parse_recipe(data), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_random_weights_have_nothing_to_write(cards):
    data = recipe_data(cards, replay={"generate": {"tokens": 256}})
    del data["stages"][1]
    with pytest.raises(InputError, match="random weights, which have nothing to write"):
        check_recipe(parse_recipe(data))


def test_report_shows_what_was_written(run, tmp_path, monkeypatch):
    _, out = run
    assert run_cli(monkeypatch, "report", out, "--out", tmp_path / "page") == 0
    page, text = (tmp_path / "page/index.html").read_text(), (tmp_path / "page/report.md").read_text()
    record = read_records(out)[1]
    for shown in (page, text):
        assert "Self-generated" in shown
        assert record.generated["model"][:12] in shown
    assert SELF_GENERATED in page
    assert read_json(tmp_path / "page/matrix.json")["replay"][0][SELF_GENERATED] > 0
