"""logits: the teacher's distribution at every trained token of the token rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.cluster.parts import each_part
from pipeline.cluster.ray_nodes import check_cluster, check_sees
from pipeline.config.experiment import Experiment
from pipeline.config.sft import Traces, Vllm
from pipeline.config.trainer_keys import check_engine_keys
from pipeline.errors import UserError
from pipeline.problems.chats import student_chats, teacher_chats
from pipeline.progress import progress
from pipeline.serving.vllm_server import gpus_of
from pipeline.stage import Counts
from pipeline.student.models import check_folder, check_same_vocabulary
from pipeline.student.tiny import resolve
from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary, load_tokenizer
from pipeline.teacher import Request, TraceStore


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write shard-N.parquet: outcomes and their log-probabilities of every trained token.

    With runtime.cluster each process there reads the rows of a shard and writes it, one at a time.
    """
    from pipeline.sft.target_store import shards, summary

    count = tables.count(inputs["pack"] / "rows.parquet")
    parts, sums = shards(count, experiment.logits.shard_rows), []
    with progress("scoring", count) as advance:
        for _, found in each_part(experiment.runtime.cluster, Scoring(experiment, inputs, out),
                                  parts, _gpus(experiment), or_none=True):
            sums.append(found)
            advance(found["rows"])
    return summary(sums)


def _gpus(experiment: Experiment) -> int:
    """GPUs of a process that scores."""
    scorer = experiment.logits.scorer
    if isinstance(scorer, Traces):
        return 0
    return gpus_of(scorer.engine) if isinstance(scorer, Vllm) else 1


class Scoring:
    """Scores the token rows of a shard; the teacher is loaded once in a process."""

    def __init__(self, experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> None:
        self.experiment, self.out = experiment, out.absolute()
        self.inputs = {name: folder.absolute() for name, folder in inputs.items()}

    def __call__(self, chosen: range) -> dict[str, float]:
        """Score the rows in `chosen` and return the shard's sums."""
        from pipeline.sft.target_store import score_shard
        from pipeline.student.token_rows import read_rows

        check_sees(self.out)
        config = self.experiment.logits
        rows = read_rows(self.inputs["pack"] / "rows.parquet", chosen)
        return score_shard(
            rows, chosen.start, lambda: self._scorer(rows), config.mass,
            self.out / f"shard-{chosen.start // config.shard_rows:05d}.parquet",
            {"teacher": config.teacher, "temperature": config.temperature})

    def _scorer(self, rows: Any) -> Any:
        if isinstance(self.experiment.logits.scorer, Traces):
            return _from_traces(self.experiment, self.inputs, self._student, rows)
        return self._model

    @cached_property
    def _student(self) -> Any:
        return load_tokenizer(self.inputs["student"] / "tokenizer")

    @cached_property
    def _model(self) -> Any:
        return _from_model(self.experiment, self.inputs, self._student)


def _from_model(experiment: Experiment, inputs: Mapping[str, Path], student: Any) -> Any:
    from transformers import AutoConfig

    from pipeline.sft.teacher_scorer import make_scorer

    config = experiment.logits
    check_vocabulary(bare_tokenizer(config.teacher), student, config.teacher)
    width = AutoConfig.from_pretrained(resolve(inputs["student"])).get_text_config().vocab_size
    return make_scorer(config, width)


def _from_traces(experiment: Experiment, inputs: Mapping[str, Path], student: Any,
                 scored: Any) -> Any:
    """The scorer that finds the log-probabilities of the `scored` rows' traces in the store."""
    from pipeline.sft.endpoint_logprobs import TracesScorer

    config, names = experiment.generate, list({one for row in scored.problems for one in row})
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    rows = problems.filter(problems["problem_id"].is_in(names)).to_dicts()
    asked, shown = teacher_chats(config, rows), student_chats(config, rows)
    judged = pl.scan_parquet(inputs["filter"] / "judged.parquet")
    kept = judged.filter("kept", pl.col("problem_id").is_in(names)).select("problem_id", "sample")
    traces = TraceStore(experiment.runtime.traces).collect(
        [Request(name, sample, asked[name]) for name, sample in kept.collect().iter_rows()],
        config.teacher, config.sampling)
    spoken = traces["answer"].str.strip_chars().str.len_chars() > 0
    return TracesScorer(traces.filter(spoken), shown, student)


def check(experiment: Experiment) -> None:
    """Refuse a scorer that lacks its teacher, or what it needs of generate and pack."""
    config = experiment.logits
    check_cluster(experiment.runtime)
    if isinstance(config.scorer, Vllm):
        check_engine_keys("logits.scorer.engine", config.scorer.engine)
    if isinstance(config.scorer, Traces):
        if experiment.generate.teacher.type == "file":
            raise UserError("logits.scorer.type=traces takes what an endpoint gave with its "
                            "traces, and generate.teacher is a file; set "
                            "logits.scorer.type=transformers and logits.teacher")
        if experiment.filter.rewrite or experiment.generate.imports:
            raise UserError("logits.scorer.type=traces takes what an endpoint gave with its "
                            "traces, which rewritten or imported ones lack; set "
                            "logits.scorer.type=transformers and logits.teacher")
        if not experiment.generate.sampling.top_logprobs:
            raise UserError("logits.scorer.type=traces needs generate.sampling.top_logprobs, e.g. "
                            "20; traces asked without it are asked again")
        if experiment.pack.too_long == "split":
            raise UserError("logits.scorer.type=traces needs rows that are whole traces; set "
                            "pack.too_long=drop")
    elif not config.teacher:
        raise UserError("logits.teacher is empty; name the model that scores, e.g. "
                        "logits.teacher=Qwen/Qwen2.5-Coder-1.5B-Instruct")
    else:
        check_folder("logits.teacher", config.teacher)
    if isinstance(config.scorer, Vllm | Traces) and config.temperature != 1:
        raise UserError("vLLM and endpoints give log-probabilities at temperature 1 only; set "
                        "logits.temperature=1 or logits.scorer.type=transformers")


def check_fully(experiment: Experiment) -> None:
    """Refuse a teacher of another vocabulary."""
    config = experiment.logits
    if config.scorer.type != "traces" and experiment.student.model != "tiny":
        check_same_vocabulary(config.teacher, experiment.student)


def summary(counts: Counts) -> str:
    return (f"{counts['loss_tokens']:,} tokens, {counts['outcomes_per_token']} outcomes and "
            f"{counts['bytes_per_token']} bytes each, {counts['mean_rest']:.2%} in the rest; the "
            f"likeliest is the trace's in {counts['argmax_share']:.0%}")
