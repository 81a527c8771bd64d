"""report.html: one page without scripts or requests; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined

from pipeline.config.experiment import Experiment
from pipeline.evaluate import plots
from pipeline.evaluate.budgets import curves
from pipeline.evaluate.examples import example_problems, rejected
from pipeline.evaluate.facts import facts, size
from pipeline.evaluate.judge_scores import judge_tables
from pipeline.evaluate.numbers import Points, curve, judged_columns
from pipeline.problems import benchmarks as registry
from pipeline.stage import stage_of
from pipeline.train.log import read_lines, read_log

TEMPLATE = Path(__file__).with_name("page.html.jinja")
# Apart, since the text of the page above is part of the report's key.
SECTIONS = Path(__file__).with_name("sections.html.jinja")
NAMES = {"untrained": "untrained", "sft": "after SFT", "rl": "after RL", "teacher": "teacher"}
# Graders that do not compare with a gold answer: the funnel shows their share of the kept traces.
NOT_BY_GOLD = {"llm": "of it by LLM judge", "majority": "of it by majority"}
BENCHMARKS = {"heldout": "held-out"}
CALLED = {"untrained": "the untrained student", "sft": "the student after SFT",
          "rl": "the student after RL"}
CURVES = {
    "sft": (("loss", "Loss", "cross-entropy of a trained token, in nats", False),
            ("mean_token_accuracy", "Token accuracy",
             "trained tokens that the student's likeliest guess gets right", True),
            ("grad_norm", "Gradient norm", "before clipping", False)),
    "rl": (("reward", "Reward", "weighted sum of the rewards, mean a completion", False),
           ("rewards/accuracy/mean", "Accuracy", "completions judged right", True),
           ("completions/mean_length", "Completion length", "tokens, mean", False),
           ("reflection", "Reflection markers",
            "“wait”, “hmm”, “let me check”, “try again” … a completion", False),
           ("frac_reward_zero_std", "Groups of equal reward",
            "groups that teach nothing: every sample earned the same", True),
           ("completions/clipped_ratio", "Cut off",
            "completions that reached the length limit", True),
           ("entropy", "Entropy", "of the next token, in nats", False),
           ("heldout/accuracy", "Held-out accuracy",
            "on held-out problems, one sample each", True))}
BINS = 30


def render(experiment: Experiment, inputs: Mapping[str, Path], numbers: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters |= {"percent": percent, "duration": duration, "points": points,
                            "named": named, "stage_of": stage_of,
                            "called": lambda name: CALLED.get(name, f"the model {name}")}
    models = numbers["models"]
    students = [name for name in ordered(models) if name != "teacher"]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=experiment.report.title, numbers=numbers, headline=headline(models),
        benchmarks=benchmarks(models), steps=[
            step_parts(step, stages, numbers) for step, stages in by_step(inputs).items()],
        students=students, cards=[name for name in ("teacher", *students)
                                  if name in models and name != "untrained"],
        samples=example_problems(inputs, students) if "evaluate" in inputs else [],
        slowest=max((stage["seconds"] for stage in numbers["stages"].values()), default=0) or 1)
    more = environment.from_string(SECTIONS.read_text(encoding="utf-8")).render(
        published=published(models), judged=judge_tables(models), names=NAMES,
        budgets=budget_curves(models), size=size, facts=facts(inputs), numbers=numbers)
    return page.replace("</main>", f"{more}</main>")


def budget_curves(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{benchmark: its plot, and each model's scores by budget} of what was measured in budgets."""
    return {BENCHMARKS.get(name, name): {
        "plot": plots.intervals(by, f"Accuracy on {name} by mean tokens"),
        "models": {model: {budget: row for budget, row in models[model][name]["budgets"].items()
                           if "avg" in row} for model in by}}
        for name, by in curves(models).items()}


def published(models: Mapping[str, Mapping[str, Any]]) -> dict[str, registry.Published]:
    """The published score of each benchmark by name that was measured."""
    return {name: registry.BENCHMARKS[name].published
            for name in dict.fromkeys(name for by in models.values() for name in by)
            if name in registry.BENCHMARKS}


def by_step(inputs: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """{step: {stage: folder}}, "" for stages of no step; of several seeds the first."""
    steps: dict[str, dict[str, Path]] = {}
    for name, folder in inputs.items():
        step, _, stage = name.rpartition(".")
        if "@" not in name:
            steps.setdefault(step, {})[stage] = folder
    return steps


def step_parts(step: str, stages: Mapping[str, Path], numbers: Mapping[str, Any]
               ) -> dict[str, Any]:
    """What the page shows of a step's traces and training."""
    traces = numbers.get("steps", {}).get(step, {}).get("traces") if step \
        else numbers.get("traces")
    costs = {stage: numbers["stages"].get(f"{step}.{stage}" if step else stage, {})
             for stage in ("generate", "filter")}
    return {"name": step, "funnel": funnel(traces), "lengths": length_histogram(stages),
            "said": " ".join(filter(None, (
                kept_price({"stages": costs, "traces": traces}).strip(),
                llm_share({"stages": costs}), "" if step else people(numbers.get("people"))))),
            "rejected": rejected(stages["filter"]) if "filter" in stages else {},
            "curves": {name: training_curves(name, stages) for name in CURVES},
            "alarms": read_lines(stages["rl"] / "alarms.jsonl") if "rl" in stages else []}


def ordered(models: Mapping[str, Any]) -> list[str]:
    """The models in the order of training, or as the config names those of steps."""
    return [name for name in dict.fromkeys([*NAMES, *models]) if name in models]


def named(model: str) -> str:
    """What a model is called: "after SFT", or STEP.STAGE."""
    return NAMES.get(model, model)


def points(value: float) -> str:
    """A difference of 0.0712 as `+7.1`."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float, digits: int = 1) -> str:
    """0.5874 as `58.7 %`, without a line break inside."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """`1.5 s`, `2 min 03 s` or `4 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    all_minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(all_minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole_seconds:02} s"


def headline(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The result on the first benchmark in one sentence; "" if nothing was judged."""
    first = next((name for by in models.values() for name in by), "")
    scores = {name: by[first] for name, by in models.items()
              if first in by and by[first].get("avg") is not None}
    if not scores:
        return ""
    parts = [f"{percent(scores[name]['avg'])} {named(name)}" for name in ordered(scores)
             if name != "teacher"]
    text = " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:])
    problems = next(iter(scores.values()))["problems"]
    teacher = percent(scores["teacher"]["avg"]) if "teacher" in scores else ""
    who = (f"the student solves {text}" + (f"; its teacher solves {teacher}" if teacher else "")
           if parts else f"the teacher solves {teacher}")
    return f"Of {problems:,} {BENCHMARKS.get(first, first)} problems, {who}."


def benchmarks(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table for each benchmark: its models in order, and the common axis of their intervals."""
    tables = []
    for name in dict.fromkeys(name for by in models.values() for name in by):
        rows = {model: models[model][name] for model in ordered(models) if name in models[model]}
        most = max((row.get("ci_high", 0.0) for row in rows.values()), default=0.0)
        top = next(t for t in (0.1, 0.2, 0.4, 1.0) if t >= min(most, 1.0))
        k = max(row["samples"] for row in rows.values())
        tables.append({"name": BENCHMARKS.get(name, name), "rows": rows, "top": top, "samples": k,
                       "problems": max(row["problems"] for row in rows.values())})
    return tables


def funnel(traces: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Bars from all traces down to those kept: each reason takes its share off the right end."""
    if not traces or not traces["total"]:
        return []
    total = remaining = traces["total"]
    rows = [{"name": "traces", "count": total, "start": 0.0, "share": 1.0, "kind": "all"}]
    for reason, count in traces["rejected"].items():
        remaining -= count
        rows.append({"name": reason.replace("_", " "), "count": count, "start": remaining / total,
                     "share": count / total, "kind": "rejected"})
    parts = {"kept": traces["kept"], **{name: traces["kept_by"][grader] for grader, name
                                        in NOT_BY_GOLD.items() if grader in traces["kept_by"]}}
    return rows + [{"name": name, "count": count, "start": 0.0, "share": count / total,
                    "kind": "kept"} for name, count in parts.items()]


def kept_price(numbers: Mapping[str, Any]) -> str:
    """The cost of all traces and of each one kept, in a sentence; "" if they were free."""
    usd = numbers["stages"].get("generate", {}).get("cost_usd")
    kept = (numbers.get("traces") or {}).get("kept")
    return f"All cost ${usd:,.2f}, ${usd / kept:,.4f} for each one kept. " if usd and kept else ""


def llm_share(numbers: Mapping[str, Any]) -> str:
    """The LLM judge's share of the decisions and its cost, in a sentence; "" without one."""
    llm = numbers["stages"].get("filter", {}).get("counts", {}).get("llm_judge")
    return "" if llm is None else (
        f"The rules left {llm['decided'] + llm['open']:,} traces open; the LLM judge decided "
        f"{llm['decided']:,}, {percent(llm['share'])} of all, for ${llm['cost_usd']:,.4f}.")


def people(said: Mapping[str, Any] | None) -> str:
    """What people who read traces said, in a sentence; "" if nobody did."""
    if said is None:
        return ""
    names = len(said["people"])
    text = (f"{names} {'person' if names == 1 else 'people'} read {said['seen']:,} of the traces"
            + (f" and differ from the judge on {said['differ']:,} of {said['compared']:,}"
               if said["compared"] else "") + ".")
    if said["alpha"] is not None:
        text += (f" On the {said['shared']:,} that several read they agree to Krippendorff's alpha "
                 f"{said['alpha']:.2f}.")
    return text


def length_histogram(inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """The mirrored histogram of kept and rejected traces' tokens, and both medians."""
    if "filter" not in inputs:
        return None
    table = judged_columns(inputs["filter"])
    width = max(1.0, plots.nice_step(max(table["completion_tokens"].to_list(), default=1), BINS))
    parts = {kept: table.filter(pl.col("kept") == kept)["completion_tokens"]
             for kept in (True, False)}
    label = "Length of kept and of rejected traces in tokens"
    bins = {kept: bin_counts(values, width) for kept, values in parts.items()}
    return {"plot": plots.mirrored(bins[True], bins[False], width, label),
            "kept": parts[True].median(), "rejected": parts[False].median()}


def bin_counts(values: pl.Series, width: float) -> list[int]:
    """How many of `values` fall into each bin of `width`, starting at 0."""
    counts = dict((values / width).floor().cast(pl.Int64).value_counts().iter_rows())
    return [counts.get(index, 0) for index in range(max(counts, default=-1) + 1)]


def training_curves(stage: str, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The curves of CURVES that the log of a training stage holds."""
    log = read_log(inputs[stage]) if stage in inputs else []
    curves: list[dict[str, Any]] = []
    shown: list[Points] = []
    for key, name, meaning, share in CURVES[stage]:
        points = curve(log, key)
        if points and points not in shown:  # with one reward, `reward` and its accuracy are equal
            shown.append(points)
            plot = plots.line(points, name, share)
            curves.append({"name": name, "meaning": meaning, "plot": plot})
    return curves
