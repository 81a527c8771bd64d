"""Every command of the documents runs as it stands there, on a small scale.

The hub and the endpoints are stand-ins; laid over a command's config, `small.yaml` makes the run
one of seconds. What needs more than that is listed in ELSEWHERE, with the test that runs it.
"""

import re
import shlex
import subprocess
from io import StringIO

import datasets
import pytest
from fault_server import Answer, FaultServer, completion
from test_readme import CLI, DOCUMENTS, ROOT, blocks

from stages.__main__ import app

ELSEWHERE = {
    r"make |pip install|\.venv/bin/pip|ruff|mypy|pytest|python|\.ci/|benchmarks/": "CI itself",
    r"\.venv/bin/transformers serve": "a server that has to be fetched from the hub",
    r"limbeck view": "tests/view: it serves until Ctrl-C",
    r"limbeck (export|import)-reviews": "tests/view",
    r"limbeck (push|lineage) ": "tests/export",
    r"limbeck (submit|jobs)": "tests/cluster",
    r"limbeck .*runtime\.cluster=": "tests/cluster",
    r"limbeck .*=s3://": "tests/stages/test_bucket_artifacts.py",
    r"limbeck benchmarks": "tests/problems/test_benchmarks.py",
    r"limbeck evaluate .*evaluate\.samples=r1": "tests/problems/test_benchmarks.py",
    r"limbeck .*runtime\.teacher\.batch=true": "tests/teacher/test_batch.py",
    r"limbeck .*filter\.languages=": "tests/curate/test_language_share.py",
    r"limbeck estimate .*--gpus": "tests/cluster",
    r"limbeck chat": "tests/export: it serves until Ctrl-C",
    r"limbeck (export|report) ": "tests/evaluate and tests/export: they train before",
    r"limbeck (rl .*length\.yaml|sft --each)": "tests/config: they train for long",
    r"limbeck .*configs/(r1-embedded|ablation)\.yaml": "tests/stages/test_recipe.py",
}
SMALL = """
prepare: {limit: 24, held_out: 8, decontaminate: []}
generate: {samples: 2}
pack: {max_tokens: 1024}
student: {model: tiny, chat_template: null, tiny: {layers: 1, width: 32, heads: 2, vocabulary: 420}}
sft:
  held_out: 0
  trainer: {max_steps: 1, per_device_train_batch_size: 2, gradient_accumulation_steps: 1,
            gradient_checkpointing: false, model_init_kwargs: null}
rl:
  patience: 100
  phases: []
  evaluate_every: 0
  keep: last
  keep_completions: 0
  dynamic_sampling: 0
  difficulty: null
  trainer: {max_steps: 1, num_generations: 2, per_device_train_batch_size: 2, use_vllm: false,
            gradient_accumulation_steps: 1, max_completion_length: 8, gradient_checkpointing: false}
runtime: {judge_workers: 1}
"""
SUMS = [(f"What is {i} plus {i + 2}?", str(2 * i + 2)) for i in range(40)]
FILES = {
    "math500.jsonl": "".join(f'{{"problem": "{p}", "answer": "{a}"}}\n' for p, a in SUMS),
    "set.jsonl": "".join(f'{{"problem": "{p}", "answer": "{a}"}}\n' for p, a in SUMS),
    "answers.jsonl": '{"prediction": "\\\\boxed{4}", "gold": "4"}\n'}


def hub(name, subset=None, split="train"):
    """Rows as the data sets of the recipes have them."""
    thought = "<think>\nLet me add them up.\n</think>\n\\boxed{%s}"
    rows = [{"problem": problem, "question": problem, "generations": [thought % answer],
             "answer": f"It is so. #### {answer}" if name == "openai/gsm8k" else answer}
            for problem, answer in SUMS]
    return datasets.Dataset.from_list(rows)


def teach(call):
    """An endpoint that thinks and adds."""
    if "messages" not in call.body:
        return Answer(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
    numbers = [int(number) for number in re.findall(r"\d+", call.question)]
    texts = [f"<think>\nLet me add {numbers}.\n</think>\n\\boxed{{{sum(numbers[:2])}}}"]
    return Answer(completion(*texts * call.body.get("n", 1)))


LINES = list(dict.fromkeys(
    line for name, text in DOCUMENTS.items() for line in blocks(text)
    if not any(re.match(pattern, line) for pattern in ELSEWHERE)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder where commands are run one after another, the address of every endpoint)."""
    folder = tmp_path_factory.mktemp("documents")
    for name, text in {"small.yaml": SMALL, **FILES}.items():
        (folder / name).write_text(text)
    with FaultServer(teach).running() as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", hub)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("LIMBECK_API_KEY", "none")
        patch.chdir(folder)
        yield folder, url


def run(line, url, monkeypatch):
    """Run one command in this process, with the small config over its own."""
    shell, _, command = line.rpartition(" | ")
    said = subprocess.run(shell or "true", shell=True, check=True, capture_output=True, text=True)
    if not command.startswith("limbeck "):
        subprocess.run(command, shell=True, check=True)
        return
    name, *words = shlex.split(re.sub(r"https?://[^\s/]+/v1", url, command))[1:]
    if "config" in (known := CLI[name].make_context(name, list(words)).params):
        files = known["config"] or ["configs/default.yaml"]
        kept = [word for word in words if word != "-c" and word not in map(str, files)]
        words = [part for file in [*files, "small.yaml"] for part in ("-c", str(file))] + kept
        words += ["filter.distinct=false", f"runtime.teacher.base_url={url}"] \
            if "openai" in "".join((ROOT / str(file)).read_text("utf-8") for file in files) else []
    read = StringIO(said.stdout)
    monkeypatch.setattr("builtins.open", lambda file, *more, real=open, **given:
                        read if file == 0 else real(file, *more, **given))
    app([name, *words], standalone_mode=False)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_documents_runs_as_it_stands_there(line, place, monkeypatch):
    _, url = place
    if re.match(r"limbeck (preview|show)", line):       # of what an earlier command made
        run("limbeck filter", url, monkeypatch)
    run(line, url, monkeypatch)


def test_most_commands_are_run_here_and_every_exception_is_one():
    lines = [line for text in DOCUMENTS.values() for line in blocks(text)]
    for pattern, why in ELSEWHERE.items():
        assert any(re.match(pattern, line) for line in lines), pattern
        places = re.findall(r"tests/[\w/.]+", why)
        assert all((ROOT / place).exists() for place in places), why
    assert len(LINES) >= 25
