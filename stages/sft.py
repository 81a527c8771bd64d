"""sft: the student learns the kept traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.experiment import Experiment
from pipeline.config.sft import SftJob
from pipeline.errors import UserError
from pipeline.serving.engine_group import check_engines
from pipeline.serving.processes import gpu_count
from pipeline.serving.vllm_server import has_vllm
from pipeline.sft.trainer import arguments, train
from pipeline.stage import Counts
from pipeline.student.positions import rows_beyond, say
from pipeline.student.tiny import resolve
from pipeline.train.launch import check_options, launch


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, an ordinary checkpoint with tokenizer and template, and log.jsonl."""
    job = SftJob(sft=experiment.sft, model=resolve(inputs["student"]),
                 tokenizer=inputs["student"] / "tokenizer", rows=inputs["pack"] / "rows.parquet",
                 logits=inputs.get("logits"), out=out, seed=experiment.seed,
                 engine=experiment.runtime.engine())
    say("sft", rows_beyond(job.rows, job.model, job.sft.trainer.get("model_init_kwargs")))
    options = experiment.runtime.launch
    # Seeing several GPUs, one process would deal each batch out to them by threads; a vLLM engine
    # gives its memory back only when its process ends.
    apart = options or gpu_count() > 1 or job.sft.trainer.get("use_vllm")
    return launch(job, "pipeline.sft.trainer", options) if apart else train(job)


def check(experiment: Experiment) -> None:
    check_options(experiment.runtime.launch)
    args = arguments(experiment.sft, Path("unused"), experiment.seed)
    check_engines(experiment.runtime.engines, args, "sft")
    if getattr(args, "use_vllm", False) and not has_vllm():
        raise UserError("sft samples by vLLM, which is not installed; run pip install '.[vllm]' "
                        "in limbeck's checkout, or set sft.trainer.use_vllm=false")


def summary(counts: Counts) -> str:
    return (f"{counts['steps']:,} steps in {counts['train_seconds']} s on "
            f"{counts['rows']:,} rows")
