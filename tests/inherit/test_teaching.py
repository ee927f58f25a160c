"""Teachers of a recipe, in whole runs of small models: caches, routing, mixtures, until surpassed; and what is refused."""

import json

import pytest
import yaml

from lifelong.errors import InputError
from lifelong.inherit.sparse import RandomSampling, TauSampler, TopK
from lifelong.inherit.write_cache import CacheRequest, make_scheme, write_cache
from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from tests.support import recipe_data, run_cli

BERT = {"family": "bert", "layers": 1, "hidden_size": 24, "heads": 2, "intermediate_size": 40}


@pytest.fixture(scope="module", autouse=True)
def _own_token_cache(tmp_path_factory):
    """Tokenised corpora go to a folder of the tests and not of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFELONG_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield


def tiny(cards, **changes):
    """Two short stages without growth."""
    stages = [{"domain": str(cards / f"{name}.yaml"), "tokens": 1500} for name in ("sea", "farm")]
    data = recipe_data(cards, stages=stages, replay=None, evaluate={"tokens": 300, "probe_tokens": 200})
    return {**data, "model": {**data["model"], "layers": 1}, **changes}


@pytest.fixture(scope="module")
def teachers(cards, tmp_path_factory):
    """A run whose models teach others, by objective."""
    folder = tmp_path_factory.mktemp("teachers")
    for objective, model in (("clm", {}), ("mlm", {"model": BERT})):
        run_recipe(parse_recipe(tiny(cards, objective=objective, inherit=None, **model)), folder / objective)
    return folder


@pytest.fixture(scope="module")
def cache(cards, teachers):
    out = teachers / "cache"
    both = [str(cards / f"{name}.yaml") for name in ("sea", "farm")]
    write_cache(CacheRequest(str(teachers / "clm"), both, TauSampler(), sequence_length=32), out)
    return out


def student(cards, teachers, objective="clm", **inherit):
    """A recipe for a student with the teachers' tokenizer."""
    model = {"model": BERT} if objective == "mlm" else {}
    tokenizer = {"checkpoint": str(last_model(teachers, objective))}
    return parse_recipe(
        tiny(
            cards, name="student", objective=objective, tokenizer=tokenizer, inherit={"until": 0.5, **inherit}, **model
        )
    )


def last_model(teachers, objective):
    return teachers / objective / "stages/01-farm/model"


def taught_points(out):
    return [
        [point for point in stage if point.kl is not None]
        for stage in map(points_of, ("00-sea", "01-farm"), (out, out))
    ]


def points_of(stage, out):
    history = json.loads((out / "stages" / stage / "history.json").read_text())
    return [type("Point", (), point) for point in history["train"]]


def test_a_cache_teaches_without_a_model(cards, teachers, cache, tmp_path):
    model = str(last_model(teachers, "clm"))
    recipe = student(cards, teachers, teacher={"cache": str(cache), "of": model})
    plain = recipe.to_plain()  # what is replayed is found in the cache like what is new
    recipe = parse_recipe({**plain, "replay": {"memory_tokens": 1000, "share": 0.25}})
    run_recipe(recipe, tmp_path / "run")
    assert all(points for points in taught_points(tmp_path / "run"))
    cost = json.loads((tmp_path / "run/report/matrix.json").read_text())["cost"]
    assert cost["teacher_flops"] == 0
    assert plan_recipe(recipe).stages[1].teacher_flops == 0
    online = parse_recipe({**recipe.to_plain(), "inherit": {"teacher": model, "until": 0.5}})
    run_recipe(online, tmp_path / "online")
    cost = json.loads((tmp_path / "online/report/matrix.json").read_text())["cost"]
    assert cost["teacher_flops"] > 0
    sparse, whole = (read_history(tmp_path / name).matrix.nats_per_token[1] for name in ("run", "online"))
    assert max(abs(a - b) for a, b in zip(sparse, whole, strict=True)) < 0.3


def test_a_cache_of_masked_targets_is_met_with_its_own_masks(cards, teachers, tmp_path):
    request = CacheRequest(
        str(teachers / "mlm"), [str(cards / f"{name}.yaml") for name in ("sea", "farm")], TopK(12), objective="mlm",
        sequence_length=32, mask_seed=7, mask_patterns=2,
    )  # fmt: skip
    report = write_cache(request, tmp_path / "cache")
    assert report.blocks > 50
    assert report.blocks % 2 == 0  # two masks each
    recipe = student(cards, teachers, "mlm", teacher={"cache": str(tmp_path / "cache")}, until=1.0)
    run_recipe(recipe, tmp_path / "run")
    assert all(points for points in taught_points(tmp_path / "run"))


def test_each_domain_has_its_own_teacher_and_others_have_none(cards, teachers, tmp_path):
    recipe = student(cards, teachers, teacher={"by_domain": {"farm": str(last_model(teachers, "clm"))}})
    run_recipe(recipe, tmp_path / "run")
    sea, farm = taught_points(tmp_path / "run")
    assert not sea
    assert farm


def test_a_mixture_of_the_previous_stage_and_a_model(cards, teachers, tmp_path):
    mixture = [
        {"teacher": "previous", "weight": {"farm": 1.0}},
        {"teacher": str(last_model(teachers, "clm")), "weight": 3.0},
    ]
    run_recipe(student(cards, teachers, teacher={"mixture": mixture}), tmp_path / "run")
    assert all(points for points in taught_points(tmp_path / "run"))


def test_distillation_stops_once_the_student_is_better(cards, teachers, tmp_path):
    """The previous stage knows nothing of the new domain: the student passes it early in the stage."""
    recipe = student(cards, teachers, schedule="constant", until="surpassed", looks=6)
    run_recipe(recipe, tmp_path / "run")
    first, second = (points_of(stage, tmp_path / "run") for stage in ("00-sea", "01-farm"))
    assert not any(point.kl for point in first)
    assert second[0].alpha == 1.0
    assert second[-1].alpha == 0.0
    assert recipe.to_plain()["inherit"]["until"] == "surpassed"


def test_the_verb(cards, teachers, tmp_path, monkeypatch, capsys):
    arguments = ["cache", teachers / "clm", "--domain", cards / "sea.yaml", "--sequence-length", 32, "--tokens", "1k"]
    assert run_cli(monkeypatch, *arguments, "--out", tmp_path / "c", "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["blocks"] > 20
    assert 5 < written["bytes_per_token"] < 60
    assert run_cli(monkeypatch, *arguments, "--out", tmp_path / "c") == 0  # it is complete: nothing to do
    assert f"{written['tokens']:,} predicted tokens" in capsys.readouterr().out
    for more, message in (
        (("--temperature", 2), "temperature is 1.0 there, 2.0 here"),
        (("--top-k", 1000), "between 1 and 255, not 1000"),
        (("--top-k", 4, "--tau", 0.1), "name one of --tau, --top-k and --draws"),
        (("--renormalise",), "--renormalise belongs to --top-k"),
        (("--tokens", "many"), "a number like 2M"),
        (("--objective", "rtd"), "clm or mlm"),
        (("--mask-patterns", 0), "at least 1"),
    ):
        assert run_cli(monkeypatch, *arguments, *more, "--out", tmp_path / "c") == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert run_cli(monkeypatch, *arguments, "--top-k", 0, "--out", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


def test_schemes_by_option():
    assert make_scheme() == TauSampler(1 / 20)
    assert make_scheme(draws=50) == RandomSampling(50)
    assert make_scheme(top_k=10, renormalise=True) == TopK(10, renormalise=True)


def refusal(recipe, out):
    with pytest.raises(InputError) as caught:
        run_recipe(recipe, out)
    return " ".join(str(caught.value).split())


def test_teachers_that_do_not_fit_are_refused_before_anything_is_written(cards, teachers, cache, tmp_path):
    out = tmp_path / "run"
    for inherit, message in (
        ({"teacher": {"cache": str(tmp_path / "none")}}, "is not a cache of targets"),
        ({"teacher": {"cache": str(cache)}, "temperature": 2.0}, "write it with `lifelong cache --temperature 2.0`"),
        ({"teacher": {"cache": str(cache)}, "until": "surpassed"}, "needs a model to compare the student with"),
        ({"teacher": {"by_domain": {"sae": "previous"}}}, "did you mean 'sea'"),
        ({"teacher": {"mixture": [{"teacher": "previous", "weight": {"fram": 1}}]}}, "did you mean 'farm'"),
        ({"teacher": str(tmp_path / "none")}, "none"),
    ):
        assert message in refusal(student(cards, teachers, **inherit), out)
        assert not out.exists()


def test_another_tokenizer_of_the_same_size_is_refused(cards, teachers, cache, tmp_path):
    own = tiny(cards, name="own", model={"family": "llama", "layers": 1, "hidden_size": 24, "heads": 2})
    own["tokenizer"] = {"train": {"kind": "bpe", "vocab_size": 320, "max_bytes": 3000}}
    model = str(last_model(teachers, "clm"))
    message = refusal(parse_recipe({**own, "inherit": {"teacher": model}}), tmp_path / "a")
    assert "has another tokenizer than the run" in message
    message = refusal(parse_recipe({**own, "inherit": {"teacher": {"cache": str(cache)}}}), tmp_path / "b")
    assert "the cache is of another tokenizer" in message
    other = str(teachers / "clm/stages/00-sea/model")
    of_other = student(cards, teachers, teacher={"cache": str(cache), "of": other})
    assert "the cache is of another model" in refusal(of_other, tmp_path / "c")


def test_errors_of_the_section_are_one_line_each(cards):
    data = tiny(cards, inherit={
        "teacher": {"cache": "x", "by_domain": {"sea": {"modell": "previous"}}}, "until": 2, "alpha": 1.5,
    })  # fmt: skip
    with pytest.raises(InputError) as caught:
        parse_recipe(data)
    message = str(caught.value)
    assert "inherit.teacher.by_domain.sea.modell: unknown key; did you mean 'model'?" in message
    assert "inherit.until: must be a share of the stage in (0, 1], or `surpassed`, not 2" in message
    assert "inherit.alpha" in message
    with pytest.raises(
        InputError, match=r"inherit.teacher: is one of model, cache, by_domain, mixture and memory, here: model, cache"
    ):
        parse_recipe(tiny(cards, inherit={"teacher": {"cache": "x", "model": "y"}}))
    with pytest.raises(InputError, match="`of` says which model"):
        parse_recipe(tiny(cards, inherit={"teacher": {"model": "x", "of": "y"}}))


def test_a_teacher_by_name_stays_a_name(cards):
    for teacher in ("previous", {"cache": "c", "of": "m"}, {"by_domain": {"sea": "previous"}}, {"mixture": [{"teacher": "previous", "weight": 2.0}]}):  # fmt: skip
        recipe = parse_recipe(tiny(cards, inherit={"teacher": teacher}))
        plain = yaml.safe_load(recipe.to_yaml())
        assert plain["inherit"]["teacher"] == teacher
        assert parse_recipe(plain).fingerprint == recipe.fingerprint
