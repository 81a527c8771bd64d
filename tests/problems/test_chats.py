"""What only the teacher sees reaches the teacher, and no row that the student is trained on."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.generate import GenerateConfig
from pipeline.errors import UserError
from pipeline.problems.chats import student_chats, teacher_chats
from pipeline.student.packing import Packer
from pipeline.student.tiny import save_tiny
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.request import Keys
from stages import generate, pack, rl
from stages.graph import plans
from tests.tiny_sft import SHAPE, TEMPLATE

ROW = {"problem_id": "p", "problem": "What is 2 + 3?", "answer": "5", "kind": "math",
       "source": "s", "split": "train", "meta": "{}"}
SOLVER = {"type": "solver"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One problem with one kept trace, and a tokenizer."""
    root = tmp_path_factory.mktemp("own")
    out = {name: root / name for name in ("prepare", "filter", "student")}
    tables.write(tables.Problem, tables.table_of(tables.Problem, [ROW]),
                 out["prepare"] / "problems.parquet")
    judged = {"problem_id": "p", "sample": 0, "thinking": "two and three", "answer": "\\boxed{5}",
              "finish_reason": "stop", "complete": True, "prompt_tokens": 1,
              "completion_tokens": 1, "cost_usd": 0.0, "seconds": 0.0, "model": "m", "score": 1.0,
              "verdict": "correct", "extracted": "5", "grader": "math", "judge_version": "6",
              "pass_rate": 1.0, "kept": True, "reason": "", "source": "s"}
    tables.write(tables.Judged, tables.table_of(tables.Judged, [judged]),
                 out["filter"] / "judged.parquet")
    save_tiny(["What is 2 + 3?"], SHAPE, TEMPLATE.read_text("utf-8"), 0, root / "student/tokenizer")
    return out


def own(folder, system, problem, completion, hint):
    """generate's settings for a teacher that sees all of these."""
    examples, template = folder / "examples.jsonl", folder / "hint.jinja"
    examples.write_text(json.dumps({"problem": problem, "completion": completion}), "utf-8")
    template.write_text("{{ problem }}\n{% raw %}" + hint + "{% endraw %} Hint: {{ answer }}.",
                        "utf-8")
    return {"teacher": SOLVER, "system": system, "examples": str(examples), "hint": str(template)}


TEXT = st.text("abcdefgh ", min_size=1, max_size=20).map(lambda text: f"QX{text}XQ says")


@settings(max_examples=25,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, TEXT, TEXT, TEXT)
def test_no_text_of_the_teachers_own_stands_in_any_row_of_the_student(folders, tmp_path, system,
                                                                      problem, completion, hint):
    experiment = Experiment.model_validate(
        {"generate": own(tmp_path, system, problem, completion, hint)})
    bare = Experiment.model_validate({"generate": {"teacher": SOLVER}})
    asked = json.dumps(teacher_chats(experiment.generate, [ROW]))
    assert all(text.strip() in asked for text in (system, problem, completion, hint))
    tokenizer = load_tokenizer(folders["student"] / "tokenizer")
    seen = []
    for one in (experiment, bare):
        [[packed]] = pack._rows(one, folders, Packer(4096))
        rewarded = rl._asked(one, folders["prepare"] / "problems.parquet")
        rows = [tokenizer.decode(packed[2]), json.dumps(rewarded),
                json.dumps(student_chats(one.generate, [ROW]))]      # evaluate's, and student's
        assert not any("QX" in row or "Hint" in row for row in rows)
        seen.append(rows)
    assert seen[0] == seen[1]   # byte for byte what a teacher without a word of its own leaves


def test_no_stage_that_reads_the_students_prompt_knows_the_teachers():
    for name in ("pack", "rl", "evaluate", "student", "sft"):
        tree = ast.parse((Path(__file__).parents[2] / f"stages/{name}.py").read_text("utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                 for alias in node.names}
        assert not names & {"teacher_chats", "teacher_preface"}, name


def test_the_teacher_gets_system_examples_as_turns_and_the_hint_round_the_bare_prompt(tmp_path):
    config = GenerateConfig.model_validate(own(tmp_path, "Be brief.", "1+1?", "<think>a</think>2",
                                               "Think slowly."))
    [chat] = teacher_chats(config, [ROW]).values()
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user"]
    [bare] = student_chats(config, [ROW]).values()
    assert chat[0]["content"] == "Be brief." and chat[2]["content"] == "<think>a</think>2"
    assert chat[1]["content"].startswith("1+1?") and chat[3]["content"].startswith(
        bare[0]["content"]) and chat[3]["content"].endswith("Think slowly. Hint: 5.")


def test_the_teachers_messages_are_in_its_traces_keys_and_those_of_today_stay(tmp_path):
    plain = GenerateConfig(teacher=SOLVER)
    assert teacher_chats(plain, [ROW]) == student_chats(plain, [ROW])
    keys = Keys(plain.teacher, plain.sampling)
    seen = {keys.of(teacher_chats(GenerateConfig(teacher=SOLVER, **settings), [ROW])["p"])
            for settings in ({}, {"system": "Be brief."}, {"system": "Be kind."})}
    assert len(seen) == 3


def test_an_edited_hint_or_example_remakes_generate_and_leaves_prepare(tmp_path):
    settings = own(tmp_path, "Be brief.", "1+1?", "2", "Slowly.")
    experiment = Experiment.model_validate({"generate": settings})
    before = {name: plan.key for name, plan in plans(experiment, "generate").items()}
    for file, text in ((settings["hint"], "{{ problem }} now"), (settings["examples"],
                       json.dumps({"problem": "x", "completion": "y"}))):
        Path(file).write_text(text, encoding="utf-8")
        after = {name: plan.key for name, plan in plans(experiment, "generate").items()}
        assert after["prepare"] == before["prepare"] and after["generate"] != before["generate"]
        before = after


@pytest.mark.parametrize("settings, said", [
    ({"hint": "nowhere.jinja"}, "nowhere.jinja does not exist"),
    ({"system": "nowhere.jinja"}, "nowhere.jinja does not exist"),
    ({"examples": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ({"examples": "BAD"}, "no 'completion'"),
    ({"hint": "NOPROBLEM"}, "leaves out problem"),
    ({"system": "Be brief.", "teacher": {"type": "file", "traces": "x.jsonl"}}, "unset it")])
def test_what_cannot_be_shown_is_one_sentence_before_any_work(tmp_path, settings, said):
    (tmp_path / "bad.jsonl").write_text('{"problem": "x"}\n', encoding="utf-8")
    (tmp_path / "none.jinja").write_text("Be good.", encoding="utf-8")
    names = {"BAD": str(tmp_path / "bad.jsonl"), "NOPROBLEM": str(tmp_path / "none.jinja")}
    settings = {key: names.get(str(value), value) for key, value in settings.items()}
    experiment = Experiment.model_validate({"generate": {"teacher": SOLVER, **settings}})
    with pytest.raises(UserError, match=said):
        generate.check(experiment)
