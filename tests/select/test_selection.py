"""A stage that trains on a part of its corpus: what is chosen, told, paid for, and continued."""

import json
import random

import numpy as np
import pytest
import torch
import transformers

from lifelong.errors import InputError
from lifelong.evaluate.scores import DocumentScorer, block_losses, token_ranks
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.replay.memory import ReplayMemory
from lifelong.select import corpus as selection
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import Collator
from lifelong.stream.tokenize import tokenize_domain, train_tokenizer
from lifelong.stream.tokenizers.load import load_tokenizer
from tests.support import recipe_data, write_domain


def document(text):
    return Document(text, f"{abs(hash(text)):032x}"[:32], len(text.encode()))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Half sentences about law, half strings of random letters; a teacher that has learned law and a model that has not."""
    folder = tmp_path_factory.mktemp("noisy")
    write_domain(folder, "law", documents=80)
    draw = random.Random(5)
    lines = (folder / "law.train.jsonl").read_text().splitlines()[:40]
    lines += [json.dumps({"text": "".join(draw.choices("qxzjkvw ", k=300))}) for _ in range(40)]
    draw.shuffle(lines)
    (folder / "law.train.jsonl").rename(folder / "clean.jsonl")
    (folder / "clean.yaml").write_text("name: clean\nsource: {files: [clean.jsonl], valid: [law.valid.jsonl]}\n")
    (folder / "law.train.jsonl").write_text("\n".join(lines) + "\n")
    data = recipe_data(folder, inherit=None, replay=None)
    data["stages"] = [{"domain": str(folder / "clean.yaml"), "tokens": 20_000}]
    run_recipe(parse_recipe({key: value for key, value in data.items() if value is not None}), folder / "teacher-run")
    teacher = folder / "teacher-run/stages/00-clean/model"
    # another tokenizer and another size: only text connects the two
    tokenizer = train_tokenizer([load_domain(str(folder / "law.yaml"))], vocab_size=300)
    tokenizer.save_pretrained(folder / "reference")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "reference")
    return folder, {
        "difference": {"by": "difference", "teacher": str(teacher), "reference": str(folder / "reference")},
        "challenge": {"by": "challenge", "model": str(teacher), "top_k": 20},
    }


def selecting(folder, section, **changes):
    data = recipe_data(folder, inherit=None, **changes)
    del data["inherit"]
    data["stages"] = [{"domain": str(folder / "law.yaml"), "tokens": 8000, "select": section}]
    return parse_recipe(data)


def share_of_law(folder, out):
    facts = json.loads((out / "stages/00-law/selection.json").read_text())
    return facts, np.mean(["The law" in shown["text"] for shown in facts["highest"]])


@pytest.mark.parametrize("by", ["difference", "challenge"])
def test_noise_is_left_out_and_told_about(noisy, tmp_path, by):
    folder, sections = noisy
    result = run_recipe(selecting(folder, {**sections[by], "keep": 0.4}), tmp_path / "run")
    facts, share = share_of_law(folder, tmp_path / "run")
    assert share == 1.0
    assert not any("The law" in shown["text"] for shown in facts["lowest"])
    assert facts["documents"] == facts["considered"] == 80
    assert 0.4 <= facts["chosen_bytes"] / facts["considered_bytes"] < 0.5
    cost = read_records(tmp_path / "run")[-1].cost
    assert cost["select"]["flops"] == facts["flops"] > 0
    assert result.cost.flops > cost["train"]["flops"]
    memory = ReplayMemory.open(tmp_path / "run/memory/00")
    tokenizer = load_tokenizer(tmp_path / "run/stages/00-law/model")
    assert "qx" not in "".join(tokenizer.decode(block.ids) for block in memory.blocks("law"))
    assert check_run(tmp_path / "run") == []


def test_an_interrupted_scoring_resumes_where_it_stopped(noisy, tmp_path, monkeypatch):
    folder, sections = noisy
    recipe = selecting(folder, {**sections["difference"], "keep": 0.4})
    monkeypatch.setattr(selection, "CHUNK_DOCUMENTS", 30)
    run_recipe(recipe, tmp_path / "whole")
    calls = []
    whole = DocumentScorer.nats

    def dies(scorer, documents):
        calls.append(len(documents))
        if len(calls) == 5:
            raise ZeroDivisionError
        return whole(scorer, documents)

    monkeypatch.setattr(DocumentScorer, "nats", dies)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run")
    run_recipe(recipe, tmp_path / "run")
    assert calls == [30, 30, 20, 30, 30, 30, 20]
    told = [json.loads((tmp_path / f"{name}/stages/00-law/selection.json").read_text()) for name in ("run", "whole")]
    assert {**told[0], "seconds": 0} == {**told[1], "seconds": 0}


def test_only_what_the_stage_can_use_is_scored(noisy, tmp_path):
    folder, sections = noisy
    recipe = selecting(folder, {**sections["difference"], "keep": 0.5})
    stage = recipe.stages[0].model_copy(update={"tokens": 2000})
    run_recipe(recipe.model_copy(update={"stages": (stage,)}), tmp_path / "run")
    facts = json.loads((tmp_path / "run/stages/00-law/selection.json").read_text())
    assert 0 < facts["considered"] < 60
    assert facts["documents"] == 80


def test_a_teacher_that_knows_less_than_the_reference_is_refused(noisy, tmp_path):
    folder, sections = noisy
    section = sections["difference"]
    swapped = {**section, "teacher": section["reference"], "reference": section["teacher"]}
    with pytest.raises(InputError, match=r"no better than select\.reference .* are they swapped"):
        run_recipe(selecting(folder, swapped), tmp_path / "run")


def test_a_model_that_knows_too_little_to_choose_is_refused(noisy, tmp_path):
    folder, sections = noisy
    section = {"by": "challenge", "model": sections["difference"]["reference"], "top_k": 2}
    with pytest.raises(InputError, match=r"which all score 0: there is nothing to choose by\. Raise select\.top_k"):
        run_recipe(selecting(folder, section), tmp_path / "run")


@pytest.mark.parametrize(("section", "message"), [
    ({"by": "difference", "teacher": "x"}, "needs teacher and reference"),
    ({"by": "challenge", "model": "x", "teacher": "y"}, "needs model, and no other model"),
    ({"by": "challange", "model": "x"}, "stages[0].select.by"),
    ({"by": "challenge", "model": "x", "keep": 0}, "stages[0].select.keep"),
    ({"by": "challenge", "model": "no/such/model"}, "stages[0].select.model: checkpoint 'no/such/model'"),
    ({"by": "challenge", "model": "previous"}, "stages[0].select.model: before the first stage"),
])  # fmt: skip
def test_bad_selections_are_refused_before_anything_is_written(noisy, tmp_path, section, message):
    with pytest.raises(InputError) as caught:
        run_recipe(selecting(noisy[0], section), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_losses_and_ranks_of_a_document_are_those_of_plain_transformers(noisy):
    source = noisy[1]["difference"]["reference"]
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(source).eval(), load_tokenizer(source)
    scorer = DocumentScorer(model, tokenizer, objective="clm", sequence_length=16, batch_tokens=64)
    documents = [document("The law: court judge writ. " * n) for n in (4, 1, 2)]
    for found, item in zip(scorer.token_losses(documents), documents, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(item.text, add_special_tokens=False).input_ids]
        nats, ranks = [], []
        for start in range(0, len(ids) - 1, 15):
            window = torch.tensor([ids[start : start + 16]])
            with torch.no_grad():
                logits = model(window).logits[0, :-1].float()
            right = logits.gather(1, window[0, 1:, None])
            nats += (logits.logsumexp(1) - right[:, 0]).tolist()
            ranks += (logits > right).sum(1).tolist()
        assert found[0] == pytest.approx(nats, abs=1e-4)
        assert found[1].tolist() == ranks
    assert scorer.nats(documents) == pytest.approx([nats.sum() for nats, _ in scorer.token_losses(documents)])
    assert token_ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 0, 2]), None).tolist() == [0, 1, 0]


@pytest.mark.parametrize("policy", ["loss-ranked", "diverse"])
def test_memory_policies_that_look_at_blocks_run_from_a_recipe(noisy, tmp_path, policy):
    folder, _ = noisy
    data = recipe_data(folder, replay={"memory_tokens": 640, "share": 0.2, "policy": policy})
    data["stages"] = [{"domain": str(folder / f"{name}.yaml"), "tokens": 3000} for name in ("clean", "law")]
    run_recipe(parse_recipe(data), tmp_path / "run")
    memory = ReplayMemory.open(tmp_path / "run/memory/01")
    assert 0 < memory.num_tokens <= 640
    assert memory.domains == ["clean", "law"]
    if policy == "loss-ranked":
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/stages/01-law/model")
        tokenizer = load_tokenizer(tmp_path / "run/stages/01-law/model")
        corpus = tokenize_domain(load_domain(str(folder / "law.yaml")), "train", tokenizer, sequence_length=32,
                                 cache_dir=tmp_path / "cache")  # fmt: skip
        losses = block_losses(model, list(corpus), Collator.for_tokenizer(tokenizer, "clm", 32))
        kept = block_losses(model, list(memory.blocks("law")), Collator.for_tokenizer(tokenizer, "clm", 32))
        assert min(kept) > np.quantile(losses, 0.8), "the highest of those that were drawn to be scored"


def test_selection_counts_documents_in_the_order_they_are_read(noisy, tmp_path):
    folder, _ = noisy
    domain = load_domain(str(folder / "law.yaml"))
    tokenizer = load_tokenizer(folder / "reference")
    texts = [item.text for item in read_documents(domain, "train")]
    chosen = np.array(["The law" in text for text in texts])
    store = tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path, chosen=chosen)
    everything = tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path)
    text = tokenizer.decode(np.concatenate([block.ids for block in store]))
    assert text.count("The law") == chosen.sum() < len(texts)
    assert store.fingerprint != everything.fingerprint
