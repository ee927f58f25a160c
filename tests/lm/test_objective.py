"""What follows from an objective, and where the positions of a model begin."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import lifelong
from lifelong.errors import InputError
from lifelong.expand.family import load_family
from lifelong.lm.flops import forward_flops_per_token
from lifelong.lm.head import predicted_rows
from lifelong.lm.objective import MASK_RATE, OBJECTIVES, objective_of, pad_id
from lifelong.lm.packed import position_offset
from lifelong.plugins import plugin_names
from tests.expand.models import tiny

CLM, MLM = objective_of("clm"), objective_of("mlm")
HIDDEN, LABELS = torch.arange(8.0).reshape(2, 4, 1), torch.tensor([[-100, 5, 6, 7], [1, -100, 3, -100]])


def test_an_objective_is_known_by_its_name_and_no_other():
    assert [objective_of(name).name for name in OBJECTIVES] == ["clm", "mlm"]
    with pytest.raises(InputError, match=r"^objective: 'lm' is not clm or mlm$"):
        objective_of("lm")


def as_lists(objective):
    hidden, labels, sequence = predicted_rows(HIDDEN, LABELS, objective)
    return hidden[:, 0].tolist(), labels.tolist(), sequence.tolist()


def test_a_causal_model_predicts_the_next_token_and_a_masked_one_its_own():
    assert as_lists("clm") == ([0, 1, 2, 5], [5, 6, 7, 3], [0, 0, 0, 1])
    assert as_lists("mlm") == ([1, 2, 3, 4, 6], [5, 6, 7, 1, 3], [0, 0, 0, 1, 1])
    assert (CLM.num_predicted(3, 100), MLM.num_predicted(3, 100)) == (297, int(300 * MASK_RATE))


def test_only_a_masked_model_hides_tokens():
    tokenizer = SimpleNamespace(mask_token_id=4)
    assert (CLM.mask_id(tokenizer), MLM.mask_id(tokenizer)) == (None, 4)
    assert (CLM.masks_tokens, MLM.masks_tokens) == (False, True)


def test_a_causal_token_attends_to_half_of_its_sequence():
    model = tiny("llama")
    channels = 2 * 4 * 8  # layers x heads x head size
    difference = forward_flops_per_token(model, 100, "mlm") - forward_flops_per_token(model, 100, "clm")
    assert difference == 4 * 50 * channels


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_head_is_the_one_that_transformers_gives(name):
    objective = objective_of(name)
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True
    )
    assert type(objective.auto_class.from_config(config)) is objective.model_classes[type(config)]


@pytest.mark.parametrize(("pad", "eos", "expected"), [(3, 2, 3), (0, 2, 0), (None, 2, 2), (None, None, 0)])
def test_padding_falls_back_to_another_token(pad, eos, expected):
    assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected


@pytest.mark.parametrize("name", plugin_names("lifelong.expand.families"))
def test_positions_begin_where_the_family_table_says(name):
    family = load_family(name.replace("-", "_"))
    learned = {"position_embedding_type": "absolute"} if name == "esm" else {}  # rotary ones have no first position
    model = tiny(name, pad_token_id=2, **learned)
    assert position_offset(model) == (3 if family.positions_after_padding else 0)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet", "bert"])
def test_positions_begin_where_the_stock_model_begins(model_type):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.arange(4, 12)[None]
    positions = torch.arange(8)[None] + position_offset(model)
    assert torch.equal(model(ids).logits, model(ids, position_ids=positions).logits)


def test_no_other_file_compares_with_the_names():
    package = Path(lifelong.__file__).parent
    compared = re.compile(r"""(==|!=|\bin) *[("']*["'](clm|mlm)["']""")
    assert [str(p) for p in package.rglob("*.py") if compared.search(p.read_text(encoding="utf-8"))] == []


def test_an_objective_needs_no_torch():
    code = "import sys, lifelong.lm.objective; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
