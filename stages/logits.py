"""logits: the teacher's distribution at every trained token of the token rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.sft import Traces, Vllm
from pipeline.errors import UserError
from pipeline.problems.chats import student_chats, teacher_chats
from pipeline.progress import progress
from pipeline.stage import Counts
from pipeline.student.models import check_folder, check_same_vocabulary
from pipeline.student.tiny import resolve
from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary, load_tokenizer
from pipeline.teacher import Request, TraceStore


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write shard-N.parquet: outcomes and their log-probabilities of every trained token."""
    from pipeline.sft.target_store import score_rows
    from pipeline.student.token_rows import read_rows

    config = experiment.logits
    rows = read_rows(inputs["pack"] / "rows.parquet")
    student = load_tokenizer(inputs["student"] / "tokenizer")
    make = _from_traces if isinstance(config.scorer, Traces) else _from_model
    facts = {"teacher": config.teacher, "temperature": config.temperature}
    with progress("scoring", len(rows)) as advance:
        return score_rows(rows, make(experiment, inputs, student), config.mass, config.shard_rows,
                          out, facts, advance)


def _from_model(experiment: Experiment, inputs: Mapping[str, Path], student: Any) -> Any:
    from transformers import AutoConfig

    from pipeline.sft.teacher_scorer import make_scorer

    config = experiment.logits
    check_vocabulary(bare_tokenizer(config.teacher), student, config.teacher)
    width = AutoConfig.from_pretrained(resolve(inputs["student"])).get_text_config().vocab_size
    return make_scorer(config, width)


def _from_traces(experiment: Experiment, inputs: Mapping[str, Path], student: Any) -> Any:
    """The scorer that finds the kept traces' log-probabilities in the trace store."""
    from pipeline.sft.endpoint_logprobs import TracesScorer

    config = experiment.generate
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    rows = problems.to_dicts()
    asked, shown = teacher_chats(config, rows), student_chats(config, rows)
    judged = tables.read(tables.Judged, inputs["filter"] / "judged.parquet")
    kept = judged.filter(judged["kept"]).select("problem_id", "sample").iter_rows()
    traces = TraceStore(experiment.runtime.traces).collect(
        [Request(name, sample, asked[name]) for name, sample in kept], config.teacher,
        config.sampling)
    spoken = traces["answer"].str.strip_chars().str.len_chars() > 0
    return TracesScorer(traces.filter(spoken), shown, student)


def check(experiment: Experiment) -> None:
    """Refuse a scorer that lacks its teacher, or what it needs of generate and pack."""
    config = experiment.logits
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
