"""filter: judge every trace and say which go on to training; no row is ever dropped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.cluster.judging import judge_pool, signer
from pipeline.cluster.ray_nodes import check_cluster
from pipeline.config.experiment import Experiment
from pipeline.curate import reviews
from pipeline.curate import select as curate
from pipeline.curate.select import (
    BANDS,
    check_any_kept,
    decide,
    funnel,
    needs_reviews,
    summarise,
)
from pipeline.errors import UserError
from pipeline.judge import JudgePool, has_gold
from pipeline.judge.llm import LLMJudge
from pipeline.judge.models.scoring import check_judges
from pipeline.judge.table import apply_llm_judge, by_majority, count_restatements, judge_traces
from pipeline.prompts import render
from pipeline.stage import Counts
from pipeline.teacher.budget import check_budget
from pipeline.teacher.llm_judge import LLMJudgeClient, open_scorers
from pipeline.teacher.model_scores import scored
from pipeline.teacher.rewrite import Rewriter, with_rewrites


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write judged.parquet: every trace with verdict, pass rate, kept and the reason.

    Two passes over the traces, so that texts are never all in memory: one judges and gathers a
    few numbers a row, the other writes each trace beside its decision.
    """
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    said = _said(experiment)        # once: people may go on
    rewrites, asked = _rewritten(experiment, inputs, problems)
    decided, extra = _decided(experiment, inputs, problems, said, rewrites)
    check_any_kept(decided, experiment.filter)
    columns = [name for name in tables.Judged.columns()
               if name == "source" or name not in tables.Trace.columns()]
    columns = [name for name in columns if name in decided.columns]
    start = thinking = 0
    with tables.writer(tables.Judged, out / "judged.parquet") as writer:
        for batch in _traces(inputs, problems, said if experiment.filter.reviews.obey else None,
                             rewrites):
            beside = decided.select(columns)[start:start + len(batch)]
            writer.write(pl.concat([batch.drop("source"), beside], how="horizontal"))
            start += len(batch)
            thinking += int((beside["kept"] & (batch["thinking"].fill_null("") != "")).sum())
    if not thinking:
        print("filter: none of the traces kept holds any thinking, so a student would learn to "
              "answer without it; look at `limbeck show generate`, and see "
              "generate.teacher.thinking_column and generate.teacher.opened", file=sys.stderr)
    return _counts(decided, problems) | extra | asked


def preview(experiment: Experiment, inputs: Mapping[str, Path]) -> Any:
    """What filter would keep and why the rest would leave; writes nothing and asks no model.

    `inputs` maps "prepare" and "generate" to their artifacts. Where it also has "filter", an
    artifact of any filter over the same traces, its verdicts are used and nothing is judged.
    Returns the frame of pipeline.curate.select.funnel.
    """
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    rewrites, _ = _rewritten(experiment, inputs, problems, spend=False)
    return funnel(_decided(experiment, inputs, problems, _said(experiment), rewrites,
                           spend=False)[0])


def check(experiment: Experiment) -> None:
    """Refuse an expression that cannot work before any work is done."""
    curate.check_filter(experiment.filter)
    check_cluster(experiment.runtime)
    if experiment.filter.judges:
        judges = experiment.filter.judges
        check_judges(judges, experiment.runtime.for_judges(judges))
    reached = {"rewrite": "runtime.judges.rewrite", "llm_judge": "runtime.llm_judge"}
    runtimes: dict[str, Any] = {}
    if experiment.filter.llm_judge:
        runtimes["llm_judge"] = experiment.runtime.llm_judge
    if experiment.filter.rewrite:
        runtimes |= experiment.runtime.for_judges(["rewrite"])
        render(experiment.filter.rewrite.prompt)
    for name, runtime in runtimes.items():
        model = getattr(experiment.filter, name)
        if not runtime.base_url and not model.is_local():
            raise UserError(f"no address for filter.{name}: set {reached[name]}.base_url, e.g. "
                            "https://api.deepseek.com/v1")
        runtime.api_key()
        check_budget(model, runtime, model.sampling)


def _decided(experiment: Experiment, inputs: Mapping[str, Path], problems: Any,
             said: list[reviews.Line] | None, rewrites: Any,
             spend: bool = True) -> tuple[Any, Counts]:
    """Every trace without its texts, decided, and what models beside the rules had to say."""
    check(experiment)
    config = experiment.filter
    texts = dict(problems.select("problem_id", "problem").rows())
    sources = dict(problems.select("problem_id", "source").rows())
    runtime = experiment.runtime
    opened: Any = open_scorers(config.judges, runtime.for_judges(config.judges), runtime.traces,
                               spend) if config.judges else nullcontext({})
    with opened as models, signer(runtime.cluster if config.signs() else None) as sign:
        found = [summarise(scored(batch if said is None else reviews.review_columns(
                     batch, texts, said, config.reviews.need), config, models, texts, sources),
                     config, sign)
                 for batch in _judged(experiment, inputs, problems, said, rewrites)]
    if not found:
        raise UserError("there are no traces to filter; look at `limbeck show generate`")
    table = pl.concat(found)
    if table.select("problem_id", "sample").is_duplicated().any():
        raise UserError("a trace occurs twice in the traces; delete the generate artifact")
    extra: Counts = {}
    if "filter" not in inputs:
        table, extra = _ask_llm_judge(experiment, table, problems, spend)
        table = _majority(experiment, table, problems)
    decided = decide(table, config, sources)
    if asked := {name: client.counts for name, (_, client) in models.items() if client}:
        extra["judges"] = asked
    if config.reviews.obey:
        extra["reviews"] = _obeyed(decided)
    return decided, extra


def _said(experiment: Experiment) -> list[reviews.Line] | None:
    """What people said of traces; None if it decides nothing here."""
    if not needs_reviews(experiment.filter):
        return None
    return reviews.read_reviews(reviews.reviews_path(experiment.runtime.traces))


def _traces(inputs: Mapping[str, Path], problems: Any,
            said: list[reviews.Line] | None, rewrites: Any) -> Iterator[Any]:
    """Batches of the teacher's traces, as rewritten, and one of those that people edited."""
    for batch in tables.batches(tables.Trace, inputs["generate"] / "traces.parquet"):
        yield with_rewrites(batch, rewrites)
    if said and (rows := reviews.edited_traces(
            dict(problems.select("problem_id", "problem").rows()), said)):
        yield tables.table_of(tables.Trace, rows)


def _rewritten(experiment: Experiment, inputs: Mapping[str, Path], problems: Any,
               spend: bool = True) -> tuple[Any, Counts]:
    """The texts that filter.rewrite's model wrote and the judge accepts; None without it."""
    config = experiment.filter
    if config.rewrite is None or "filter" in inputs:
        return None, {}
    check(experiment)
    client = LLMJudgeClient(config.rewrite, experiment.runtime.for_judges(["rewrite"])["rewrite"],
                            experiment.runtime.traces, spend,
                            cluster=experiment.runtime.cluster)
    rewriter = Rewriter(config, client)
    with closing(client), JudgePool(experiment.runtime.judge_workers) as pool:
        found = [rewriter(batch, problems, pool)
                 for batch in _judged(experiment, inputs, problems, None, None)]
    return pl.concat(found), {"rewrite": {**rewriter.counts, **client.counts}}


def _obeyed(decided: Any) -> Counts:
    """What became of the traces that people looked at."""
    good, bad = (decided.filter(review=word) for word in ("good", "bad"))
    return {"good": len(good), "bad": len(bad), "good_not_kept": int((~good["kept"]).sum()),
            "edited": int((decided["sample"] >= reviews.EDITED_FROM).sum())}


def _ask_llm_judge(experiment: Experiment, table: Any, problems: Any,
                   spend: bool) -> tuple[Any, Counts]:
    """The judged table after filter.llm_judge, and its share and cost."""
    config, runtime = experiment.filter, experiment.runtime
    if config.llm_judge is None:
        return table, {}
    asker = LLMJudgeClient(config.llm_judge, runtime.llm_judge, runtime.traces, spend,
                           cluster=runtime.cluster)
    model = LLMJudge(asker)
    with_gold = problems.filter(problems["answer"].str.strip_chars() != "")
    with closing(asker):
        table = apply_llm_judge(table, with_gold, model)
    by_model = table.filter(table["grader"] == "llm")
    return table, {"llm_judge": {"decided": len(by_model), "open": model.counts["open"],
                                 "share": len(by_model) / len(table),
                                 "verdicts": _times(by_model["verdict"]), **asker.counts}}


def _majority(experiment: Experiment, table: Any, problems: Any) -> Any:
    """The judged table after filter.majority."""
    if experiment.filter.majority is None:
        return table
    without = [row for row in problems.iter_rows(named=True) if not has_gold(row)]
    with JudgePool(experiment.runtime.judge_workers) as pool:
        return by_majority(table, without, experiment.filter.majority, pool)


def _judged(experiment: Experiment, inputs: Mapping[str, Path], problems: Any,
            said: list[reviews.Line] | None, rewrites: Any) -> Iterator[Any]:
    """Batches of traces with their verdicts: an earlier filter's, or new ones."""
    said = said if experiment.filter.reviews.obey else None
    if "filter" in inputs:
        for batch in tables.batches(tables.Judged, inputs["filter"] / "judged.parquet"):
            yield batch.drop("kept", "reason")
        return
    with judge_pool(experiment.runtime) as pool:
        for batch in _traces(inputs, problems, said, rewrites):
            names = batch["problem_id"].unique().implode()
            yield judge_traces(batch, problems.filter(problems["problem_id"].is_in(names)), pool)


def _counts(decided: Any, problems: Any) -> Counts:
    """What the manifest keeps; verdicts and bands are of problems with a gold."""
    bare = {row["problem_id"] for row in problems.iter_rows(named=True) if not has_gold(row)}
    without, gold = (decided.filter(decided["problem_id"].is_in(bare) == where)
                     for where in (True, False))
    kept = decided.filter(decided["kept"])
    bands = dict(gold.unique("problem_id")["difficulty"].value_counts().rows())
    counts = {"traces": len(decided), "kept": len(kept),
              "kept_not_correct": int((kept["verdict"] != "correct").sum()),
              "kept_restated": count_restatements(kept, problems),
              "problems_with_a_trace": kept["problem_id"].n_unique(),
              "verdicts": _times(gold["verdict"]), "traces_usd": decided["cost_usd"].sum(),
              "rejected": _times(decided.filter(~decided["kept"])["reason"]),
              "kept_by_source": dict(kept["source"].value_counts().rows()),
              "problems_by_difficulty": {band: bands.get(band, 0) for band in (*BANDS, None)
                                         if band or None in bands}}
    if bare:
        agreed = without.filter(without["grader"] == "majority")
        counts["without_gold"] = {"problems": len(bare), "agreed": agreed["problem_id"].n_unique(),
                                  "traces": len(without), "kept": int(without["kept"].sum()),
                                  "verdicts": _times(without["verdict"])}
    return counts


def _times(column: Any) -> dict[str, int]:
    return dict(column.value_counts(sort=True).rows())


def summary(counts: Counts) -> str:
    said = f"kept {counts['kept']:,} of {counts['traces']:,} traces " \
           f"({counts['kept'] / max(counts['traces'], 1):.1%})"
    if wrong := counts.get("kept_not_correct"):
        said += f"; {wrong:,} of these are not correct (filter.keep does not ask for it)"
    if people := counts.get("reviews"):
        said += (f"; people called {people['good']:,} good and {people['bad']:,} bad and edited "
                 f"{people['edited']:,}")
    if restated := counts.get("kept_restated"):
        said += f"; {restated:,} only repeat the problem's formula as their answer"
    if llm := counts.get("llm_judge"):
        said += (f"; the LLM judge decided {llm['decided']:,} ({llm['share']:.1%}, "
                 f"${llm['cost_usd']:,.4f}), {llm['open']:,} stay open")
    if made := counts.get("rewrite"):
        said += (f"; {made['rewritten']:,} were rewritten (${made['cost_usd']:,.4f}), "
                 f"{made['judged_worse']:,} judged worse than their originals and "
                 f"{made['unreadable']:,} not in two parts stay as they were")
    for name, asked in counts.get("judges", {}).items():
        said += (f"; {name} was asked {asked['asked']:,} questions now "
                 f"(${asked['cost_usd']:,.4f} in all)")
    if bare := counts.get("without_gold"):
        agreed = f"; {bare['agreed']:,} of {bare['problems']:,} problems without a gold have a " \
                 f"majority answer ({bare['kept']:,} traces kept)"
        said += agreed if bare["agreed"] or not bare["kept"] else \
            f"; {bare['kept']:,} are of {bare['problems']:,} problems without a gold"
    usd = counts.get("traces_usd", 0.0) / max(counts["kept"], 1)
    return said + (f"; ${usd:,.4f} of teacher for each kept" if usd else "")
