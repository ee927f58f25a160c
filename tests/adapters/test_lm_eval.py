"""lm-evaluation-harness on a committed stage; its results against a second computation with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from lifelong.errors import InputError, UnknownNameError
from lifelong.evaluate.harness import evaluate_with_harness
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.support import recipe_data, write_domain

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the harness takes some ten seconds to import


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    write_domain(folder, "sea")
    data = recipe_data(folder, inherit=None, replay=None)
    data["stages"], data["tokenizer"]["train"]["vocab_size"] = data["stages"][:1], 300
    run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


def write_harness_task(folder: Path) -> None:
    """A choice of two continuations, in the harness's own format."""
    rows = [{"question": "The sea:", "choices": [" wave ship", " qq zz"], "answer": i % 2} for i in range(6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "sea_choice.yaml").write_text(
        "task: sea_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n"
    )


def test_a_stage_is_evaluated_and_the_result_is_kept(run, tmp_path):
    pytest.importorskip("lm_eval")
    write_harness_task(tmp_path)
    results = evaluate_with_harness(str(run), ["sea_choice"], include=tmp_path)
    folder = run / "stages/00-sea/model"
    model, tokenizer = (
        auto.from_pretrained(folder) for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    scores = []
    for choice in (" wave ship", " qq zz"):
        prompt, whole = (tokenizer(t).input_ids for t in ("The sea:", "The sea:" + choice))
        with torch.no_grad():
            log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(log_p[t - 1, whole[t]]) for t in range(len(prompt), len(whole))))
    assert results["sea_choice"]["acc"] == 0.5  # the same choice every time, right every second time
    assert scores[0] != scores[1]
    kept = json.loads((run / "harness/00-sea.json").read_text())
    assert kept["results"] == results
    with pytest.raises(UnknownNameError, match="did you mean 'sea_choice'"):
        evaluate_with_harness(str(run), ["sea_choise"], include=tmp_path)


def test_without_the_harness_there_is_one_clear_error(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lm_eval\[hf\]'"):
        evaluate_with_harness(str(run), ["arc_easy"])
