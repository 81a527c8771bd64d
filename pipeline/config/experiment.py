"""The whole experiment: a section a stage, and the runtime, which is part of no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from pipeline.config.evaluate import EvaluateConfig, ReportConfig
from pipeline.config.filter import FilterConfig
from pipeline.config.generate import GenerateConfig
from pipeline.config.load import Config
from pipeline.config.problems import PrepareConfig
from pipeline.config.rl import RlConfig
from pipeline.config.sft import LogitsConfig, SftConfig
from pipeline.config.student import PackConfig, StudentConfig
from pipeline.config.teacher import JudgeRuntime, TeacherRuntime
from pipeline.errors import UserError

S = TypeVar("S", SftConfig, RlConfig)
PARALLEL = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}


class Runtime(Config):
    """Where and how fast it runs; no part of any key."""

    artifacts: Path = Path("data/artifacts")
    """Folder of the stages' artifacts."""
    traces: Path = Path("data/traces")
    """Folder of the trace store: every completion ever paid for."""
    benchmarks: Path | None = None
    """Folder of local files that stand in for the hub's benchmarks: gsm8k.jsonl, aime24.jsonl or
    aime2024.jsonl, ... (`limbeck benchmarks` lists the names)."""
    trackers: list[Literal["wandb", "trackio"]] = []
    """Trackers that sft, rl and evaluate report to, beside TensorBoard and the stages' own logs."""
    judge_workers: int = Field(default=2, ge=1)
    """Processes that judge."""
    launch: dict[str, Any] = {}
    """Handed to `accelerate launch` (config_file, num_processes, ...) by sft and rl; empty: train
    in this process, or in one of its own where vLLM samples."""
    slurm: dict[str, Any] = {}
    """Handed to sbatch by `limbeck submit` under its long names (partition, nodes, gpus-per-node,
    time, ...). With several nodes, sft and rl start runtime.launch on each."""
    slurm_setup: str = ""
    """Shell lines that a Slurm job runs first (module load ..., export ...)."""
    vllm: dict[str, Any] = {}
    """Handed to vllm.LLM when it samples a student, in sft (on_policy), rl and evaluate
    (max_num_seqs, ...)."""
    engines: int = Field(default=1, ge=1)
    """vLLM engines on each GPU, in processes of their own that share its memory. Two pay for a
    small model and 500 completions at once: one engine's Python keeps the GPU waiting."""
    teacher: TeacherRuntime = TeacherRuntime()
    """Address, key, limits and budget of the teacher."""
    llm_judge: JudgeRuntime = JudgeRuntime()
    """The same for the model that filter.llm_judge names."""

    def tracked(self, section: S) -> S:
        """The sft or rl section, with these trackers beside its own."""
        named = list(dict.fromkeys([*section.report_to, *self.trackers]))
        return section.model_copy(update={"report_to": named})

    def engine(self) -> dict[str, Any]:
        """Options of vllm.LLM, and `engines` if there are several (serving.engine_group)."""
        return {**self.vllm, **({"engines": self.engines} if self.engines > 1 else {})}

    @model_validator(mode="after")
    def _engines_fit_a_gpu(self) -> Runtime:
        parallel = sorted(PARALLEL & set(self.vllm))
        if self.engines > 1 and parallel:
            raise UserError(f"runtime.vllm.{parallel[0]} spreads one engine over GPUs; remove it, "
                            "or set runtime.engines=1")
        return self


class Experiment(Config):
    """One run from problems to report."""

    name: str = "default"
    """Shown in the report."""
    seed: int = 0
    """Seed of every random choice."""
    prepare: PrepareConfig = PrepareConfig()
    generate: GenerateConfig
    filter: FilterConfig = FilterConfig()
    student: StudentConfig = StudentConfig()
    pack: PackConfig = PackConfig()
    logits: LogitsConfig = LogitsConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _batches_have_an_api(self) -> Experiment:
        if self.runtime.teacher.batch and self.generate.teacher.type != "openai":
            raise UserError("runtime.teacher.batch needs an endpoint with a batch API, but "
                            f"generate.teacher is of type {self.generate.teacher.type}; name a "
                            "teacher of type openai or set runtime.teacher.batch=false")
        return self
