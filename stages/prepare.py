"""prepare: problems with checked gold answers, and a held-out set that shares none of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipeline import tables as records
from pipeline.config.experiment import Experiment
from pipeline.config.problems import EvaluationSet, PrepareConfig, Source
from pipeline.curate.contamination import Evaluation, contamination
from pipeline.curate.near_duplicates import near_duplicates, signatures
from pipeline.curate.normalise import same_text_key
from pipeline.curate.shares import check_reachable, traces_a_problem
from pipeline.errors import UserError
from pipeline.judge import Problem, check_gold, has_gold, judge_answer, needs_answer
from pipeline.judge.kinds import KINDS, is_open, kind_name
from pipeline.judge.user_judge import is_user_kind, load_verifier
from pipeline.problems.benchmarks import BENCHMARKS
from pipeline.problems.files import is_small
from pipeline.problems.sources import evaluation_sets, is_file, load_rows, short_names
from pipeline.progress import progress
from pipeline.stage import Counts


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write problems.parquet (train), heldout.parquet, and removed.parquet if any were removed."""
    config = experiment.prepare
    loaded = [row for name, one in config.sets().items()
              for row in _rows_of(name, one, experiment.seed)]
    rows, again = _distinct(loaded)
    _say_what_contradicts(again)
    _refuse_set_of_repeats(rows, again)
    good = _check_golds(rows, config)
    good, repeats = _drop_near_duplicates(good, config.near_duplicates)
    golds = sum(map(has_gold, good))
    tables = _held_out(good, config)
    if config.sources:
        _check_enough(tables["problems"], experiment)
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


def _rows_of(name: str, source: Source, seed: int) -> list[dict]:
    """The rows of a problem set; of one of several under its name, with ids of its own."""
    rows = load_rows(source, seed, needs_answer)
    return rows if not name else [
        {**row, "source": name, "problem_id": f"{name}/{row['problem_id']}"} for row in rows]


def _held_out(good: list[dict], config: PrepareConfig) -> dict[str, list[dict]]:
    """heldout and problems: of each set those with a usable answer are held out first.

    Raises UserError if a set has too few; those of kind open need no answer.
    """
    out: dict[str, list[dict]] = {"heldout": [], "problems": []}
    for name, one in config.sets().items():
        rows = [row for row in good if not name or row["source"] == name]
        rows.sort(key=has_gold, reverse=True)
        wanted = getattr(one, "held_out", 0)
        usable = sum(has_gold(row) or is_open(row["kind"]) for row in rows)
        if len(rows) <= wanted or usable < wanted:
            key = f"held_out={wanted} of prepare.sources" if name else \
                f"prepare.held_out={wanted}"
            raise UserError(f"{name or config.problems} has {usable} problems with a usable answer "
                            f"and {key} asks for as many; lower it")
        out["heldout"] += rows[:wanted]
        out["problems"] += rows[wanted:]
    return out


def _check_enough(rows: list[dict], experiment: Experiment) -> None:
    """Raise UserError if a source has too few problems for what is to be kept of it."""
    problems = Counter(row["source"] for row in rows)
    most = traces_a_problem(experiment)
    check_reachable({name: problems[name] * most for name in experiment.filter.sources},
                    experiment.filter, "could come from its problems")


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


def _refuse_set_of_repeats(rows: list[dict], again: list[tuple[dict, dict]]) -> None:
    """Raise UserError if every problem of a set is a repeat."""
    left = {row["source"] for row in rows}
    for first, row in again:
        if row["source"] not in left:
            raise UserError(f"every problem of prepare.sources.{row['source']} is in the sources "
                            f"before it too, the first in {first['source']}; remove one of them")


def _check_golds(rows: list[dict], config: PrepareConfig) -> list[dict]:
    good = []
    with progress("checking gold answers", len(rows)) as advance:
        for row in rows:
            advance(1)
            if not has_gold(row) and (is_open(row["kind"])
                                      or _source_of(row, config).answer_optional):
                good.append(row)
                continue
            judgement = check_gold(Problem.from_row(row))
            if judgement.score == 1.0:
                good.append(row)
            elif is_user_kind(row["kind"]):
                raise UserError(f"the verifier of problem {row['problem_id']!r} gives no verdict "
                                f"on its gold answer ({judgement.verdict}): {judgement.grader}")
            elif config.bad_gold == "stop":
                raise UserError(f"the gold answer {row['answer']!r} of problem "
                                f"{row['problem_id']!r} fails its own check "
                                f"({judgement.verdict}); fix it, give it kind text if it is "
                                "prose, or set prepare.bad_gold=drop")
    return good


def _source_of(row: dict, config: PrepareConfig) -> Source:
    """The problem set that `row` came from."""
    return config.sets().get(row["source"], config) if config.sources else config


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
    """Refuse benchmarks, kinds that no judge knows, columns that are not there, holding out all
    there is, and shares that the sources' limits cannot meet.
    """
    config = experiment.prepare
    _evaluation_sets(config)
    known = {name: _check_set(name, one, experiment) for name, one in config.sets().items()}
    if config.sources:
        most = traces_a_problem(experiment)
        check_reachable({name: count * most for name, count in known.items() if count is not None},
                        experiment.filter, "could come from its problems")


def _check_set(name: str, one: Source, experiment: Experiment) -> int | None:
    """The most problems that a set leaves for training, if known. Raises UserError for a bad one.
    """
    where = f"prepare.sources: {name}: " if name else "prepare."
    if one.problems in BENCHMARKS:
        raise UserError(f"{where}problems={one.problems} is a benchmark, whose score would mean "
                        "nothing after training on it; name a training set (openai/gsm8k, ...), "
                        "or keep it for evaluate.benchmarks")
    held_out = getattr(one, "held_out", 0)
    if is_user_kind(one.kind):
        load_verifier(one.kind, f"{where}kind")
    elif kind_name(one.kind) not in KINDS:
        raise UserError(f"{where}kind={one.kind!r} is no kind; there are {', '.join(KINDS)}, and "
                        "path/to/file.py:function for your own")
    if one.limit is not None and one.limit <= held_out:
        raise UserError(f"{where}limit={one.limit} leaves no problem beside prepare.held_out="
                        f"{held_out}; lower the second or raise the first")
    if is_file(one.problems) and is_small(one.problems):
        rows = load_rows(one, experiment.seed, needs_answer)
        if len(rows) <= held_out:
            raise UserError(f"{one.problems} has {len(rows):,} problems and prepare.held_out="
                            f"{held_out} asks for as many; lower it")
        return len(rows) - held_out
    return one.limit and one.limit - held_out
