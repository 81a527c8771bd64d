"""evaluate: every model of the run on every benchmark, sampled k times and judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.problems import EvaluationSet
from pipeline.errors import UserError
from pipeline.problems.sources import evaluation_sets, is_file
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage

BEFORE = {"sft": "untrained", "rl": "sft"}
STAGE_OF = {"untrained": "student", "sft": "sft", "rl": "rl", "teacher": "generate"}
ENDLESS = 0.5
"""Share of answers cut off above which a score says little of the model."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write completions.parquet (every sample, judged) and scores.json."""
    import json

    import polars as pl

    from pipeline.evaluate.metrics import paired_gain, summarise

    scores: dict[str, dict[str, Any]] = {}
    tables = []
    benchmarks = _benchmarks(experiment, inputs)
    seen: dict[str, dict[str, list[dict]]] = {}
    for model in experiment.evaluate.models:
        seen[model] = _judged(experiment, inputs, model, benchmarks)
        for benchmark, judged in seen[model].items():
            found: dict[str, Any] = summarise(judged)
            scores.setdefault(model, {})[benchmark] = found
            if (base := BEFORE.get(model)) in seen:
                found[f"gain_over_{base}"] = paired_gain(judged, seen[base][benchmark])
            tables.append(pl.DataFrame(judged, infer_schema_length=None).with_columns(
                model=pl.lit(model), benchmark=pl.lit(benchmark)))
    pl.concat(tables, how="diagonal_relaxed").write_parquet(out / "completions.parquet")
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    cost = sum(float(table["cost_usd"].sum()) for table in tables)
    return {"scores": scores, "cost_usd": cost}


def _benchmarks(experiment: Any, inputs: Mapping[str, Path]) -> dict[str, list[dict]]:
    """Problem rows of each benchmark, by its short name."""
    from pipeline import tables as records
    from pipeline.problems.sources import short_names

    sets, out = _sets(experiment), {}
    for name, short in short_names(sets).items():
        if name == "heldout":
            table = records.read(records.Problem, inputs["prepare"] / "heldout.parquet")
            rows = table.to_dicts()
        else:
            rows = _loaded(name, sets[name], experiment.seed)
        out[short] = rows[:experiment.evaluate.limit]
    return out


def _sets(experiment: Any) -> dict[str, EvaluationSet]:
    return evaluation_sets(experiment.evaluate.benchmarks, "evaluate.benchmarks")


def _loaded(name: str, one: EvaluationSet, seed: int) -> list[dict]:
    """The problem rows of a file or hub id; a UserError where they cannot be told apart or judged.
    """
    from pipeline.judge import Problem, check_gold, has_gold, needs_answer
    from pipeline.problems.sources import load_rows

    rows = load_rows(one, seed, needs_answer)
    if len({row["problem_id"] for row in rows}) < len(rows):
        raise UserError(f"two problems of {name} have the same id; make ids unique")
    for row in rows:
        if not has_gold(row):
            raise UserError(f"problem {row['problem_id']} of {name} has no answer to judge by; "
                            "write it, or take the problem out")
        if not needs_answer(row["kind"]):
            check_gold(Problem.from_row(row))
    return rows


def _judged(experiment: Any, inputs: Mapping[str, Path], model: str,
            benchmarks: Mapping[str, list[dict]]) -> dict[str, list[dict]]:
    """Each benchmark's samples of `model`, one dict each: completion, tokens, judgement."""
    from pipeline.judge import JudgePool

    asked = {name: chats(experiment.generate.prompt, rows) for name, rows in benchmarks.items()}
    ask = _ask_teacher if model == "teacher" else _ask_student
    sampled = ask(experiment, inputs, model, asked)
    with JudgePool(experiment.runtime.judge_workers) as pool:
        return {name: _rows(pool, model, {row["problem_id"]: row for row in rows}, sampled[name])
                for name, rows in benchmarks.items()}


def _rows(pool: Any, model: str, by_id: Mapping[str, dict], sampled: list) -> list[dict]:
    from pipeline.judge import Problem
    from pipeline.judge.table import is_restatement, judge_all, votes

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


def _ask_student(experiment: Any, inputs: Mapping[str, Path], model: str,
                 asked: Asked) -> dict[str, list[tuple]]:
    """All benchmarks in one go: an engine starts once."""
    from pipeline.student.sample import sample
    from pipeline.student.tiny import resolve

    config = experiment.evaluate
    flat = [(benchmark, name) for benchmark, these in asked.items() for name in these]
    groups = sample(resolve(inputs[STAGE_OF[model]]), str(inputs["student"] / "tokenizer"),
                    [asked[benchmark][name] for benchmark, name in flat], config.samples,
                    config.sampling, experiment.seed, experiment.runtime.engine())
    out: dict[str, list[tuple]] = {benchmark: [] for benchmark in asked}
    for (benchmark, name), group in zip(flat, groups, strict=True):
        out[benchmark] += [(name, index, completion, tokens, 0.0)
                           for index, (completion, tokens) in enumerate(group)]
    return out


def _ask_teacher(experiment: Any, inputs: Mapping[str, Path], model: str,
                 asked: Asked) -> dict[str, list[tuple]]:
    from pipeline.judge.table import as_completion
    from pipeline.teacher.ask import ask_teacher

    out: dict[str, list[tuple]] = {}
    for benchmark, these in asked.items():
        frames: list[Any] = []
        ask_teacher(experiment, these, experiment.evaluate.samples, frames.append)
        out[benchmark] = [(row["problem_id"], row["sample"], as_completion(row),
                           row["completion_tokens"], row["cost_usd"])
                          for traces in frames for row in traces.iter_rows(named=True)]
    return out


def needs(experiment: Any) -> tuple[str, ...]:
    stages = {STAGE_OF[model] for model in experiment.evaluate.models}
    return ("prepare", *sorted(stages - {"prepare"} | {"student"}))


def summary(counts: Counts) -> str:
    """The table's headline: avg@k of each model on each benchmark, and what spoils it."""
    shown = [(model, name, s) for model, by in counts["scores"].items() for name, s in by.items()]
    scores = [f"{model} {name} {100 * s['avg']:.1f} [{100 * s['ci_low']:.1f}, "
              f"{100 * s['ci_high']:.1f}]" for model, name, s in shown if "avg" in s]
    endless = [f"{s['cut_off']:.0%} of {model}'s answers on {name} did not end: raise "
               "evaluate.sampling.max_tokens, or look at completions.parquet"
               for model, name, s in shown if s.get("cut_off", 0) > ENDLESS]
    return "; ".join(scores + endless)


def files(experiment: Any) -> tuple[Path, ...]:
    named = tuple(Path(one.problems) for one in _sets(experiment).values() if is_file(one.problems))
    return (prompt_path(experiment.generate.prompt), *named)


def check(experiment: Any) -> None:
    """Refuse what cannot be measured before any model is trained for it."""
    from difflib import get_close_matches

    teacher = experiment.generate.teacher
    if "teacher" in experiment.evaluate.models and teacher.type == "file":
        raise UserError(f"generate.teacher is a file of traces ({teacher.traces}), which answers "
                        "nothing new; leave `teacher` out of evaluate.models")
    for name, one in _sets(experiment).items():
        if name == "heldout" and not experiment.prepare.held_out:
            raise UserError("evaluate.benchmarks names heldout, and prepare.held_out=0 keeps no "
                            "problem for it; raise it, or name problem files")
        if is_file(one.problems):
            _loaded(name, one, experiment.seed)
        elif name != "heldout" and get_close_matches(name, ["heldout"]):
            raise UserError(f"evaluate.benchmarks: there is no {name!r}; did you mean heldout?")


STAGE = Stage(name="evaluate", run=run, check=check, needs=needs, files=files, summary=summary,
              version=6)
