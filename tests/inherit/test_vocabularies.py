"""Runs whose teachers have vocabularies of their own, with small models: what is read, taught, saved and refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifelong.errors import InputError, Interrupted
from lifelong.evaluate.cards import evaluate_cards
from lifelong.inherit.sparse import TauSampler, TopK
from lifelong.inherit.write_cache import CacheRequest, write_cache
from lifelong.ledger.history import read_history
from lifelong.ledger.integrity import damaged_files, files_in_use
from lifelong.ledger.ledger import read_records
from lifelong.pipeline import extend_run, run_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.stream.heldout import Heldout
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import load_tokenizer
from tests.support import recipe_data, write_domain

NAMES = ("sea", "farm")

LLAMA = {"family": "llama", "layers": 1, "hidden_size": 24, "heads": 2, "intermediate_size": 40}
BERT = {**LLAMA, "family": "bert"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cards of two domains."""
    made = tmp_path_factory.mktemp("merging")
    for name in NAMES:
        write_domain(made, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFELONG_CACHE", str(made / "tokens"))
        yield made


def recipe(folder, names=NAMES, objective="clm", **changes):
    stages = [{"domain": str(folder / f"{name}.yaml"), "tokens": 1200} for name in names]
    base = recipe_data(folder, stages=stages, inherit=None, replay=None, evaluate={"tokens": 300, "samples": 0})
    return {**base, "objective": objective, "model": BERT if objective == "mlm" else LLAMA, **changes}


@pytest.fixture(scope="module")
def teachers(folder):
    """A teacher for each objective and domain, with a tokenizer of the domain's text."""
    found = {}
    for objective in ("clm", "mlm"):
        found[objective] = {}
        for name in NAMES:
            plain = recipe(
                folder, [name], objective, tokenizer={"train": {"vocab_size": 300 if name == "sea" else 305}}
            )
            run_recipe(parse_recipe(plain), folder / f"{objective}-{name}")
            found[objective][name] = str(folder / f"{objective}-{name}/stages/00-{name}/model")
    return found


def merged(folder, teachers, objective="clm", **changes):
    """A student of both."""
    tokenizer = {"merge": teachers[objective]}
    inherit = {"teacher": {"by_domain": teachers[objective]}, "alpha": 0.5, "until": 1.0, "temperature": 1.0}
    return recipe(folder, objective=objective, **{"tokenizer": tokenizer, "inherit": inherit, **changes})


@pytest.fixture(scope="module")
def student(folder, teachers):
    """One run that replays, merged from both."""
    out = folder / "student"
    run_recipe(parse_recipe(merged(folder, teachers, replay={"memory_tokens": 600, "share": 0.25})), out)
    return out


def taught(out, stage):
    return [point["kl"] for point in json.loads((out / "stages" / stage / "history.json").read_text())["train"]]


def test_a_student_of_two_teachers(folder, teachers, student):
    """Each domain is read by its teacher's tokenizer, everywhere in the run; nothing the teachers say is lost."""
    for name in NAMES:
        heldout = Heldout.open(student / "heldout" / name)
        own = load_tokenizer(student / "stages/01-farm/model", name)
        original = load_tokenizer(teachers["clm"][name])
        ids = Encoder(own).encode_for_scoring(heldout.text(0))
        assert heldout.ids(0).tolist() == ids.tolist()
        assert len(Encoder(original).encode_for_scoring(heldout.text(0))) == len(ids)
    assert all(taught(student, "00-sea"))
    assert all(taught(student, "01-farm"))
    last = json.loads((student / "stages/01-farm/history.json").read_text())["unmapped_mass"]
    assert {found["share"] for found in last.values()} == {0.0}
    assert set(last) == set(teachers["clm"].values())  # replayed text of the first domain by the first teacher
    assert not list(damaged_files(student, files_in_use(read_records(student))))
    history = read_history(student)
    assert not history.notes
    assert len({record.fingerprints["tokenizer"] for record in history.stages}) == 1


def test_the_checkpoint_can_be_used_without_this_package(student):
    model = AutoModelForCausalLM.from_pretrained(student / "stages/01-farm/model")
    for folder in ("", "domain_tokenizers/sea", "domain_tokenizers/farm"):
        tokenizer = AutoTokenizer.from_pretrained(student / "stages/01-farm/model" / folder)
        ids = tokenizer("the wave and the barn", return_tensors="pt").input_ids
        assert int(ids.max()) < model.config.vocab_size
        assert torch.isfinite(model(ids).logits).all()
        assert tokenizer.decode(ids[0]) == "the wave and the barn"


def test_the_verbs_read_each_domain_by_its_own(folder, student):
    cards = [str(folder / f"{name}.yaml") for name in NAMES]
    losses = evaluate_cards(str(student), cards, tokens=300, sequence_length=32, objective="clm", split="valid")
    row = read_history(student).matrix.nats_per_token[-1]
    assert [loss.nats_per_token for loss in losses] == pytest.approx(row, abs=1e-6)
    with pytest.raises(InputError, match="write one cache for each"):
        write_cache(CacheRequest(str(student), cards, TauSampler(), sequence_length=32), folder / "none")
    write_cache(CacheRequest(str(student), cards[:1], TauSampler(), sequence_length=32), folder / "again")


def test_a_cache_of_a_teacher_serves_any_student(folder, teachers, tmp_path):
    """Written in the teacher's ids, without the union; close to the same teachers online."""
    caches = {}
    for name in NAMES:
        request = CacheRequest(
            teachers["clm"][name], [str(folder / f"{name}.yaml")], TopK(255), sequence_length=32, temperature=1.0
        )
        write_cache(request, tmp_path / name)
        caches[name] = {"cache": str(tmp_path / name), "of": teachers["clm"][name]}
    plain = merged(folder, teachers)
    online = run_recipe(parse_recipe(plain), tmp_path / "online")
    inherit = {**plain["inherit"], "teacher": {"by_domain": caches}}
    cached = run_recipe(parse_recipe({**plain, "inherit": inherit}), tmp_path / "cached")
    for one, other in zip(online.matrix.nats_per_token, cached.matrix.nats_per_token, strict=True):
        assert one == pytest.approx(other, abs=0.02)
    swapped = {**inherit, "teacher": {"by_domain": {"sea": caches["farm"], "farm": caches["sea"]}}}
    with pytest.raises(InputError, match="cannot teach sea, which the run reads by another tokenizer"):
        run_recipe(parse_recipe({**plain, "inherit": swapped}), tmp_path / "swapped")


def test_masked_students_draw_the_masks_of_the_teacher(folder, teachers, tmp_path):
    """A masked teacher meets no token of others, online or from its cache."""
    plain = merged(folder, teachers, "mlm")
    run_recipe(parse_recipe(plain), tmp_path / "online")
    caches = {}
    for name in NAMES:
        request = CacheRequest(
            teachers["mlm"][name], [str(folder / f"{name}.yaml")], TopK(20), objective="mlm", sequence_length=32,
            temperature=1.0, mask_seed=3, mask_patterns=2,
        )  # fmt: skip
        write_cache(request, tmp_path / name)
        caches[name] = {"cache": str(tmp_path / name)}
    inherit = {**plain["inherit"], "teacher": {"by_domain": caches}}
    run_recipe(parse_recipe({**plain, "inherit": inherit}), tmp_path / "cached")
    assert all(taught(tmp_path / "cached", "01-farm"))


def test_domains_trained_on_together_keep_their_own_teachers(folder, teachers, tmp_path):
    plain = merged(folder, teachers)
    other = {"sea": "farm", "farm": "sea"}
    stages = [{**stage, "together_with": [str(folder / f"{other[name]}.yaml")]} for stage, name in zip(plain["stages"], NAMES, strict=True)]  # fmt: skip
    run_recipe(parse_recipe({**plain, "stages": stages}), tmp_path / "run")
    first = json.loads((tmp_path / "run/stages/00-sea/history.json").read_text())["unmapped_mass"]
    assert set(first) == set(teachers["clm"].values())
    alone = [{**stages[0]}]
    with pytest.raises(InputError, match="farm is trained on together with sea, is read by another tokenizer"):
        run_recipe(parse_recipe({**plain, "stages": alone}), tmp_path / "none")


class _StopAt(RunObserver):
    """Asks to stop in the middle of the second stage."""

    def __init__(self):
        self.steps = 0

    def stepped(self, point):
        self.steps += 1
        if self.steps == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_a_vocabulary_that_stays(folder, teachers, tmp_path):
    """What the student's vocabulary lacks is measured and noted; a run that was interrupted ends in the same bits."""
    plain = merged(folder, teachers, model={"checkpoint": teachers["clm"]["sea"]})
    plain["tokenizer"] = {"merge": teachers["clm"], "fixed": True}
    plain["train"] = {**plain["train"], "save_strategy": "steps", "save_steps": 1}
    whole = run_recipe(parse_recipe(plain), tmp_path / "whole")
    stage = tmp_path / "whole/stages/01-farm"
    share = json.loads((stage / "history.json").read_text())["unmapped_mass"][teachers["clm"]["farm"]]["share"]
    assert 0 < share < 1
    assert any("tokens that the student's vocabulary lacks" in note for note in read_history(tmp_path / "whole").notes)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).config.vocab_size
        for path in (teachers["clm"]["sea"], stage / "model")
    )
    assert before == after
    with pytest.raises(Interrupted):
        run_recipe(parse_recipe(plain), tmp_path / "again", _StopAt())
    again = run_recipe(parse_recipe(plain), tmp_path / "again")
    assert again.matrix == whole.matrix
    kept = (tmp_path / "again/stages/01-farm/history.json").read_bytes()
    assert kept == (stage / "history.json").read_bytes()


def test_a_student_that_begins_as_a_model_has_to_have_room(folder, teachers, tmp_path):
    plain = merged(folder, teachers, model={"checkpoint": teachers["clm"]["sea"]})
    with pytest.raises(InputError, match=r"lifelong expand .* --vocab-size"):
        run_recipe(parse_recipe(plain), tmp_path / "run")


def refusal(plain, out):
    with pytest.raises(InputError) as caught:
        run_recipe(parse_recipe(plain), out)
    return " ".join(str(caught.value).split())


def test_invalid_recipe_is_refused_before_anything_is_written(folder, teachers, tmp_path):
    out = tmp_path / "run"
    plain, clm = merged(folder, teachers), teachers["clm"]
    inherit = plain["inherit"]
    own = {"checkpoint": clm["sea"]}
    for changes, message in (
        ({"tokenizer": own}, "the teachers have different tokenizers"),
        ({"tokenizer": own}, f"merge their vocabularies with `tokenizer: {{merge: {{sea: {clm['sea']}"),
        ({"tokenizer": {"merge": {"sae": clm["sea"]}}}, "did you mean 'sea'"),
        ({"tokenizer": {"merge": {"sea": str(tmp_path / "none")}}}, "tokenizer.merge.sea: tokenizer"),
        ({"inherit": {**inherit, "teacher": clm["sea"]}}, "cannot teach farm, which the run reads by another"),
        (
            {
                "model": {"checkpoint": clm["sea"]},
                "tokenizer": {"merge": clm, "fixed": True},
                "inherit": {**inherit, "teacher": {"by_domain": {"sea": {"cache": "caches/x"}}}},
            },
            "the run cuts it more finely; name the model itself",
        ),
        ({"inherit": {**inherit, "until": "surpassed"}}, "compares student and teacher on the same ids"),
    ):
        assert message in refusal({**plain, **changes}, out)
        assert not out.exists()
    for tokenizer, message in (
        ({"merge": clm, "checkpoint": clm["sea"]}, "name one of `train`, `checkpoint` and `merge`"),
        ({"checkpoint": clm["sea"], "fixed": True}, "`fixed` belongs to `merge`"),
        ({"merge": clm, "fixed": True}, "keeps the vocabulary of `model.checkpoint`"),
        ({"merge": {}}, "tokenizer.merge"),
    ):
        with pytest.raises(InputError, match=message):
            parse_recipe({**plain, "tokenizer": tokenizer})


def test_the_vocabularies_of_a_run_do_not_change(folder, teachers, student):
    """Another merge is refused, and the run's recipe stays what it was."""
    before = (student / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match="the run was begun with"):
        extend_run(student, str(folder / "farm.yaml"), tokens=600, overrides=["tokenizer={checkpoint: gpt2}"])
    assert (student / "recipe.yaml").read_bytes() == before
