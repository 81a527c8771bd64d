"""evaluate: every model of the run on every benchmark, sampled k times and judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from pipeline import tables as records
from pipeline.config.experiment import Experiment
from pipeline.config.problems import EvaluationSet
from pipeline.errors import LackingError, UserError
from pipeline.evaluate.metrics import paired_gain, summarise
from pipeline.evaluate.trackers import check_trackers, report_scores
from pipeline.judge import JudgePool, Problem, check_gold, has_gold, needs_answer
from pipeline.judge.table import as_completion, is_restatement, judge_all, votes
from pipeline.problems.benchmarks import BENCHMARKS
from pipeline.problems.files import is_small
from pipeline.problems.sources import (
    benchmark_prompts,
    evaluation_sets,
    is_file,
    load_rows,
    samples_of,
    short_names,
)
from pipeline.prompts import chats
from pipeline.stage import Counts
from pipeline.student.sample import sample_sets
from pipeline.student.tiny import resolve
from pipeline.teacher.ask import ask_teacher
from stages.graph import MAKER

BEFORE = {"sft": "untrained", "rl": "sft"}
MOST_TRUNCATED = 0.5
"""Share of truncated answers above which a score says little about the model."""


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write completions.parquet (every sample, judged) and scores.json.

    The judged samples of each model on each benchmark are kept in judged/ until all are there.
    """
    scores: dict[str, dict[str, Any]] = {}
    tables = []
    benchmarks = _benchmarks(experiment, inputs)
    seen: dict[str, dict[str, list[dict]]] = {}
    for model in experiment.evaluate.models:
        seen[model] = _judged(experiment, inputs, model, benchmarks, out / "judged")
        for benchmark, judged in seen[model].items():
            found: dict[str, Any] = summarise(judged)
            scores.setdefault(model, {})[benchmark] = found
            if (base := BEFORE.get(model)) in seen:
                found[f"gain_over_{base}"] = paired_gain(judged, seen[base][benchmark])
            tables.append(pl.DataFrame(judged, infer_schema_length=None).with_columns(
                model=pl.lit(model), benchmark=pl.lit(benchmark)))
    pl.concat(tables, how="diagonal_relaxed").write_parquet(out / "completions.parquet")
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    report_scores(experiment.runtime.trackers, experiment.name, scores,
                  experiment.evaluate.model_dump(mode="json"))
    shutil.rmtree(out / "judged")
    cost = sum(float(table["cost_usd"].sum()) for table in tables)
    return {"scores": scores, "cost_usd": cost}


def _benchmarks(experiment: Experiment, inputs: Mapping[str, Path]) -> dict[str, list[dict]]:
    """Problem rows of each benchmark, by its short name."""
    sets, out = _sets(experiment), {}
    for name, short in short_names(sets).items():
        if name == "heldout":
            table = records.read(records.Problem, inputs["prepare"] / "heldout.parquet")
            rows = table.to_dicts()
        else:
            rows = _loaded(name, sets[name], experiment)
        out[short] = rows[:experiment.evaluate.limit]
    return out


def _sets(experiment: Experiment) -> dict[str, EvaluationSet]:
    return evaluation_sets(experiment.evaluate.benchmarks, "evaluate.benchmarks")


def _loaded(name: str, one: EvaluationSet, experiment: Experiment) -> list[dict]:
    """Load the problems of a file or hub id. Raises UserError if ids repeat or golds lack."""
    rows = load_rows(one, experiment.seed, needs_answer, experiment.runtime.benchmarks)
    if len({row["problem_id"] for row in rows}) < len(rows):
        raise UserError(f"two problems of {name} have the same id; make ids unique")
    for row in rows:
        if not has_gold(row):
            raise UserError(f"problem {row['problem_id']} of {name} has no answer to judge by; "
                            "write it, or take the problem out")
        if not needs_answer(row["kind"]):
            check_gold(Problem.from_row(row))
    return rows


def _judged(experiment: Experiment, inputs: Mapping[str, Path], model: str,
            benchmarks: Mapping[str, list[dict]], kept: Path) -> dict[str, list[dict]]:
    """Each benchmark's samples of `model`, one dict each: completion, tokens, judgement.

    Those that an interrupted run left in the folder `kept` are read, the others written there.
    """
    kept.mkdir(exist_ok=True)
    files = {name: kept / f"{model} {quote(name, safe='')}.parquet" for name in benchmarks}
    config = experiment.evaluate
    prompts = benchmark_prompts(config.benchmarks, config.prompts, experiment.generate.prompt)
    asked = {name: chats(prompts[name], rows) for name, rows in benchmarks.items()
             if not files[name].is_file()}
    ask = _ask_teacher if model == "teacher" else _ask_student
    if asked:
        with JudgePool(experiment.runtime.judge_workers) as pool:
            for name, sampled in ask(experiment, inputs, model, asked):
                by_id = {row["problem_id"]: row for row in benchmarks[name]}
                _keep(_rows(pool, model, by_id, sampled), files[name])
    return {name: pl.read_parquet(path).to_dicts() for name, path in files.items()}


def _keep(rows: list[dict], path: Path) -> None:
    """Write `rows` whole: a process killed at any time leaves no incomplete file of that name."""
    partial = path.with_suffix(".partial")
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(partial)
    partial.replace(path)


def _rows(pool: Any, model: str, by_id: Mapping[str, dict], sampled: list) -> list[dict]:
    problems = [Problem.from_row(by_id[one[0]]) for one in sampled]
    judgements = judge_all([one[2] for one in sampled], problems, pool, f"judging {model}")
    voted = votes(list(zip(problems, judgements, strict=True)), pool)
    return [{"problem_id": name, "sample": index, "thinking": completion.thinking,
             "answer": completion.answer, "completion_tokens": tokens, "cost_usd": cost,
             "score": judgement.score, "verdict": judgement.verdict,
             "extracted": judgement.extracted, "vote": vote,
             "restated": is_restatement(problem, judgement.score, judgement.extracted),
             "cut_off": completion.finish_reason == "length",
             "problem": by_id[name]["problem"], "gold": by_id[name]["answer"]}
            for (name, index, completion, tokens, cost), problem, judgement, vote
            in zip(sampled, problems, judgements, voted, strict=True)]


Asked = Mapping[str, Mapping[str, list]]


def _ask_student(experiment: Experiment, inputs: Mapping[str, Path], model: str,
                 asked: Asked) -> Iterator[tuple[str, list[tuple]]]:
    """Yield (benchmark, samples) one after another: an engine starts once."""
    config = experiment.evaluate
    sets = {benchmark: list(these.values()) for benchmark, these in asked.items()}
    for benchmark, groups in sample_sets(
            resolve(inputs[MAKER[model]]), str(inputs["student"] / "tokenizer"), sets,
            samples_of(config.benchmarks, config.samples), config.sampling, experiment.seed,
            experiment.runtime.engine()):
        yield benchmark, [(name, index, completion, tokens, 0.0)
                          for name, group in zip(asked[benchmark], groups, strict=True)
                          for index, (completion, tokens) in enumerate(group)]


def _ask_teacher(experiment: Experiment, inputs: Mapping[str, Path], model: str,
                 asked: Asked) -> Iterator[tuple[str, list[tuple]]]:
    samples = samples_of(experiment.evaluate.benchmarks, experiment.evaluate.samples)
    for benchmark, these in asked.items():
        frames: list[Any] = []
        ask_teacher(experiment, these, samples[benchmark], frames.append)
        yield benchmark, [(row["problem_id"], row["sample"], as_completion(row),
                           row["completion_tokens"], row["cost_usd"])
                          for traces in frames for row in traces.iter_rows(named=True)]


def summary(counts: Counts) -> str:
    """State avg@k of each model on each benchmark, and which were mostly truncated."""
    shown = [(model, name, s) for model, by in counts["scores"].items() for name, s in by.items()]
    scores = [f"{model} {name} {100 * s['avg']:.1f} [{100 * s['ci_low']:.1f}, "
              f"{100 * s['ci_high']:.1f}]" for model, name, s in shown if "avg" in s]
    truncated = [f"{s['cut_off']:.0%} of {model}'s answers on {name} were truncated: raise "
               "evaluate.sampling.max_tokens, or look at completions.parquet"
               for model, name, s in shown if s.get("cut_off", 0) > MOST_TRUNCATED]
    return "; ".join(scores + truncated)



def check(experiment: Experiment) -> None:
    """Refuse what cannot be measured before any model is trained for it."""
    teacher = experiment.generate.teacher
    if "teacher" in experiment.evaluate.models and teacher.type == "file":
        raise UserError(f"generate.teacher is a file of traces ({teacher.traces}), which answers "
                        "nothing new; leave `teacher` out of evaluate.models")
    check_trackers(experiment.runtime.trackers)
    for name, one in _sets(experiment).items():
        if name == "heldout" and not experiment.prepare.held_out:
            # No fault of those who train and never measure: heldout is the default.
            raise LackingError("evaluate.benchmarks names heldout, and prepare.held_out=0 keeps no "
                               "problem for it; raise it, or name problem files")
        if _is_near(name, one, experiment):
            _loaded(name, one, experiment)
        elif name not in (known := ["heldout", *BENCHMARKS]) and (
                close := get_close_matches(name, known, n=1)):
            raise UserError(f"evaluate.benchmarks: there is no {name!r}; did you mean {close[0]}?")


def _is_near(name: str, one: EvaluationSet, experiment: Experiment) -> bool:
    """Whether its problems are read in a moment."""
    if name in BENCHMARKS:
        return experiment.runtime.benchmarks is not None
    return is_file(one.problems) and is_small(one.problems)


def check_fully(experiment: Experiment) -> None:
    """Refuse data sets of the hub, and large files, that cannot be measured."""
    for name, one in _sets(experiment).items():
        if name != "heldout" and not _is_near(name, one, experiment):
            _loaded(name, one, experiment)
