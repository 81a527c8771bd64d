"""sft: the student learns the kept traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster.ray_launch import check_launch
from pipeline.config.experiment import Experiment
from pipeline.config.sft import CrossTokenizerMethod, SftJob
from pipeline.config.trainer_keys import check_engine_keys
from pipeline.serving.vllm_server import check_vllm
from pipeline.sft.settings import arguments, check_settings
from pipeline.stage import Counts
from pipeline.student.models import check_folder, check_same_vocabulary
from pipeline.student.positions import rows_beyond, say
from pipeline.student.tiny import resolve
from pipeline.train.arguments import check_whole_layers, lora_config
from pipeline.train.launch import check_options, launch, needs_processes


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, an ordinary checkpoint with tokenizer and template, and log.jsonl."""
    job = SftJob(sft=experiment.runtime.tracked(experiment.sft), model=resolve(inputs["student"]),
                 tokenizer=inputs["student"] / "tokenizer", rows=inputs["pack"] / "rows.parquet",
                 logits=inputs.get("logits"), out=out, seed=experiment.seed,
                 engine=experiment.runtime.engine())
    say("sft", rows_beyond(job.rows, job.model, job.sft.trainer.get("model_init_kwargs")))
    options = experiment.runtime.launch
    if needs_processes(job.sft.trainer, options):
        return launch(job, "pipeline.sft.trainer", options, cluster=experiment.runtime.cluster)
    from pipeline.sft.trainer import train

    return train(job)


def check(experiment: Experiment) -> None:
    """Refuse keys that no trainer knows and a teacher whose folder is missing."""
    check_settings(experiment.sft)
    check_whole_layers(experiment.sft, "sft", experiment.runtime.launch)
    check_launch(experiment.runtime)
    check_engine_keys("runtime.vllm", experiment.runtime.vllm)
    if teacher := experiment.sft.teacher_model():
        check_folder("the teacher of sft.method", teacher)


def check_fully(experiment: Experiment) -> None:
    """Refuse what TRL, accelerate and peft would, and a teacher of another vocabulary."""
    from pipeline.serving.engine_group import check_engines

    check_options(experiment.runtime.launch)
    args = arguments(experiment.sft, Path("unused"), experiment.seed)
    check_engines(experiment.runtime.engines, args, "sft")
    if experiment.student.model != "tiny":
        lora_config(experiment.sft.lora, "sft.lora", experiment.student.model)
    if isinstance(method := experiment.sft.method, CrossTokenizerMethod):
        from pipeline.sft.cross_tokenizer import byte_tokenizer

        byte_tokenizer(method.teacher)
    elif (teacher := experiment.sft.teacher_model()) and experiment.student.model != "tiny":
        check_same_vocabulary(teacher, experiment.student)
    if getattr(args, "use_vllm", False):
        check_vllm("sft")


def summary(counts: Counts) -> str:
    return (f"{counts['steps']:,} steps in {counts['train_seconds']} s on "
            f"{counts['rows']:,} rows")
