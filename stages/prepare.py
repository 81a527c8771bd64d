"""prepare: problems with checked gold answers, and a held-out set that shares none of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipeline import tables as records
from pipeline.config.experiment import Experiment
from pipeline.config.problems import EvaluationSet, PrepareConfig
from pipeline.curate.contamination import Evaluation, contamination
from pipeline.curate.near_duplicates import near_duplicates, signatures
from pipeline.curate.normalise import same_text_key
from pipeline.errors import UserError
from pipeline.judge import Problem, check_gold, has_gold, judge_answer, needs_answer
from pipeline.judge.kinds import KINDS, kind_name
from pipeline.problems.benchmarks import BENCHMARKS
from pipeline.problems.files import is_small
from pipeline.problems.sources import evaluation_sets, is_file, load_rows, short_names
from pipeline.progress import progress
from pipeline.stage import Counts


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write problems.parquet (train), heldout.parquet, and removed.parquet if any were removed."""
    config = experiment.prepare
    loaded = load_rows(config, experiment.seed, needs_answer)
    rows, again = _distinct(loaded)
    _say_what_contradicts(again)
    good = _check_golds(rows, config)
    good, repeats = _drop_near_duplicates(good, config.near_duplicates)
    good.sort(key=has_gold, reverse=True)
    golds = sum(map(has_gold, good))
    if len(good) <= config.held_out or golds < config.held_out:
        raise UserError(f"{config.problems} has {golds} problems with a usable answer and "
                        f"prepare.held_out={config.held_out} asks for as many; lower it")
    tables = {"heldout": good[:config.held_out], "problems": good[config.held_out:]}
    tables["problems"], hits = _decontaminate(tables, config, experiment.seed,
                                             experiment.runtime.benchmarks)
    if removed := repeats + hits:
        _write_removed(removed, out / "removed.parquet")
    for name, table in tables.items():
        frame = records.table_of(records.Problem, [{**row, "split": name} for row in table])
        records.write(records.Problem, frame, out / f"{name}.parquet")
    _refuse_overlap(tables)
    _say_who_judges(tables["problems"], experiment)
    return {"problems": len(tables["problems"]), "held_out": len(tables["heldout"]),
            "duplicates": len(loaded) - len(rows),
            "without_gold": len(good) - golds, "bad_gold": len(rows) - len(good) - len(repeats),
            "near_duplicates": len(repeats), "contaminated": len(hits)}


def _distinct(rows: list[dict]) -> tuple[list[dict], list[tuple[dict, dict]]]:
    """The first of each set of rows that ask the same, and (first, later) of those after it; ids
    must be unique."""
    seen: dict[str, dict] = {}
    pairs = [(seen.setdefault(same_text_key(row["problem"]), row), row) for row in rows]
    ids = [row["problem_id"] for row in seen.values()]
    if len(set(ids)) != len(ids):
        double = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"two different problems have the id {double!r}; make ids unique")
    return list(seen.values()), [(first, row) for first, row in pairs if row is not first]


def _say_what_contradicts(again: list[tuple[dict, dict]]) -> None:
    """Warn if a repeated problem has two answers: one of them is wrong."""
    apart = [(first, row) for first, row in again
             if has_gold(first) and has_gold(row) and first["answer"] != row["answer"]
             and judge_answer(row["answer"], Problem.from_row(first)).score != 1.0]
    if apart:
        said = " and ".join(f"{row['problem_id']} says {row['answer']!r}" for row in apart[0])
        print(f"prepare: {len(apart):,} of the repeated problems disagree with the one kept "
              f"({said}); look which is right", file=sys.stderr)


def _check_golds(rows: list[dict], config: PrepareConfig) -> list[dict]:
    good = []
    with progress("checking gold answers", len(rows)) as advance:
        for row in rows:
            judgement = check_gold(Problem.from_row(row))
            advance(1)
            if judgement.score == 1.0 or (config.answer_optional and not has_gold(row)):
                good.append(row)
            elif config.bad_gold == "stop":
                raise UserError(f"the gold answer {row['answer']!r} of problem "
                                f"{row['problem_id']!r} fails its own check "
                                f"({judgement.verdict}); fix it, give it kind text if it is "
                                "prose, or set prepare.bad_gold=drop")
    return good


def _drop_near_duplicates(rows: list[dict],
                          threshold: float | None) -> tuple[list[dict], list[dict]]:
    """(rows kept, one record for each that nearly repeats an earlier one)."""
    if threshold is None:
        return rows, []

    of = near_duplicates(signatures([row["problem"] for row in rows]), threshold)
    removed = [{"problem_id": row["problem_id"], "reason": "near duplicate", "score": None,
                "against": rows[other]["problem_id"], "matched": rows[other]["problem"]}
               for row, other in zip(rows, of, strict=True) if other >= 0]
    return [row for row, other in zip(rows, of, strict=True) if other < 0], removed


def _decontaminate(tables: Mapping[str, list[dict]], config: PrepareConfig, seed: int,
                   folder: Path | None) -> tuple[list[dict], list[dict]]:
    """(training problems left, one record for each that an evaluation set holds)."""
    if not config.decontaminate:
        return tables["problems"], []

    texts: dict[str, str] = {}
    sets = _evaluation_sets(config)
    for name, short in short_names(sets).items():
        rows = tables["heldout"] if name == "heldout" else _distinct(
            load_rows(sets[name], seed, needs_answer, folder))[0]
        # Of a benchmark the question alone: the words around it stand in many problems.
        texts |= {f"{short}/{row['problem_id']}": json.loads(row["meta"] or "{}").get(
            "question", row["problem"]) for row in rows}
    train = tables["problems"]
    hits = contamination([row["problem"] for row in train], Evaluation(texts),
                         share=config.overlap)
    gone = {hit.row for hit in hits}
    left = [row for index, row in enumerate(train) if index not in gone]
    if not left:
        raise UserError(f"every training problem is in {', '.join(sets)}; "
                        "train on another set, or raise prepare.overlap")
    return left, [{"problem_id": train[hit.row]["problem_id"], "reason": hit.method,
                   "score": hit.score, "against": hit.against, "matched": hit.matched}
                  for hit in hits]


def _evaluation_sets(config: PrepareConfig) -> dict[str, EvaluationSet]:
    """prepare.decontaminate by name, each with its columns; answers are not read."""
    sets = evaluation_sets(config.decontaminate, "prepare.decontaminate", config.problem_column)
    return {name: one.model_copy(update={"answer_column": one.problem_column, "kind": one.kind,
                                         "answer_pattern": None}) for name, one in sets.items()}


def _write_removed(removed: list[dict], path: Path) -> None:
    """Each problem that was taken out, with why, against what, and the text that matched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(removed, infer_schema_length=None,
                 schema_overrides={"score": pl.Float64}).write_parquet(path)



def _refuse_overlap(tables: Mapping[str, list[dict]]) -> None:
    train = {same_text_key(row["problem"]) for row in tables["problems"]}
    shared = [row["problem_id"] for row in tables["heldout"]
              if same_text_key(row["problem"]) in train]
    if shared:
        raise UserError(f"{len(shared)} held-out problems are in the training set, "
                        f"first {shared[0]!r}")


def _say_who_judges(rows: list[dict], experiment: Experiment) -> None:
    """Say that tests decide, and if problems of kind text have no model to compare answers."""
    code = sum(row["kind"] == "code" for row in rows)
    if code and "kind" not in experiment.prepare.model_fields_set:
        print(f"prepare: {code:,} problems are of kind code: programs are run against their tests",
              file=sys.stderr)
    texts = sum(row["kind"] == "text" for row in rows)
    if texts and experiment.filter.llm_judge is None:
        print(f"prepare: {texts:,} problems are of kind text and no filter.llm_judge is named: "
              "only answers equal to their gold will be kept", file=sys.stderr)


def summary(counts: Counts) -> str:
    """How many problems there are, and how many were left out for what."""
    left_out = {name: counts[key] for key, name in (
        ("duplicates", "duplicates"), ("bad_gold", "with a bad gold answer"),
        ("near_duplicates", "near-duplicates"), ("contaminated", "contaminated"))}
    return f"{counts['problems']:,} problems and {counts['held_out']:,} held out" + "".join(
        f", {count:,} {name} left out" for name, count in left_out.items() if count)


def check(experiment: Experiment) -> None:
    """Refuse benchmarks, unknown kinds, columns that are not there, and holding out all."""
    config = experiment.prepare
    if config.problems in BENCHMARKS:
        raise UserError(f"prepare.problems={config.problems} is a benchmark, whose score would "
                        "mean nothing after training on it; name a training set (openai/gsm8k, "
                        "...), or keep it for evaluate.benchmarks")
    _evaluation_sets(config)
    if ":" not in config.kind and kind_name(config.kind) not in KINDS:
        raise UserError(f"prepare.kind={config.kind!r} is no kind; there are {', '.join(KINDS)}")
    if config.limit is not None and config.limit <= config.held_out:
        raise UserError(f"prepare.limit={config.limit} leaves no problem beside prepare.held_out="
                        f"{config.held_out}; lower the second or raise the first")
    if is_file(config.problems) and is_small(config.problems):
        rows = load_rows(config, experiment.seed, needs_answer)
        if len(rows) <= config.held_out:
            raise UserError(f"{config.problems} has {len(rows):,} problems and prepare.held_out="
                            f"{config.held_out} asks for as many; lower it")
