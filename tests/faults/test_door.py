"""What is refused at the door: text that is no YAML of the plain kind, in recipes, cards, tasks and run folders."""

import time

import pytest

from lifelong.errors import CorruptionError, InputError
from lifelong.evaluate.task import load_task
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.history import recipe_values
from lifelong.pipeline import run_recipe
from lifelong.recipe.files import apply_override, load_recipe, parse_recipe
from lifelong.schema import YAML_BYTES, Yaml, parse_yaml
from lifelong.stream.cards.domain import load_domain
from tests.support import recipe_data

BOMB = "a: &a {q: x}\n" + "".join(
    f"{name}: &{name} {{{', '.join(f'k{n}: *{before}' for n in range(9))}}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NOT_PLAIN = {
    "date that is none": "x: 2020-13-45",
    "number that is none": "x: !!int abc",
    "float that is none": "x: !!float abc",
    "binary digits that are none": "x: 0b_",
    "date by its tag": "x: !!timestamp abc",
    "truth by its tag": "x: !!bool abc",
    "5,000 digits": f"x: {'9' * 5000}",
    "5,000 hexadecimal digits": f"x: 0x{'f' * 5000}",
    "bytes": "x: !!binary /w==",
    "set": "x: !!set {a, b}",
    "lists": f"x: {'[' * 3000}",
    "mappings": f"x: {'{a: ' * 900}1{'}' * 900}",
    "a value in itself": "source: &s {files: [a.jsonl], x: *s}",
    "aliases": BOMB,
    "an object": "x: !!python/object/apply:os.system [true]",
    "a key that is a list": "? [a]\n: 1",
    "a control character": "x: \x07",
}


@pytest.mark.parametrize("case", NOT_PLAIN)
@pytest.mark.parametrize("read", [load_recipe, load_domain, load_task], ids=["recipe", "card", "task"])
def test_what_is_not_plain_yaml_is_one_message(tmp_path, read, case):
    (tmp_path / "x.yaml").write_text(NOT_PLAIN[case])
    before = time.process_time()
    with pytest.raises(InputError, match=r"x\.yaml.*not valid YAML") as error:
        read(tmp_path / "x.yaml")
    assert time.process_time() - before < 1
    assert len(str(error.value)) < 500


def test_the_line_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("name: x\nsource: {files: [a]}\nheld_out: !!int abc\n")
    with pytest.raises(InputError, match=r"x\.yaml:3: not valid YAML: 'abc' cannot be used as int"):
        load_domain(tmp_path / "x.yaml")


@pytest.mark.parametrize("read", [load_recipe, load_domain, load_task])
def test_a_file_has_a_largest_size(tmp_path, read):
    (tmp_path / "x.yaml").write_text("a" * (YAML_BYTES + 1))
    with pytest.raises(InputError, match="is larger than"):
        read(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read(tmp_path / "x.yaml")


def test_the_deepest_value_is_read():
    text = "x: " + "[" * 49 + "]" * 49
    assert set(parse_yaml(text, "here", Yaml).lines.values()) == {1}
    with pytest.raises(InputError, match="here:1: not valid YAML: more than 50 levels"):
        parse_yaml(text.replace("[]", "[[]]"), "here", Yaml)


@pytest.mark.parametrize("text", ["- a", "name: x", "{name: x, stages: 3}", "{name: x, stages: [3]}", BOMB, "a: ["])
def test_a_recipe_in_a_run_folder_may_be_anything(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises((InputError, CorruptionError), match=r"recipe\.yaml"):
        recipe_values(RunFolder(tmp_path))


def test_overrides_are_yaml_of_the_same_kind():
    for override in ("x=!!int abc", "x=&a [*a]", f"x={'[' * 99}", ".".join("x" * 99) + "=1"):
        with pytest.raises(InputError, match="--set"):
            apply_override({}, override)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer": {"train": {"kind": "bpe", "vocab_size": 30_000}}}, "vocab"),
        ({"tokenizer": {"checkpoint": "nobody/no-such-tokenizer"}}, "no-such-tokenizer"),
    ],
    ids=["corpus too small for its vocabulary", "tokenizer that cannot be had"],
)
def test_what_shows_only_when_the_text_is_read_leaves_no_folder(cards, tmp_path, change, said):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=said):
        run_recipe(parse_recipe(recipe_data(cards, **change)), out)
    assert not out.exists()


def test_what_was_in_the_folder_stays(cards, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    change = {"tokenizer": {"checkpoint": "nobody/no-such-tokenizer"}}
    with pytest.raises(InputError):
        run_recipe(parse_recipe(recipe_data(cards, **change)), out)
    assert (out / "notes.txt").read_text() == "mine"
