"""Benchmarks by name: where each comes from, how its rows are read, how it is asked and sampled.

The only list of them: evaluate, prepare.decontaminate, the report and the cards read it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.problems.files import SUFFIXES, data_suffix
from pipeline.problems.private_tests import tests_of

Row = Mapping[str, Any]
R1 = "DeepSeek-R1"
R1_SMALL = "DeepSeek-R1-Distill-Qwen-1.5B"
# Scores are as in the READMEs of DeepSeek-R1, DeepSeek-R1-0528 and DeepScaleR; hub ids, subsets,
# splits and columns as lm-evaluation-harness and lighteval read them (compared in 11/2026).
R1_PAPER = "arXiv 2501.12948"
DEEPSCALER = "the table in DeepScaleR's README, 16 samples"
FEW_PROBLEMS = "The Mathematical Association of America holds the rights in the problems."


def value(row: Row, *names: str) -> Any:
    """The first of the columns `names` that `row` has. Raises UserError if it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UserError(f"a row has no column {' or '.join(map(repr, names))} (its columns: "
                    f"{', '.join(row)}); give the benchmark's own file")


def maths(row: Row, seed: int) -> dict[str, Any]:
    """A question and its answer, which in GSM8K stands behind the solution."""
    answer = value(row, "final_answer", "answer", "Answer")
    if isinstance(answer, str):
        answer = answer.rpartition("####")[2].strip()
    return {"problem": value(row, "problem", "question", "Problem"), "answer": answer,
            "meta": row.get("meta")}


def gpqa(row: Row, seed: int) -> dict[str, Any]:
    """Four choices in an order drawn for each problem; the seed of the draw is kept in meta."""
    question = str(value(row, "Question", "question", "problem")).strip()
    correct = _choice(value(row, "Correct Answer", "answer"))
    choices = [*(_choice(value(row, f"Incorrect Answer {i}")) for i in (1, 2, 3)), correct]
    drawn = f"{seed}:{row.get('Record ID') or row.get('id') or question}"
    random.Random(drawn).shuffle(choices)
    listed = "".join(f"\n({chr(65 + i)}) {text}" for i, text in enumerate(choices))
    return {"problem": f"{question}\nChoices:{listed}", "answer": chr(65 + choices.index(correct)),
            "meta": {"choices": choices, "choice_seed": drawn, "question": question}}


def _choice(text: Any) -> str:
    # As lm-evaluation-harness cleans them.
    return str(text).strip().replace(" [title]", ". ").replace("  ", " ")


def mmlu_pro(row: Row, seed: int) -> dict[str, Any]:
    """Up to ten options in the order of the data set, which its published scores have too."""
    question, options = value(row, "question", "problem"), value(row, "options")
    listed = "".join(f"\n{chr(65 + i)}. {text.strip()}" for i, text in enumerate(options[:10]))
    return {"problem": f"{question}\nOptions:{listed}", "answer": value(row, "answer"),
            "meta": {"category": row.get("category"), "question": question}}


def ifeval(row: Row, seed: int) -> dict[str, Any]:
    """Instructions that a program can check, with their arguments."""
    told = [{name: given for name, given in one.items() if given is not None}
            for one in value(row, "kwargs")]
    return {"problem": value(row, "prompt", "problem"), "answer": "",
            "meta": {"instruction_id_list": value(row, "instruction_id_list"), "kwargs": told}}


def humaneval(row: Row, seed: int) -> dict[str, Any]:
    held = {**(row.get("meta") or {}), **row}
    return {"problem": value(row, "prompt", "problem"), "answer": "",
            "meta": {name: value(held, name) for name in ("test", "entry_point")}}


def mbpp(row: Row, seed: int) -> dict[str, Any]:
    """The task and the first three tests: without them nobody knows the function's name."""
    held = {**(row.get("meta") or {}), **row}
    text, tests = value(row, "prompt", "text", "problem"), value(held, "test_list")
    shown = "\n".join(tests[:3])
    return {"problem": f"{text}\nYour code should pass these tests:\n{shown}", "answer": "",
            "meta": {"test_list": tests, "test_imports": held.get("test_imports") or [],
                     "question": text}}


def livecodebench(row: Row, seed: int) -> dict[str, Any]:
    """A contest problem with its public and private tests, as programs or as a function."""
    text, starter = value(row, "question_content"), row.get("starter_code") or ""
    form = (f"Complete this code:\n```python\n{starter}\n```" if starter else
            "Read the input from standard input and print the answer to standard output.")
    return {"problem": f"{text}\n\n{form}", "answer": "",
            "meta": {**tests_of(row), "question": text, "date": str(row.get("contest_date"))[:10],
                     "difficulty": row.get("difficulty")}}


@dataclass(frozen=True)
class Published:
    """A score of a known model, as a fraction of 1, and who says so."""

    model: str
    score: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `row` turns a row of the hub's, or of a local file, into one of ours."""

    hub: str
    row: Callable[[Row, int], dict[str, Any]]
    published: Published
    subset: str | None = None
    split: str = "test"
    files: tuple[str, ...] = ()
    """Files of the hub repository, where `datasets` cannot load it."""
    wanted: Callable[[Row], bool] = lambda row: True
    """Which rows belong to the benchmark."""
    also: tuple[str, ...] = ()
    """Other names of its local file."""
    kind: str = "math"
    prompt: str | None = None
    """Its own instruction in prompts/; None: generate.prompt, on which the student is trained."""
    lm_eval: tuple[str, str] | None = None
    """The task of lm-evaluation-harness, and the prompt in prompts/ that equals it zero-shot."""
    samples: int = 4
    """Answers to each problem that DeepSeek-R1's authors drew, or 4."""
    id_columns: tuple[str, ...] = field(default=("id",))
    licence: str = "see the data set's card"
    rules: str = ""
    """What its authors ask of whoever publishes its text."""


def _maa(hub: str, published: Published, **more: Any) -> Benchmark:
    return Benchmark(hub, maths, published, licence="© MAA", rules=FEW_PROBLEMS, **more)


def _recent(row: Row) -> bool:
    """Within the months that DeepSeek-R1 is measured on."""
    return "2024-08-01" <= str(row.get("contest_date"))[:10] < "2025-02-01"


def _test(row: Row) -> bool:
    return row.get("split") in (None, "test")


BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k": Benchmark(
        "openai/gsm8k", maths, Published("Qwen2.5-Math-1.5B-Instruct", 0.848, "arXiv 2409.12122"),
        subset="main", also=("gsm8k_test",), licence="MIT", lm_eval=("gsm8k", "lm_eval/question")),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", maths, Published(R1_SMALL, 0.839, R1_PAPER), samples=16,
        also=("math_500",), id_columns=("id", "unique_id"), licence="MIT",
        lm_eval=("minerva_math500", "lm_eval/problem")),
    "aime24": _maa("Maxwell-Jia/AIME_2024", Published(R1_SMALL, 0.289, R1_PAPER), split="train",
                   samples=64, also=("aime2024", "aime_2024"), id_columns=("id", "ID"),
                   lm_eval=("aime24", "lm_eval/question")),
    "aime25": _maa("math-ai/aime25", Published(R1, 0.70, "the DeepSeek-R1-0528 card"),
                   samples=64, also=("aime2025", "aime_2025"),
                   lm_eval=("aime25", "lm_eval/question")),
    "amc23": _maa("math-ai/amc23", Published(R1_SMALL, 0.629, DEEPSCALER),
                  also=("amc2023", "amc_2023")),
    "minerva": Benchmark(
        "math-ai/minervamath", maths, Published(R1_SMALL, 0.265, DEEPSCALER),
        also=("minerva_math", "minervamath"), licence="CC BY-NC-SA 4.0 (MIT OpenCourseWare)",
        rules="MIT OpenCourseWare's licence allows no commercial use."),
    "olympiad": Benchmark(
        "Hothan/OlympiadBench", maths, Published(R1_SMALL, 0.433, DEEPSCALER),
        subset="OE_TO_maths_en_COMP", split="train",
        also=("olympiadbench", "olympiadbench_math_en"), licence="Apache-2.0"),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa", gpqa, Published(R1_SMALL, 0.338, R1_PAPER), subset="gpqa_diamond",
        split="train", samples=64, also=("gpqa",), kind="choice", prompt="choice",
        id_columns=("id", "Record ID"), licence="CC BY 4.0",
        rules="Its authors ask that no example be published in plain text or as an image.",
        lm_eval=("gpqa_diamond_cot_zeroshot", "lm_eval/gpqa")),
    "mmlu_pro": Benchmark(
        "TIGER-Lab/MMLU-Pro", mmlu_pro, Published(R1, 0.84, R1_PAPER), kind="choice",
        prompt="choice", id_columns=("id", "question_id"), licence="MIT",
        lm_eval=("mmlu_pro", "lm_eval/mmlu_pro")),
    "ifeval": Benchmark(
        "google/IFEval", ifeval, Published(R1, 0.833, f"{R1_PAPER}, prompts, strict"),
        split="train", kind="ifeval", prompt="plain", id_columns=("id", "key"),
        licence="Apache-2.0", lm_eval=("ifeval", "plain")),
    "humaneval": Benchmark(
        "openai/openai_humaneval", humaneval,
        Published("Qwen2.5-Coder-1.5B-Instruct", 0.707, "arXiv 2409.12186"), kind="code",
        prompt="function", id_columns=("id", "task_id"), licence="MIT",
        lm_eval=("humaneval_instruct", "lm_eval/humaneval")),
    "mbpp": Benchmark(
        "google-research-datasets/mbpp", mbpp,
        Published("Qwen2.5-Coder-1.5B-Instruct", 0.692, "arXiv 2409.12186, EvalPlus' 378 tasks"),
        subset="sanitized", wanted=_test, also=("mbpp_sanitized",), kind="code", prompt="program",
        id_columns=("id", "task_id"), licence="CC BY 4.0",
        lm_eval=("mbpp_instruct", "lm_eval/mbpp")),
    "livecodebench": Benchmark(
        "livecodebench/code_generation_lite", livecodebench,
        Published(R1_SMALL, 0.169, R1_PAPER), files=("test4.jsonl", "test5.jsonl"),
        wanted=_recent, kind="code", prompt="program", samples=8,
        id_columns=("id", "question_id"), licence="CC"),
}


def benchmark_row(name: str, row: Row, index: int, seed: int) -> dict[str, Any]:
    """Row `index`, from 0, of benchmark `name` in our columns: id, problem, answer, kind, meta."""
    one = BENCHMARKS[name]
    own = next((row[column] for column in one.id_columns if row.get(column) not in (None, "")),
               f"{name}-{index}")
    meta = row.get("meta")
    if isinstance(meta, str):
        row = {**row, "meta": json.loads(meta)}
    made = one.row(row, seed)
    return {"id": str(own), "kind": one.kind, "source": row.get("source") or one.hub, **made}


def local_file(name: str, folder: Path | None) -> Path | None:
    """The file in `folder` that stands in for benchmark `name`: NAME.jsonl, or another name of its.

    None if there is no folder. Raises UserError if the folder has no such file.
    """
    if folder is None:
        return None
    stems = (name, *BENCHMARKS[name].also)
    if not folder.expanduser().is_dir():
        raise UserError(f"runtime.benchmarks={folder} is no folder; name one, or leave it out to "
                        "use the hub")
    found = {file.name.removesuffix("".join(file.suffixes)): file
             for file in sorted(folder.expanduser().iterdir()) if data_suffix(file) in SUFFIXES}
    file = next((found[stem] for stem in stems if stem in found), None)
    if file is None:
        raise UserError(f"runtime.benchmarks={folder} has no file for {name}; put {name}.jsonl "
                        f"there ({' or '.join(stems)}, .jsonl, .json, .csv or .parquet), or leave "
                        "runtime.benchmarks out to use the hub")
    return file
