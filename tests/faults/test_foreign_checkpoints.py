"""A checkpoint that somebody else made: nothing of it runs, and what is wrong with it is one message."""

import json
import os

import pytest
import torch
import transformers

from lifelong.errors import CorruptionError, InputError, LifelongError
from lifelong.lm.checkpoint import load_config, load_model
from lifelong.stream.tokenizers.load import load_tokenizer
from tests.expand.models import tiny
from tests.support import run_cli

CODE = "raise SystemExit('the code of a stranger ran')"


class Bomb:
    def __reduce__(self):
        return os._exit, (7,)


@pytest.fixture
def checkpoint(tmp_path, cards):
    """A whole checkpoint with its tokenizer, to be made a stranger's."""
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    folder = tmp_path / "checkpoint"
    tiny("llama").save_pretrained(folder)
    train_tokenizer([load_domain(cards / "sea.yaml")], vocab_size=300).save_pretrained(folder)
    return folder


def configure(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def messages(monkeypatch, capsys, folder, cards):
    """What every verb that takes a checkpoint says of it."""
    verbs = {
        "evaluate": [folder, "--domain", cards / "sea.yaml"],
        "expand": [folder, folder.parent / "grown", "--layers", "4"],
        "cache": [folder, "--out", folder.parent / "cache", "--domain", cards / "sea.yaml"],
    }
    for verb, arguments in verbs.items():
        assert run_cli(monkeypatch, verb, *arguments) == 2, verb
        yield capsys.readouterr().err


@pytest.mark.parametrize("content", [Bomb(), {"x": torch.zeros(1)}, b"no pickle at all"])
def test_weights_that_are_a_pickle_are_never_opened(checkpoint, cards, monkeypatch, capsys, content):
    (checkpoint / "model.safetensors").unlink()
    weights = checkpoint / "pytorch_model.bin"
    weights.write_bytes(content) if isinstance(content, bytes) else torch.save(content, weights)
    for message in messages(monkeypatch, capsys, checkpoint, cards):
        assert "\n" not in message.strip()
        assert "has no safetensors, only pytorch_model.bin: that is a pickle" in message
        assert "import LlamaForCausalLM as M; M.from_pretrained(" in message


@pytest.mark.parametrize("kind", ["evil", "llama"])
def test_code_beside_the_weights_never_runs(checkpoint, cards, monkeypatch, capsys, kind):
    (checkpoint / "evil.py").write_text(CODE)
    configure(checkpoint, model_type=kind, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    if kind == "llama":  # the class of transformers is taken
        assert type(load_model(checkpoint, "clm")) is transformers.LlamaForCausalLM
        return
    for message in messages(monkeypatch, capsys, checkpoint, cards):
        assert "needs code that comes with it, which is never run here" in message or "no family for" in message
        assert "trust_remote_code" not in message


def test_an_unknown_kind_of_model_is_named(checkpoint):
    configure(checkpoint, model_type="nobodys")
    version = transformers.__version__
    with pytest.raises(InputError, match=rf"transformers {version} does not know its model_type 'nobodys'"):
        load_config(checkpoint)


def test_code_beside_a_tokenizer_never_runs(checkpoint):
    (checkpoint / "evil.py").write_text(CODE)
    configure(checkpoint, "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]})
    (checkpoint / "config.json").unlink()
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(InputError) as refused:
        load_tokenizer(checkpoint)
    assert "trust_remote_code" not in str(refused.value)


def test_an_adapter_does_not_lead_to_a_model_elsewhere(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}')
    with pytest.raises(InputError, match="holds an adapter of another model"):
        load_model(checkpoint, "clm")


def test_the_index_of_the_weights_does_not_lead_out(checkpoint):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptionError, match=r"names '\.\./secret.safetensors'"):
        load_model(checkpoint, "clm")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"rope_parameters": 3},
        {"hidden_act": "evil"},
    ],
)
def test_a_damaged_configuration_is_one_message(checkpoint, changes):
    configure(checkpoint, **changes)
    with pytest.raises(LifelongError, match="checkpoint"):
        load_model(checkpoint, "clm")


def test_a_checkpoint_that_is_not_here_is_said_to_be_no_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LifelongError, match="checkpoint 'no-such-model': there is no such folder, and from the hub"):
        load_model("no-such-model", "clm")


def test_damaged_weights_are_one_message(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(LifelongError, match="transformers cannot load it as clm"):
        load_model(checkpoint, "clm")
