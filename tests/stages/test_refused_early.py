"""What a later stage would refuse is refused by `plan` and by the first stage, before any work."""

import json
from pathlib import Path

import pytest
from fault_server import Answer, FaultServer, completion

from pipeline.config import trainer_keys
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.trainer_keys import has_vllm
from pipeline.errors import LackingError, UserError
from stages.graph import STAGES
from stages.make import make, plan_rows

ROOT = Path(__file__).resolve().parents[2]
DROPS = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}" \
        "{% if add_generation_prompt %}assistant: {% endif %}"
MUTE = "user: solve it\n{% if messages[1:] %}{{ messages[-1].content }}{% endif %}"
FILES = {
    "blank.jinja": "Solve it.", "torn.jinja": "{{ problem",
    "drops.jinja": DROPS, "mute.jinja": MUTE,
    "unlike.jinja": "{% if add_generation_prompt %}Q{% else %}A{{ messages }}{% endif %}",
    "broken.jinja": "{% for m in messages %}", "own.py": "def other(): ...",
    "zero.yaml": "distributed_type: DEEPSPEED",
    "asked.jsonl": json.dumps({"question": "1+1?", "answer": "2"}),
    "empty/config.json": "{}", "two.jsonl": '{"problem": "1+1?", "answer": "2"}\n' * 2}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)


def experiment(*overrides):
    return load(Experiment, [ROOT / "configs/default.yaml"], ["prepare.limit=900", *overrides])


LATER = [
    ("generate.prompt=blank.jinja", r"leaves out problem"),
    ("generate.prompt=torn.jinja", "cannot be rendered"),
    ("student.chat_template=drops.jinja", "drops the thinking"),
    ("student.chat_template=mute.jinja", "leaves out the message"),
    ("student.chat_template=unlike.jinja", "not the start"),
    ("student.chat_template=broken.jinja", "cannot render"),
    ("student.model=/nowhere/model", "student.model, /nowhere/model, is no folder"),
    ("student.model=runs/sft/model", "is no folder"), ("student.model=empty", "is no folder"),
    ("evaluate.benchmarks=[heldout, asked.jsonl]", "has no 'problem'"),
    ("evaluate.benchmarks=[nowhere.jsonl]", "nowhere.jsonl does not exist"),
    ("evaluate.benchmarks=[heldot]", "did you mean heldout"),
    ("prepare={problems: asked.jsonl, held_out: 0}", "prepare.problem_column"),
    ("prepare={problems: two.jsonl, held_out: 2}", "asks for as many"),
    ("prepare.limit=600", "leaves no problem beside prepare.held_out=600"),
    ("prepare.kind=maths", "is no kind; there are math, choice"),
    ("generate={teacher: {type: vllm, model: m/m, vllm: {max_model_len: 512}}, "
     "sampling: {max_tokens: 512}}", "max_model_len=512 holds prompt and answer"),
    ("generate.teacher={type: file, traces: asked.jsonl}", "asked.jsonl has no column 'problem'"),
    ("rl.rewards={acuracy: 1}", "rl.rewards names 'acuracy'"),
    ("rl.rewards={own.py:mine: 1}", "own.py defines no 'mine'"),
    ("rl.trainer.learning_rat=1", "rl.trainer.learning_rat is not a key .*'learning_rate'"),
    ("sft.trainer.max_step=1", "sft.trainer.max_step is not a key .*'max_steps'"),
    ("sft.trainer.train_sampling_strategy=batch_rebalance", "the rows are ready-made; remove it"),
    ("sft.method={type: on_policy, teacher: ./nowhere}", "teacher of sft.method, ./nowhere, is"),
    ("rl.policy={markr: box}", "markr"), ("rl.start=nowhere", "rl.start"),
    ("rl={rewards: {accuracy: 1, process: 1}, process: {type: local, model: ./nowhere}}",
     "rl.process.model, ./nowhere"),
    ("filter={llm_judge: {model: judge}}", "no address for filter.llm_judge"),
    ("{filter: {llm_judge: {model: unpriced}}, runtime: {llm_judge: {max_usd: 1, "
     "base_url: 'http://127.0.0.1:9/v1'}}}", "runtime.llm_judge.max_usd is set"),
    ("{sft: {method: {type: logits}}, logits: {teacher: ./nowhere}}", "logits.teacher, ./nowhere"),
    ("{sft: {layers: compiled}, runtime: {launch: {use_fsdp: true, num_processes: 2}}}",
     r"sft.layers=compiled .* runtime\.launch\.use_fsdp gathers"),
    ("{rl: {layers: compiled}, runtime: {launch: {config_file: zero.yaml}}}",
     r"rl.layers=compiled .* zero\.yaml \(use_deepspeed\)"),
]


def given(override):
    """`override`, or a mapping of several as overrides."""
    if not override.startswith("{"):
        return [override]
    import yaml

    return [f"{section}={json.dumps(value)}" for section, value in yaml.safe_load(override).items()]


@pytest.mark.parametrize(("override", "said"), LATER)
def test_plan_and_the_first_stage_refuse_what_a_later_stage_would(override, said):
    for command in (plan_rows, lambda made: make(made, "prepare")):
        with pytest.raises(UserError, match=said):
            command(experiment(*given(override)))
    assert not Path("data").exists()


def test_what_only_this_machine_lacks_stops_no_stage_that_another_may_follow(monkeypatch, capsys):
    monkeypatch.delenv("PRM_KEY", raising=False)
    made = experiment("prepare.held_out=5", "rl.rewards={accuracy: 1, process: 1}",
                      "rl.process={type: http, url: 'http://h/pooling', model: m, "
                      "key_env: PRM_KEY}")
    assert {row["stage"] for row in plan_rows(made)} >= {"prepare", "rl"}
    assert "plan: rl cannot run here: rl.process.key_env" in capsys.readouterr().err
    make(made, "prepare")
    with pytest.raises(LackingError, match="PRM_KEY is unset"):
        make(made, "rl")
    assert not list(Path("data/artifacts").glob("generate-*"))


def test_what_takes_libraries_to_know_is_known_before_a_teacher_is_paid():
    Path("three.jsonl").write_text("".join(
        json.dumps({"problem": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(3)))
    server = FaultServer(lambda call: Answer(completion("<think>x</think>\\boxed{1}")))
    with server.running() as url:
        made = experiment("prepare={problems: three.jsonl, held_out: 1}",
                          "generate.teacher={type: openai, model: m}",
                          f"runtime.teacher.base_url={url}", "rl.trainer.loss_type=[3]",
                          "sft.trainer.optim=adam_of_nobody")
        with pytest.raises(UserError, match=r"sft\.trainer: SFTConfig refuses"):
            make(made, "generate")
    assert not server.calls and not Path("data").exists()


def test_every_stage_that_refuses_says_so_in_check_or_check_fully():
    for name, stage in STAGES.items():
        assert name in ("report",) or hasattr(stage.load(), "check"), name


def test_own_problems_and_the_embedded_teacher_do_not_go_together_but_may_be_prepared(capsys):
    made = experiment("prepare={problems: two.jsonl, held_out: 0, limit: null}")
    plan_rows(made)
    assert "generate cannot run here: the embedded teacher solves" in capsys.readouterr().err
    make(made, "prepare")
    with pytest.raises(UserError, match=r"countdown alone, not two\.jsonl"):
        make(made, "generate")


@pytest.mark.parametrize(("given", "named"), [
    ({"runtime.vllm": "{max_num_seq: 4}"}, "runtime.vllm.max_num_seq is not a key of EngineArgs; "
     "did you mean 'max_num_seqs'?"),
    ({"sft.method.type": "logits", "logits": "{teacher: m/m, scorer: {type: vllm, engine: "
      "{max_num_seq: 4}}}"}, "logits.scorer.engine.max_num_seq is not a key")])
def test_an_option_that_vllm_does_not_have_is_refused_if_it_is_installed(
        given, named, tmp_path, monkeypatch):
    made = experiment(*(f"{key}={value}" for key, value in given.items()))
    Path("vllm").mkdir()        # only a folder of that name
    monkeypatch.syspath_prepend(".")
    if not has_vllm():
        plan_rows(made)
    engine = tmp_path / "there" / "vllm" / "engine"
    engine.mkdir(parents=True)
    (engine / "arg_utils.py").write_text("class EngineArgs:\n    max_num_seqs: int = 1\n")
    (engine.parent / "__init__.py").write_text("raise ImportError('takes seconds')\n")
    monkeypatch.syspath_prepend(engine.parent.parent)
    trainer_keys.keys_of.cache_clear()
    with pytest.raises(UserError, match=named):
        plan_rows(made)
    plan_rows(experiment("runtime.vllm={max_num_seqs: 4, chat_template: x}"))
    trainer_keys.keys_of.cache_clear()
