"""The model card and the data set card: what it learnt from, its scores, how to run it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.experiment import Experiment
from pipeline.hub import lineage
from pipeline.hub.licences import DATA, MODELS, data_terms, restrictions, terms_of
from pipeline.problems.benchmarks import BENCHMARKS
from pipeline.prompts import render

TRAINING = {"sft": "supervised fine-tuning", "rl": "reinforcement learning"}


@dataclass(frozen=True)
class Origin:
    """What a run's artifacts say of where its model and its traces come from."""

    teacher: str
    base: str
    sources: dict[str, int]
    """Problems of each source."""
    manifests: Mapping[str, Mapping[str, Any]]
    with_texts: bool

    @property
    def problems(self) -> str:
        return "; ".join(f"{count:,} of {name} (licence: {data_terms(name).licence})"
                         for name, count in self.sources.items())

    @property
    def restrictions(self) -> list[str]:
        return restrictions(self.teacher, self.base, self.sources, self.with_texts)


def origin(experiment: Experiment, inputs: Mapping[str, Path], manifests: Mapping[str, Any],
           with_texts: bool) -> Origin:
    """Read where the run's problems, traces and weights come from."""
    problems = pl.read_parquet(inputs["prepare"] / "problems.parquet", columns=["source"])
    counts = problems["source"].value_counts(sort=True).iter_rows()
    teacher = experiment.generate.teacher
    return Origin(str(getattr(teacher, "model", None) or getattr(teacher, "traces", "")),
                  experiment.student.model, {Path(name).name if Path(name).is_file() else name:
                                             count for name, count in counts},
                  manifests, with_texts)


def model_card(experiment: Experiment, origin: Origin, scores: Mapping[str, Any],
               repo: str) -> str:
    """The text of README.md of a model repository. Scores are those of scores.json."""
    from huggingface_hub import ModelCardData

    config = experiment.evaluate
    sampling = config.sampling
    filtered = origin.manifests.get("filter", {}).get("counts", {})
    base = terms_of(origin.base, MODELS)
    data = ModelCardData(
        base_model=origin.base if origin.base != "tiny" else None,
        license=_licence(base.licence), library_name="transformers",
        pipeline_tag="text-generation", model_name=repo.rpartition("/")[2],
        tags=["limbeck", "reasoning", "distillation"],
        datasets=[name for name in origin.sources if "/" in name] or None,
        eval_results=list(_results(scores, sampling.model_dump())) or None)
    return _page("model_card.md.jinja", data, name=repo.rpartition("/")[2], repo=repo,
                 base=origin.base, teacher=origin.teacher, training=" and ".join(
                     text for stage, text in TRAINING.items() if stage in origin.manifests)
                 or "no training",
                 scores=[{"benchmark": name, **row} for name, row in scores.items()
                         if "avg" in row],
                 budgets=[{"benchmark": name, "budget": budget, **row}
                          for name, by in scores.items()
                          for budget, row in by.get("budgets", {}).items() if "avg" in row],
                 sampling=f"Sampled at temperature {sampling.temperature:g}, top-p "
                          f"{sampling.top_p:g}, at most {sampling.max_tokens:,} tokens.",
                 question="What is 17 times 24?", max_tokens=sampling.max_tokens,
                 temperature=sampling.temperature, top_p=sampling.top_p,
                 prompt=render(experiment.generate.prompt, problem="(the problem)"),
                 problems=origin.problems, teacher_licence=terms_of(origin.teacher,
                                                                    MODELS).licence,
                 base_licence=base.licence, kept=f"{filtered.get('kept', 0):,}",
                 traces=f"{filtered.get('traces', 0):,}", restrictions=origin.restrictions,
                 lineage=list(lineage.lines(origin.manifests)))


def _results(scores: Mapping[str, Any], sampling: Mapping[str, Any]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    for name, row in scores.items():
        if "avg" not in row:
            continue
        known = BENCHMARKS.get(name)
        yield EvalResult(
            task_type="text-generation", dataset_type=known.hub if known else name,
            dataset_name=name, dataset_config=known.subset if known else None,
            dataset_split=known.split if known else None, metric_type="pass@1",
            metric_name=f"avg@{row['samples']}", metric_value=row["avg"],
            metric_args={**sampling, "samples": row["samples"], "problems": row["problems"],
                         "ci_low": row["ci_low"], "ci_high": row["ci_high"]})


def data_card(experiment: Experiment, origin: Origin, kept: pl.DataFrame, judged: Path,
              repo: str) -> str:
    """The text of README.md of the repository of kept traces; `judged` holds all."""
    from huggingface_hub import DatasetCardData

    counts = origin.manifests.get("filter", {}).get("counts", {})
    licences = {data_terms(name).licence for name in origin.sources}
    data = DatasetCardData(
        license=_licence(min(licences) if len(licences) == 1 else "unknown"),
        language=[experiment.filter.language],
        task_categories=["text-generation"], pretty_name=repo.rpartition("/")[2],
        tags=["limbeck", "reasoning", "distillation"],
        configs=[{"config_name": "default", "data_files": "data/*.parquet"}])
    said = pl.read_parquet(judged, columns=["verdict"])["verdict"]
    verdicts = said.value_counts(sort=True).iter_rows()
    return _page("data_card.md.jinja", data, name=repo.rpartition("/")[2], rows=f"{len(kept):,}",
                 teacher=origin.teacher, problems_count=f"{kept['problem_id'].n_unique():,}",
                 traces=f"{counts.get('traces', 0):,}", problems=origin.problems,
                 teacher_licence=terms_of(origin.teacher, MODELS).licence,
                 keep=experiment.filter.keep or "filter.rules",
                 verdicts=", ".join(f"{count:,} {name}" for name, count in verdicts),
                 restrictions=origin.restrictions, lineage=list(lineage.lines(origin.manifests)))


def _licence(name: str) -> str:
    """A licence as the hub's cards name it."""
    known = {terms.licence for _, terms in (*MODELS, *DATA)}
    plain = name.lower()
    return plain if name in known and " " not in name and plain.isascii() \
        and name != "unknown" else "other"


def _page(template: str, data: Any, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              autoescape=False)
    return f"---\n{data.to_yaml()}\n---\n\n{environment.from_string(text).render(**values)}\n"


def kept_traces(inputs: Mapping[str, Path]) -> pl.DataFrame:
    """The kept traces with their problems, one row each."""
    judged = pl.scan_parquet(inputs["filter"] / "judged.parquet").filter(pl.col("kept"))
    problems = pl.scan_parquet(inputs["prepare"] / "problems.parquet")
    return judged.join(problems.select("problem_id", "problem", "kind", "source", gold="answer"),
                       on="problem_id", how="left").select(
        "problem_id", "problem", "gold", "kind", "source", "sample", "thinking", "answer",
        "finish_reason", "completion_tokens", "score", "verdict", "extracted", "grader",
        "judge_version", "pass_rate", teacher="model").collect()


def scores_of(inputs: Mapping[str, Path], model: str) -> dict[str, Any]:
    """The scores of `model` in scores.json; {} if it was not evaluated."""
    path = inputs.get("evaluate", Path("none")) / "scores.json"
    return json.loads(path.read_text(encoding="utf-8")).get(model, {}) if path.is_file() else {}
