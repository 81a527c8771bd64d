"""Configuration: precedence, refusals that name the key, overrides."""

from itertools import permutations
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import Config, load, merge, origin_of, parse_override, read_layers
from pipeline.config.sft import CrossTokenizerMethod, SequenceMethod
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Inner(Config):
    """A section."""

    rate: float = 0.5
    """A rate."""


class Outer(Config):
    """A config."""

    size: int = 1
    """A size."""
    inner: Inner = Inner()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_later_file_wins_and_the_command_line_wins_over_all(tmp_path):
    first = write(tmp_path / "a.yaml", "size: 2\ninner: {rate: 0.1}\n")
    second = write(tmp_path / "b.yaml", "size: 3\n")
    config = load(Outer, [first, second], ["inner.rate=0.9"])
    assert (config.size, config.inner.rate) == (3, 0.9)


def test_a_misspelt_key_is_named_with_its_file_and_the_nearest_known_key(tmp_path):
    bad = write(tmp_path / "a.yaml", "inner: {rte: 0.1}\n")
    with pytest.raises(UserError, match=r"'inner.rte'.*a\.yaml.*'rate'"):
        load(Outer, [bad])


def test_a_wrong_type_names_the_key_and_the_override(tmp_path):
    with pytest.raises(UserError, match=r"'size'.*command line \(size=many\)"):
        load(Outer, [], ["size=many"])


@pytest.mark.parametrize("text", ["size", "=3", "a..b=1", "size=[1"])
def test_an_override_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="override"):
        parse_override(text)


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("-2E5", -2e5), (".5", 0.5), ("1.", 1.0), ("7", 7), ("true", True),
    ("no", "no"), ("off", "off"), ("010", 10), ("0x1F", 31), ("1:30", "1:30"),
    ("2024-01-01", "2024-01-01"), ("-089", -89),
    ("1e", "1e"), (".", "."), ("[1e3, on]", [1000.0, "on"])])
def test_scalars_mean_what_they_mean_in_yaml_1_2(text, value, tmp_path):
    (tmp_path / "c.yaml").write_text(f"a: {text}")
    for got in (parse_override(f"a={text}"), read_layers([tmp_path / "c.yaml"], [])[0][1]):
        assert got == {"a": value} and type(got["a"]) is type(value)


@pytest.mark.parametrize("value", ["#### (.+)", "data #1.jsonl", "[a, b] # c", "[a #b\n, c]", " #"])
def test_a_value_that_yaml_would_cut_off_at_a_comment_is_refused(value):
    with pytest.raises(UserError, match="quote the value"):
        parse_override(f"a={value}")


@pytest.mark.parametrize(("text", "value"), [
    ("'#### (.+)'", "#### (.+)"), ('"data #1.jsonl"', "data #1.jsonl"), ("a#b", "a#b"),
    ("['a #b', c#]", ["a #b", "c#"]), ("|\n  a #b", "a #b")])
def test_a_hash_that_begins_no_comment_is_part_of_the_value(text, value):
    assert parse_override(f"a={text}") == {"a": value}


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load(Outer, [tmp_path / "nowhere.yaml"])
    with pytest.raises(UserError, match="not valid YAML"):
        load(Outer, [write(tmp_path / "b.yaml", "a: [1")])
    with pytest.raises(UserError, match="keys and values"):
        load(Outer, [write(tmp_path / "c.yaml", "- 1")])


@pytest.mark.parametrize(("text", "said"), [
    ("a: [1\n", r"b\.yaml:2 is not valid YAML: .*expected ',' or '\]'"),
    ("a:\n\tb: 1\n", r"b\.yaml:2 .*use spaces"),
    ("a: 1\nb: \x07\n", r"b\.yaml:2 .*control character #x07"),
    ("inner:\n  rate: 3\n  rate: 4\n", r"b\.yaml:3 .*key 'rate' is there twice")])
def test_bad_yaml_is_one_line_with_file_and_line(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        load(Outer, [write(tmp_path / "b.yaml", text)])
    assert "\n" not in str(refused.value)


def test_a_key_given_twice_in_an_override_is_refused_and_one_over_a_merge_is_not(tmp_path):
    with pytest.raises(UserError, match="key 'rate' is there twice"):
        parse_override("inner={rate: 1, rate: 2}")
    file = write(tmp_path / "a.yaml", "a: {z: &z {<<: &y {k: 1}, k: 2}}\nb: {<<: *z, k: 3}\n")
    assert read_layers([file], [])[0][1] == {"a": {"z": {"k": 2}}, "b": {"k": 3}}


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("name: Übung".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml is not UTF-8"):
        load(Outer, [tmp_path / "a.yaml"])


def test_a_section_whose_meaning_changed_has_another_key_and_is_read_back_as_it_was():
    method = CrossTokenizerMethod(teacher="T")
    assert method.model_dump()["revision"] == CrossTokenizerMethod.REVISION > 0
    assert "revision" not in SequenceMethod().model_dump()
    assert CrossTokenizerMethod(**method.model_dump(context="everything")) == method


def test_null_takes_out_a_reward_that_a_file_gives(tmp_path):
    file = write(tmp_path / "a.yaml", "rl: {rewards: {accuracy: 1.0, r1_format: 0.1}}\n")
    files = [ROOT / "configs/default.yaml", file]

    def rewards(*overrides):
        return load(Experiment, files, overrides).rl.rewards

    assert rewards("rl.rewards={accuracy: 1.0}") == {"accuracy": 1.0, "r1_format": 0.1}
    assert rewards("rl.rewards.r1_format=null") == {"accuracy": 1.0}
    with pytest.raises(UserError, match=r"'rl\.rewards'.*: give at least 1, not"):
        rewards("rl.rewards={accuracy: null, r1_format: null}")


def test_changing_a_type_replaces_the_whole_mapping():
    below = {"teacher": {"type": "a", "only_a": 1}, "x": 1}
    assert merge(below, {"teacher": {"type": "b"}}) == {"teacher": {"type": "b"}, "x": 1}
    assert merge(below, {"teacher": {"only_a": 2}})["teacher"] == {"type": "a", "only_a": 2}


@pytest.mark.parametrize("given", [
    ["sft.method.type=on_policy", "sft.method.teacher=T", "sft.method.dtype=auto"],
    ["sft.method.source.teacher=T", "sft.method.source.type=online", "sft.method.type=logits"],
    ["generate.teacher.model=T", "generate.teacher.type=openai"],
    ["pack.packing.block=500", "pack.packing.type=best_fit"]])
def test_overrides_of_different_keys_mean_the_same_in_any_order(given, tmp_path):
    file = write(tmp_path / "a.yaml", "sft: {method: {type: on_policy, teacher: A}}\n")
    for files in ([], [file]):
        one, *others = (load(Experiment, [ROOT / "configs/default.yaml", *files], order)
                        for order in permutations(given))
        assert all(other == one for other in others)


def test_of_two_overrides_that_set_the_same_the_later_wins():
    whole, kind = "sft.method={type: on_policy, teacher: T}", "sft.method.type=sequence"
    for given in ([whole, kind], [kind, whole]):
        made = load(Experiment, [ROOT / "configs/default.yaml"], given).sft.method
        assert (made.type == "sequence") == (given[-1] == kind)


def test_the_origin_of_a_value_is_its_last_setter(tmp_path):
    file = write(tmp_path / "a.yaml", "size: 2\n")
    layers = read_layers([file], ["inner.rate=1"])
    assert origin_of(["size"], layers) == str(file)
    assert origin_of(["inner", "rate"], layers).startswith("command line")
    assert origin_of(["nothing"], layers) == "default"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_parses(path):
    whole = "generate:\n" in path.read_text("utf-8") and path.stem != "one-gpu"
    base = [] if whole else [ROOT / "configs" / "default.yaml"]
    if path.stem != "prices":
        named = load(Experiment, [*base, path]).student.chat_template
        assert named is None or (ROOT / f"prompts/chat_templates/{named}.jinja").is_file()


def test_a_config_cannot_be_changed_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        Outer().size = 2


@pytest.mark.parametrize(("override", "said"), [
    ("generate.teacher={models: x}", "unknown config key 'generate.teacher.models' (set in"),
    ("generate.teacher.type=opena", "'generate.teacher.type' (set in command line (generate."
     "teacher.type=opena)): 'opena' is none of 'solver', 'openai'"),
    ("generate.teacher={type: vllm}", "'generate.teacher.model' is not set; give generate."
     "teacher.model=..."),
    ("pack.packing={type: best_fit, window: 3}", "unknown config key 'pack.packing.window' (set in "
     "command line (pack.packing={type: best_fit, window: 3})); `limbeck config` lists"),
    ("generate.teacher={type: openai, modle: x}", "'generate.teacher.model' is not set"),
    ("evaluate.benchmarks=[{problms: x}]", "config key 'evaluate.benchmarks.0.problems' is not"),
    ("prepare.decontaminate=[5]", "config key 'prepare.decontaminate.0': Input should"),
    ("prepare.decontaminate=[[a.jsonl]]", "config key 'prepare.decontaminate.0': Input should")])
def test_a_fault_inside_a_choice_of_types_is_named_as_it_was_written(override, said):
    with pytest.raises(UserError) as error:
        load(Experiment, [ROOT / "configs/tiny.yaml"], [override])
    assert said in str(error.value)


def test_a_section_without_its_type_is_told_so():
    with pytest.raises(UserError, match=r"'generate.teacher' \(set in .*\) names no type; give "):
        load(Experiment, [], ["generate.teacher={model: x}"])


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_number_that_json_has_not_is_refused_before_any_work(value):
    with pytest.raises(UserError, match=r"rl\.rewards\.accuracy.*finite"):
        load(Experiment, [ROOT / "configs/default.yaml"], [f"rl.rewards={{accuracy: {value}}}"])
