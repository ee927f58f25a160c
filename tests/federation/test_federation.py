"""Federated training with all silos in this process."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lifelong.errors import InputError, LifelongError
from lifelong.federation.server import (
    FederationPlan,
    ServerRun,
    client_app,
    lead_federation,
    main,
    open_silo,
    simulate_federation,
    write_app,
)
from lifelong.federation.silo import (
    FederatedSilo,
    Order,
    RowsFrom,
    check_federated,
    put_weights,
    round_lr_factor,
    silo_domains,
    weights_of,
)
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.pipeline import extend_run, run_recipe
from lifelong.pipeline.begin import initial_model
from lifelong.recipe import Recipe, parse_recipe
from lifelong.replay.dataset import StageDataset
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenize import tokenize_domain, train_tokenizer
from lifelong.stream.tokenizers.load import tokenizer_fingerprint
from lifelong.train.arguments import training_arguments
from tests.support import run_cli, write_domain

NAMES = ("sea", "farm", "law")
needs_flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="Flower is not installed: pip install -e '.[federated]'"
)


@dataclass
class Corpora:
    """Cards of three domains and a tokenizer that all silos have."""

    folder: Path
    cards: dict[str, Path] = field(default_factory=dict)

    def recipe(self, *domains: str, tokens: int, **changes: Any) -> Recipe:
        first, *others = domains
        return parse_recipe({
            "name": "federated",
            "model": {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24},
            "tokenizer": {"checkpoint": str(self.folder / "tokenizer")},
            "sequence_length": 32,
            "stages": [{"domain": first, "together_with": others, "tokens": tokens}],
            "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "warmup_steps": 0.2, "use_cpu": True},
            "evaluate": {"tokens": 300, "probe_tokens": 100, "probes": 2, "samples": 0},
            **changes,
        })  # fmt: skip

    def nodes(self, recipe: Recipe, out: Path) -> list[dict[str, str]]:
        """What each silo's machine would be configured with."""
        (out / "recipe.yaml").write_text(recipe.to_yaml())
        return [
            {"recipe": str(out / "recipe.yaml"), "domain": str(self.cards[name]), "out": str(out / f"silo-{name}")}
            for name in silo_domains(recipe)
        ]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    folder = tmp_path_factory.mktemp("silos")
    cards = {name: write_domain(folder, name, documents=20) for name in NAMES}
    train_tokenizer([load_domain(card) for card in cards.values()], vocab_size=300).save_pretrained(
        folder / "tokenizer"
    )
    return Corpora(folder, cards)


@dataclass
class Exchange:
    """A federation in which every message is kept: (round, message, reply) in order."""

    out: Path
    recipe: Recipe
    messages: list[tuple[int, Any, Any]]

    def round(self, number: int) -> list[tuple[Any, Any]]:
        return [
            (sent, reply)
            for found, sent, reply in self.messages
            if found == number and sent.metadata.message_type == "train"
        ]


def round_of(message: Any) -> int:
    # Flower sends one settings record all the time and changes the number in it
    return int(message.content["config"]["server-round"]) + int(message.content["config"].get("rounds-before", 0))


def federate(
    corpora: Corpora,
    recipe: Recipe,
    out: Path,
    plan: FederationPlan,
    absent: Callable[[str, int], bool] | None = None,
) -> Exchange:
    from lifelong.federation.flower import Federation, simulation_grid

    out.mkdir(parents=True, exist_ok=True)
    grid = simulation_grid(client_app(), corpora.nodes(recipe, out), absent)
    answer, kept = grid.send_and_receive, []

    def recording(messages: Sequence[Any], *, timeout: float | None = None) -> list[Any]:
        messages = list(messages)
        replies = answer(messages, timeout=timeout)
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        kept.extend((round_of(message), message, by_node.get(message.metadata.dst_node_id)) for message in messages)
        return replies

    grid.send_and_receive = recording
    lead_federation(recipe, out / "server", plan, lambda terms: Federation(grid, terms))
    return Exchange(out, recipe, kept)


def arrays_of(message: Any) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


PLAN = FederationPlan(local_steps=2)
TOKENS = 4 * 3 * 2 * 4 * 32  # four rounds of three silos, two steps of four rows


@pytest.fixture(scope="module")
def lost_and_found(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Four rounds; the silo of law does not answer in the second."""
    pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[federated]'")
    recipe = corpora.recipe(*NAMES, tokens=TOKENS)
    return federate(
        corpora, recipe, tmp_path_factory.mktemp("lost"), PLAN, absent=lambda name, number: (name, number) == ("law", 2)
    )


def test_rounds_continue_without_a_silo_until_it_returns(lost_and_found: Exchange) -> None:
    history = json.loads((lost_and_found.out / "server/stages/00-sea/rounds.json").read_text())["rounds"]
    assert [sorted(done["trained"]) for done in history] == [
        sorted(NAMES),
        ["farm", "sea"],
        sorted(NAMES),
        sorted(NAMES),
    ]
    # its corpus goes on where its own last round ended: two steps less than the others
    assert {name: found["position"] for name, found in history[-1]["trained"].items()} == {
        "sea": 8,
        "farm": 8,
        "law": 6,
    }
    third = lost_and_found.round(3)
    assert len(third) == 3
    current = [arrays_of(sent) for sent, _ in third]
    for name, array in current[0].items():  # all three begin from the same weights: the average of round 2
        assert all(np.array_equal(array, other[name]) for other in current[1:])


def test_the_average_is_weighed_by_tokens(lost_and_found: Exchange) -> None:
    for number in (1, 2, 3, 4):
        replies = [reply for _, reply in lost_and_found.round(number) if reply is not None]
        tokens = [reply.content["metrics"]["tokens"] for reply in replies]
        assert len(replies) == (2 if number == 2 else 3)
        following = (
            arrays_of(lost_and_found.round(number + 1)[0][0])
            if number < 4
            else load_file(lost_and_found.out / "server/stages/00-sea/model/model.safetensors")
        )
        for name, average in following.items():
            by_hand = sum(
                arrays_of(reply)[name].astype(np.float64) * count for reply, count in zip(replies, tokens, strict=True)
            ) / sum(tokens)
            np.testing.assert_allclose(average, by_hand, rtol=0, atol=2e-7)
        first, second = (arrays_of(reply) for reply in replies[:2])
        assert any(not np.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_text_never_leaves_a_silo(lost_and_found: Exchange, corpora: Corpora) -> None:
    shapes = {name: array.shape for name, array in arrays_of(lost_and_found.messages[0][1]).items()}
    texts = [
        json.loads(line)["text"] for path in corpora.folder.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    words = {word.encode() for text in texts for word in text.split() if len(word) > 4}
    assert len(words) > 30
    seen = 0
    for *_, reply in lost_and_found.messages:
        if reply is None:
            continue
        seen += 1
        content = reply.content
        trained = reply.metadata.message_type == "train"
        assert set(content) == {"metrics", "silo"} | ({"arrays"} if trained else set())
        assert dict(content["silo"]) in [{"domain": name} for name in NAMES]
        allowed = (
            {"tokens", "loss", "steps", "position", "seconds"} if trained else {"tokens", "nats", "bytes", "seconds"}
        )
        assert set(content["metrics"]) == allowed
        assert all(isinstance(value, int | float) for value in content["metrics"].values())
        if trained:
            assert {name: array.shape for name, array in arrays_of(reply).items()} == shapes
            assert {array.dtype for array in arrays_of(reply).values()} == {np.dtype(np.float32)}
        # as bytes on the wire, weights included
        wire = b"".join(child.deflate() for child in nested(content))
        assert not [word for word in words if word in wire and word.decode() not in NAMES]
    assert seen == len(lost_and_found.messages) - 1  # one message was not answered


def nested(item: Any) -> list[Any]:
    return [item, *(inner for child in (item.children or {}).values() for inner in nested(child))]


def test_the_outbox_says_what_left(lost_and_found: Exchange) -> None:
    from lifelong.federation.silo import weights_hash

    lines = [json.loads(line) for line in (lost_and_found.out / "silo-law/outbox.jsonl").read_text().splitlines()]
    sent = [reply for number in (1, 2, 3, 4) for _, reply in lost_and_found.round(number)]
    sent = [reply for reply in sent if reply is not None and reply.content["silo"]["domain"] == "law"]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["round"] for line in trained] == [1, 3, 4]
    assert [line["sha256"] for line in trained] == [weights_hash(arrays_of(reply)) for reply in sent]


def test_the_server_leaves_a_run_folder(lost_and_found: Exchange) -> None:
    out = lost_and_found.out / "server"
    assert check_run(out) == []
    history = read_history(out)
    assert history.matrix.domains == NAMES
    assert all(value is not None for value in history.matrix.nats_per_token[0])
    assert history.matrix.nats_per_token[0][0] < history.matrix.initial[0]
    assert history.stages[0].tokens == TOKENS - 2 * 4 * 32
    assert history.stages[0].notes == ("law missed rounds 2",)
    assert [point.step for point in history.train[0]] == [2, 4, 6, 8]
    assert (out / "report/index.html").is_file()
    assert not [path for path in out.rglob("*") if "heldout" in path.name]


def test_a_federation_is_not_extended(lost_and_found: Exchange, corpora: Corpora) -> None:
    out = lost_and_found.out / "server"
    before = (out / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=r"held-out documents of sea, farm, law are missing.*start another run"):
        extend_run(out, str(corpora.cards["sea"]), tokens=100)
    assert (out / "recipe.yaml").read_bytes() == before
    assert check_run(out) == []


@needs_flower
def test_one_silo_is_plain_training_bit_for_bit(corpora: Corpora, tmp_path: Path) -> None:
    """With its moments kept, its learning rate and its position in the corpus, rounds leave no trace."""
    recipe = corpora.recipe("sea", tokens=8 * 4 * 32)
    simulate_federation(recipe, [corpora.cards["sea"]], tmp_path / "federated", FederationPlan(local_steps=2))
    plain = recipe.to_plain()
    plain["stages"][0]["domain"] = str(corpora.cards["sea"])
    run_recipe(parse_recipe(plain), tmp_path / "plain")
    one, other = (
        load_file(next(tmp_path.glob(f"{form}/stages/00-sea/model/model.safetensors")))
        for form in ("federated/server", "plain")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    # the last round's evaluation is that of a whole run
    losses = [read_history(tmp_path / form).matrix.nats_per_token[0] for form in ("federated/server", "plain")]
    assert losses[0] == losses[1]


@needs_flower
def test_a_killed_server_resumes(corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With server momentum, which has to survive too."""
    recipe = corpora.recipe("sea", "farm", tokens=3 * 2 * 4 * 32)
    plan = FederationPlan(local_steps=1, strategy="fedavgm", options={"server_momentum": 0.5})
    whole = federate(corpora, recipe, tmp_path / "whole", plan)
    finished = ServerRun._finished

    def die(self: ServerRun, done: Any) -> None:
        finished(self, done)
        if done.number == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ServerRun, "_finished", die)
    with pytest.raises(KeyboardInterrupt):
        federate(corpora, recipe, tmp_path / "cut", plan)
    monkeypatch.setattr(ServerRun, "_finished", finished)
    with pytest.raises(InputError, match="2 rounds were done with local_steps 1, not 2"):
        federate(corpora, recipe, tmp_path / "cut", FederationPlan(local_steps=2, strategy="fedavgm"))
    cut = federate(corpora, recipe, tmp_path / "cut", plan)
    assert not cut.round(2)
    one, other = (load_file(out / "server/stages/00-sea/model/model.safetensors") for out in (whole.out, cut.out))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@needs_flower
def test_a_silo_that_cannot_begin_says_why_without_its_text(corpora: Corpora, tmp_path: Path) -> None:
    recipe = corpora.recipe(*NAMES, tokens=TOKENS)
    (tmp_path / "broken").mkdir()
    card = write_domain(tmp_path / "broken", "law", documents=20)
    (tmp_path / "broken/law.valid.jsonl").write_text('{"text": "a secret contract" \n')
    with pytest.raises(InputError, match="1 of 3 silos cannot start") as refused:
        simulate_federation(recipe, [corpora.cards["sea"], corpora.cards["farm"], card], tmp_path / "one", PLAN)
    assert "InputError in silo law; its own log says more" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@needs_flower
def test_silos_have_to_agree(corpora: Corpora, tmp_path: Path) -> None:
    recipe = corpora.recipe("sea", "farm", tokens=TOKENS)
    with pytest.raises(InputError, match="several silos hold domain 'sea'"):
        simulate_federation(recipe, [corpora.cards["sea"]] * 2, tmp_path / "twice", PLAN)
    with pytest.raises(InputError, match="1 of 2 silos cannot start\n  1 did not answer"):
        simulate_federation(
            recipe, [corpora.cards[name] for name in ("sea", "farm")], tmp_path / "away", PLAN, lambda *_: _[0] == "sea"
        )
    train_tokenizer([load_domain(corpora.cards["law"])], vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    other = corpora.recipe("sea", "farm", tokens=TOKENS, tokenizer={"checkpoint": str(tmp_path / "tokenizer")})
    silo = FederatedSilo(other, str(corpora.cards["sea"]), tmp_path / "silo")
    settings = {"server-round": 0, "rounds": 4, "local-steps": 2, "tokenizer": "f" * 64, "moments": "keep"}
    with pytest.raises(InputError, match="is not the federation's ffffffffffff; use the same tokenizer files"):
        silo.evaluate({}, settings)


@needs_flower
def test_a_round_without_any_silo_stops(corpora: Corpora, tmp_path: Path) -> None:
    recipe = corpora.recipe("sea", "farm", tokens=TOKENS)
    cards = [corpora.cards[name] for name in ("sea", "farm")]
    with pytest.raises(LifelongError, match="no silo contributed to round 1"):
        simulate_federation(recipe, cards, tmp_path, PLAN, lambda _, number: number == 1)


def test_a_silo_refuses_another_model(corpora: Corpora) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small, large = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=30, hidden_size=size, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
            )
        )
        for size in (8, 16)
    )
    with pytest.raises(InputError, match="the model of this recipe is another one"):
        put_weights(small, weights_of(large))
    put_weights(small, {name: array + 1 for name, array in weights_of(small).items()})
    assert min(float(value.min()) for value in weights_of(small).values()) > 0.5


def test_a_masked_silo(corpora: Corpora, tmp_path: Path) -> None:
    model = {"family": "bert", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24}
    recipe = corpora.recipe("sea", tokens=100, model=model, objective="mlm")
    silo = FederatedSilo(recipe, str(corpora.cards["sea"]), tmp_path)
    before = weights_of(initial_model(recipe, silo.tokenizer))
    settings = {"rounds": 8, "local-steps": 8, "tokenizer": tokenizer_fingerprint(silo.tokenizer), "moments": "reset"}
    first = silo.evaluate(before, {**settings, "server-round": 0})
    trained, figures = silo.train(before, {**settings, "server-round": 2})
    assert figures["tokens"] == 8 * 4 * 32
    assert silo.evaluate(trained, {**settings, "server-round": 8})["nats"] < first["nats"]
    assert not list(tmp_path.glob("state/*/moments.safetensors"))


def test_rounds_are_parts_of_one_walk_and_one_schedule(corpora: Corpora, tmp_path: Path) -> None:
    recipe = corpora.recipe("sea", tokens=8 * 4 * 32)
    silo = FederatedSilo(recipe, str(corpora.cards["sea"]), tmp_path)
    blocks = tokenize_domain(silo.card, "train", silo.tokenizer, sequence_length=32, cache_dir=tmp_path)
    whole = StageDataset(blocks, None, num_steps=6, blocks_per_step=4, domain="sea")
    parts = [
        RowsFrom(StageDataset(blocks, None, num_steps=end, blocks_per_step=4, domain="sea"), start * 4)
        for start, end in ((0, 2), (2, 6))
    ]
    assert [len(part) for part in parts] == [8, 16]
    walked = [part[i]["block"].ids.tolist() for part in parts for i in range(len(part))]
    assert walked == [whole[i]["block"].ids.tolist() for i in range(24)]
    with pytest.raises(IndexError):
        parts[0][8]
    arguments = training_arguments(recipe.train, output_dir=tmp_path, max_steps=2, seed=0)
    rates = [
        round_lr_factor(recipe, arguments, Order(number, 5, 2, ""))(step / 2)
        for number in range(1, 6)
        for step in (0, 1)
    ]
    assert rates == pytest.approx([0, 0.5, 1, *((1 + math.cos(math.pi * place / 8)) / 2 for place in range(1, 8))])
    by_policy = corpora.recipe("sea", tokens=100, lr={"policy": "wsd", "warmup": 0.2, "decay": 0.2}, train={})
    rates = [
        round_lr_factor(by_policy, arguments, Order(number, 5, 2, ""))(step / 2)
        for number in range(1, 6)
        for step in (0, 1)
    ]
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5])


def test_unsupported_recipes_are_refused_at_once(corpora: Corpora) -> None:
    plain = corpora.recipe("sea", tokens=100).to_plain()
    plain |= {"tokenizer": {"train": {"vocab_size": 300}}, "inherit": {"alpha": 0.5}, "replay": {"share": 0.1}}
    plain["stages"].append(plain["stages"][0])
    with pytest.raises(InputError) as refused:
        check_federated(parse_recipe(plain))
    for key in ("stages:", "tokenizer.train:", "inherit:", "replay:"):
        assert key in str(refused.value)
    with pytest.raises(InputError) as refused:
        FederationPlan(local_steps=0, min_silos=4, moments="lose", timeout=0).check(
            corpora.recipe(*NAMES, tokens=100, train={"learning_rat": 1.0})
        )
    for key in ("local-steps", "min-silos", "moments", "timeout", "train.learning_rat"):
        assert key in str(refused.value)


def test_a_folder_belongs_to_one_recipe(corpora: Corpora, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="domain 'law' is not one of the federation's: sea, farm"):
        FederatedSilo(corpora.recipe("sea", "farm", tokens=100), str(corpora.cards["law"]), tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: another\n")
    silo = FederatedSilo(corpora.recipe(*NAMES, tokens=100), str(corpora.cards["law"]), tmp_path)
    settings = {"server-round": 1, "rounds": 4, "local-steps": 2, "tokenizer": "", "moments": "keep"}
    with pytest.raises(InputError, match="belongs to another recipe"):
        silo.train({}, settings)
    (tmp_path / "r.yaml").write_text(corpora.recipe(*NAMES, tokens=100).to_yaml())
    with pytest.raises(InputError, match="needs domain="):
        open_silo({"recipe": str(tmp_path / "r.yaml")})


@needs_flower
def test_strategies_are_flowers(corpora: Corpora) -> None:
    recipe = corpora.recipe(*NAMES, tokens=100)
    with pytest.raises(InputError, match="did you mean 'fedadam'"):
        FederationPlan(strategy="fedadamm").check(recipe)
    with pytest.raises(InputError, match="server_momentun"):
        FederationPlan(strategy="fedavgm", options={"server_momentun": 0.9}).check(recipe)
    for name in ("fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedmedian", "fedtrimmedavg"):
        FederationPlan(strategy=name).check(recipe)


@needs_flower
def test_the_app_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "app")])
    assert "flwr run" in capsys.readouterr().out
    with pytest.raises(InputError, match="already exists"):
        write_app(tmp_path / "app")
    from flwr.cli.config_utils import load_and_validate

    config, *_ = load_and_validate(tmp_path / "app/pyproject.toml")
    assert config["tool"]["flwr"]["app"]["components"]["clientapp"] == "lifelong_federation:client"


@needs_flower
def test_simulate_and_report_from_the_command_line(corpora, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "federated.yaml"
    recipe.write_text(
        corpora.recipe(*map(str, (corpora.cards[name] for name in NAMES[:2])), tokens=2 * 2 * 4 * 32).to_yaml()
    )
    arguments = ("federate", "simulate", recipe, "--local-steps", 2, "--out", tmp_path / "out")
    assert run_cli(monkeypatch, *arguments, "--strategy", "fedavgm", "--strategy-option", "server_momentum=0.5") == 0
    assert "report: " in capsys.readouterr().out
    assert read_history(tmp_path / "out/server").stages[0].name == "00-sea"
    assert run_cli(monkeypatch, *arguments, "--strategy-option", "server_momentum") == 2
    assert "strategy-options" in capsys.readouterr().err


@needs_flower
@pytest.mark.parametrize(("changes", "message"), [
    ({}, "there is no file 'sea.pub'"),
    ({"sea.pub": "ssh-rsa AAAA"}, "is not a public ECDSA key"),
    ({"sea.pub": "ecdsa-sha2-nistp384 AAAA"}, "the recipe has 2 domains (sea, farm), and 1 keys were given"),
])  # fmt: skip
def test_serve_lets_nobody_in_before_all_files_are_right(corpora, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(corpora.recipe("sea", "farm", tokens=100).to_yaml())
    for name, text in {"ca.crt": "", "server.pem": "", "server.key": "", **changes}.items():
        (tmp_path / name).write_text(text)
    files = ("--authority", "ca.crt", "--certificate", "server.pem", "--private-key", "server.key", "--silo", "sea.pub")
    assert run_cli(monkeypatch, "federate", "serve", "r.yaml", *files) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (("serve", "r.yaml"), "needs --authority, --certificate, --private-key, --silo: TLS"),
    (("serve", "r.yaml", "--insecure", "--silo", "a.pub"), "--silo and --insecure exclude each other"),
    (("join", "r.yaml", "--server", "here:1", "--domain", "sea", "--key", "sea"), "needs --authority"),
])  # fmt: skip
def test_without_tls_and_keys_is_an_exception_that_has_to_be_named(monkeypatch, capsys, arguments, message):
    assert run_cli(monkeypatch, "federate", *arguments) == 2
    assert message in capsys.readouterr().err


def test_without_flower_there_is_one_line_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_cli(monkeypatch, "federate", "simulate", "r.yaml") == 2
    assert "pip install 'lifelong[federated]'" in capsys.readouterr().err
