"""evaluate: every model of the run on every benchmark, sampled k times and judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import polars as pl

from pipeline import tables as records
from pipeline.cluster.judging import judge_pool
from pipeline.cluster.ray_nodes import check_cluster
from pipeline.config.experiment import Experiment
from pipeline.config.problems import EvaluationSet
from pipeline.config.trainer_keys import check_engine_keys
from pipeline.errors import LackingError, UserError
from pipeline.evaluate.budgets import asked_within, benchmark_of, budgets_of, named, nested
from pipeline.evaluate.drawing import Drawing, draw_on_cluster
from pipeline.evaluate.judge_scores import add_judge_scores, judge_summary
from pipeline.evaluate.judged import judged_rows
from pipeline.evaluate.metrics import difference, differences, summarise_seeds
from pipeline.evaluate.trackers import check_trackers, report_scores
from pipeline.judge import Problem, check_gold, has_gold, needs_answer
from pipeline.judge.kinds import is_open
from pipeline.judge.models.scoring import check_judges
from pipeline.judge.table import as_completion
from pipeline.judge.user_judge import is_user_kind, load_verifier
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
from pipeline.teacher.ask import ask_teacher
from pipeline.teacher.llm_judge import open_scorers
from pipeline.teacher.request_table import RequestTable
from stages.graph import MAKER

BEFORE = {"sft": "untrained", "rl": "sft"}
Seen = dict[str, dict[str, dict[int | None, list[dict]]]]
"""Judged samples by model, benchmark and training seed."""
MOST_TRUNCATED = 0.5
"""Share of truncated answers above which a score says little about the model."""


class Compared(NamedTuple):
    """A model to measure: its row in the table, its training seed, and where it lies."""

    name: str
    seed: int | None
    folder: Path | None
    """Its artifact; None is the teacher."""
    tokenizer: Path | None
    prompt: str


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write completions.parquet (every sample, judged), scores.json and differences.json.

    The judged samples of each model on each benchmark are kept in judged/ until all are there.
    """
    benchmarks, config = _benchmarks(experiment, inputs), experiment.evaluate
    seen: Seen = {}
    models, kept = compared(experiment, inputs), out / "judged"
    kept.mkdir(exist_ok=True)
    within = {model: named(benchmarks, config.budgets if model.folder else ()) for model in models}
    if experiment.runtime.cluster is not None:
        draw_on_cluster(experiment.runtime.cluster, (
            _drawing(experiment, model, _asked(experiment, model, within[model], kept))
            for model in models if model.folder), experiment.runtime.engine())
    for model in models:
        for benchmark, judged in _judged(experiment, model, within[model], kept).items():
            seen.setdefault(model.name, {}).setdefault(benchmark, {})[model.seed] = judged
    asked = _score_by_judges(experiment, seen)
    tables = [pl.DataFrame(judged, infer_schema_length=None).with_columns(
        model=pl.lit(name), benchmark=pl.lit(benchmark),
        **({"seed": pl.lit(seed, pl.Int64)} if experiment.seeds else {}))
        for name, by in seen.items() for benchmark, seeds in by.items()
        for seed, judged in seeds.items()]
    scores = {name: {benchmark: summarise_seeds(rows) for benchmark, rows in by.items()}
              for name, by in seen.items()}
    for name, by in seen.items() if experiment.evaluate.judges else ():
        for benchmark, seeds in by.items():
            scores[name][benchmark]["judges"] = judge_summary(
                [row for rows in seeds.values() for row in rows], list(experiment.evaluate.judges))
    for after, base in BEFORE.items():
        for benchmark, score in scores.get(after, {}).items() if base in scores else ():
            score[f"gain_over_{base}"] = difference(seen[after][benchmark],
                                                    seen[base][benchmark])["interval"]
    scores = {name: nested(by) for name, by in scores.items()}
    found = {benchmark: differences({name: by[benchmark] for name, by in seen.items()})
             for benchmark in benchmarks}
    pl.concat(tables, how="diagonal_relaxed").write_parquet(out / "completions.parquet")
    for name, content in (("scores", scores), ("differences", found)):
        (out / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    report_scores(experiment.runtime.trackers, experiment.name, scores,
                  config.model_dump(mode="json"))
    shutil.rmtree(kept)
    cost = sum(float(table["cost_usd"].sum()) for table in tables)
    return {"scores": scores, "cost_usd": cost, **asked}


def _score_by_judges(experiment: Experiment, seen: Seen) -> Counts:
    """Let evaluate.judges score every completion; returns what was asked and paid."""
    config, runtime = experiment.evaluate, experiment.runtime
    if not config.judges:
        return {}
    with open_scorers(config.judges, runtime.for_judges(config.judges), runtime.traces,
                      cluster=runtime.cluster) as found:
        add_judge_scores(config.judges, {name: score for name, (score, _) in found.items()},
                         {name: [[row for rows in seeds.values() for row in rows]
                                 for seeds in by.values()] for name, by in seen.items()})
    return {"judges": {name: client.counts for name, (_, client) in found.items() if client}}


def compared(experiment: Experiment, inputs: Mapping[str, Path]) -> list[Compared]:
    """The models of the table in order, each artifact of one once."""
    out: dict[tuple[str, Path | None], Compared] = {}
    variants = experiment.variants()
    for model in experiment.compared():
        step, _, stage = MAKER.get(model, model).rpartition(".")
        if model == "teacher":
            out[model, None] = Compared(model, None, None, None, experiment.generate.prompt)
            continue
        prefix = f"{step}." if step else ""
        folders = [_named(inputs, f"{prefix}{stage}", one.label) for one in variants]
        for one, folder in zip(variants, folders, strict=True):
            settings = one.experiment.all_steps()[step].experiment if step else one.experiment
            # What no variant changes is one row; what no seed changes has none.
            name = f"{model}@{one.values}" if one.values and len(set(folders)) > 1 else model
            mates = [place for other, place in zip(variants, folders, strict=True)
                     if other.values == one.values]
            seed = one.seed if len(set(mates)) > 1 else None
            out.setdefault((model, folder), Compared(
                name, seed, folder, _named(inputs, f"{prefix}student", one.label) / "tokenizer",
                settings.generate.prompt))
    return list(out.values())


def _named(inputs: Mapping[str, Path], name: str, label: str) -> Path:
    """The input `name` of a variant, which is the first variant's if it has none of its own."""
    return inputs.get(f"{name}@{label}", inputs.get(name, Path()))


def _benchmarks(experiment: Experiment, inputs: Mapping[str, Path]) -> dict[str, list[dict]]:
    """Problem rows of each benchmark, by its short name."""
    sets, out = _sets(experiment), {}
    for name, short in short_names(sets).items():
        if _is_held_out(name):
            table = records.read(records.Problem, inputs["prepare"] / "heldout.parquet")
            source = name.partition("/")[2]
            rows = [row for row in table.to_dicts() if source in ("", row["source"])]
        else:
            rows = _loaded(name, sets[name], experiment)
        out[short] = rows[:experiment.evaluate.limit]
    return out


def _is_held_out(name: str) -> bool:
    """Whether a benchmark is heldout, or heldout/NAME: the problems held out of one source."""
    return name.partition("/")[0] == "heldout"


def _sets(experiment: Experiment) -> dict[str, EvaluationSet]:
    return evaluation_sets(experiment.evaluate.benchmarks, "evaluate.benchmarks")


def _loaded(name: str, one: EvaluationSet, experiment: Experiment) -> list[dict]:
    """Load the problems of a file or hub id. Raises UserError if ids repeat or golds lack."""
    rows = load_rows(one, experiment.seed, needs_answer, experiment.runtime.benchmarks)
    if len({row["problem_id"] for row in rows}) < len(rows):
        raise UserError(f"two problems of {name} have the same id; make ids unique")
    for row in rows:
        if not has_gold(row) and not (is_open(row["kind"]) and experiment.evaluate.judges):
            raise UserError(f"problem {row['problem_id']} of {name} has no answer to judge by; "
                            "write it, or take the problem out")
        if not needs_answer(row["kind"]):
            check_gold(Problem.from_row(row))
    return rows


def _judged(experiment: Experiment, model: Compared, benchmarks: Mapping[str, list[dict]],
            kept: Path) -> dict[str, list[dict]]:
    """Each benchmark's samples of `model`, one dict each: completion, tokens, judgement.

    Those that an interrupted run left in the folder `kept` are read, the others written there.
    """
    files = {name: _judged_file(model, name, kept) for name in benchmarks}
    asked = _asked(experiment, model, benchmarks, kept)
    ask = _ask_student if model.folder else _ask_teacher
    if asked:
        with judge_pool(experiment.runtime) as pool:
            for name, sampled in ask(experiment, model, asked):
                by_id = {row["problem_id"]: row for row in benchmarks[name]}
                rows = judged_rows(pool, model.name, by_id, sampled)
                records.write_whole(pl.DataFrame(rows, infer_schema_length=None), files[name])
    return {name: pl.read_parquet(path).to_dicts() for name, path in files.items()}


def _judged_file(model: Compared, benchmark: str, kept: Path) -> Path:
    stem = model.name if model.seed is None else f"{model.name} {model.seed}"
    return kept / f"{quote(stem, safe=' =')} {quote(benchmark, safe='')}.parquet"


def _asked(experiment: Experiment, model: Compared, benchmarks: Mapping[str, list[dict]],
           kept: Path) -> dict[str, dict[str, list]]:
    """The chats of each benchmark whose judged samples are not in `kept`."""
    config = experiment.evaluate
    prompts = benchmark_prompts(config.benchmarks, config.prompts, model.prompt)
    budgets = budgets_of(benchmarks, config)
    return {name: asked_within(
                chats(prompts[benchmark_of(name)], rows, experiment.generate.prompts),
                budgets.get(name) if config.name_budget else None)
            for name, rows in benchmarks.items() if not _judged_file(model, name, kept).is_file()}


Asked = Mapping[str, Mapping[str, list]]


def _drawing(experiment: Experiment, model: Compared, asked: Asked) -> Drawing:
    """What a student is asked, and where its answers are kept."""
    config = experiment.evaluate
    assert model.folder is not None and model.tokenizer is not None
    drawn = samples_of(config.benchmarks, config.samples)
    return Drawing(model.folder.absolute(), model.tokenizer.absolute(),
                   experiment.runtime.folders()[0].absolute() / "samples", config.sampling,
                   experiment.seed, asked, {name: drawn[benchmark_of(name)] for name in asked},
                   budgets_of(asked, config))


def _ask_student(experiment: Experiment, model: Compared,
                 asked: Asked) -> Iterator[tuple[str, list[tuple]]]:
    """Yield (benchmark, samples) one after another, when all are kept."""
    drawing = _drawing(experiment, model, asked)
    drawing.draw(experiment.runtime.engine())
    yield from drawing.get()


def _ask_teacher(experiment: Experiment, model: Compared,
                 asked: Asked) -> Iterator[tuple[str, list[tuple]]]:
    samples = samples_of(experiment.evaluate.benchmarks, experiment.evaluate.samples)
    for benchmark, these in asked.items():
        frames: list[Any] = []
        ask_teacher(experiment, RequestTable.of(these, samples[benchmark]), frames.append)
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
    judged = [f"{judge} of {model} on {name} {one['mean']:.3g} "
              f"[{one['low']:.3g}, {one['high']:.3g}]"
              for model, name, s in shown for judge, one in s.get("judges", {}).items()]
    return "; ".join(scores + judged + truncated)



def check(experiment: Experiment) -> None:
    """Refuse what cannot be measured before any model is trained for it."""
    teacher = experiment.generate.teacher
    if "teacher" in experiment.compared() and teacher.type == "file":
        raise UserError(f"generate.teacher is a file of traces ({teacher.traces}), which answers "
                        "nothing new; leave `teacher` out of evaluate.models")
    check_cluster(experiment.runtime)
    check_trackers(experiment.runtime.trackers)
    check_engine_keys("runtime.vllm", experiment.runtime.vllm)
    judges = experiment.evaluate.judges
    check_judges(judges, experiment.runtime.for_judges(judges))
    sources = {f"heldout/{one.name}": one.held_out for one in experiment.prepare.sources}
    held_out = {"heldout": experiment.prepare.held_out, **sources}
    for name, one in _sets(experiment).items():
        if is_user_kind(one.kind):
            load_verifier(one.kind, f"evaluate.benchmarks: {name}: kind")
        if held_out.get(name) == 0:
            # No fault of those who train and never measure: heldout is the default.
            raise LackingError(f"evaluate.benchmarks names {name}, and prepare.held_out=0 keeps no "
                               "problem for it; raise it, or name problem files")
        if _is_near(name, one, experiment):
            _loaded(name, one, experiment)
        elif name not in (known := [*held_out, *BENCHMARKS]) and (
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
        if not _is_held_out(name) and not _is_near(name, one, experiment):
            _loaded(name, one, experiment)
