"""The stages in order and the Experiment config: the only list of either."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.recipe import LogitsConfig, RlConfig, SftConfig
from pipeline.serve import PARALLEL
from pipeline.stage import Plan, Stage, make_plan
from pipeline.teacher.config import JudgeRuntime, TeacherRuntime
from stages import evaluate, filter, generate, logits, pack, prepare, report, rl, sft, student
from stages.evaluate import EvaluateConfig
from stages.filter import FilterConfig
from stages.generate import GenerateConfig
from stages.pack import PackConfig
from stages.prepare import PrepareConfig
from stages.report import ReportConfig
from stages.student import StudentConfig

STAGES: dict[str, Stage] = {module.STAGE.name: module.STAGE for module in (
    prepare, generate, filter, student, pack, logits, sft, rl, evaluate, report)}


class Runtime(Config):
    """Where and how fast it runs; no part of any key."""

    artifacts: Path = Path("data/artifacts")
    """Folder of the stages' artifacts."""
    traces: Path = Path("data/traces")
    """Folder of the trace store: every completion ever paid for."""
    judge_workers: int = Field(default=2, ge=1)
    """Processes that judge."""
    launch: dict[str, Any] = {}
    """Handed to `accelerate launch` (config_file, num_processes, ...) by sft and rl; empty: train
    in this process, or in one of its own where vLLM samples."""
    vllm: dict[str, Any] = {}
    """Handed to vllm.LLM where it samples a student, in sft (on_policy), rl and evaluate
    (max_num_seqs, ...)."""
    engines: int = Field(default=1, ge=1)
    """vLLM engines on each GPU there, in processes of their own, which share its memory. Two pay
    for a small model and some 500 completions at once, where the GPU waits for one's Python."""
    teacher: TeacherRuntime = TeacherRuntime()
    """Address, key, limits and budget of the teacher."""
    llm_judge: JudgeRuntime = JudgeRuntime()
    """The same of the model that filter.llm_judge names."""

    def engine(self) -> dict[str, Any]:
        """Options of vllm.LLM, and `engines` where there are several (pipeline.engines)."""
        return {**self.vllm, **({"engines": self.engines} if self.engines > 1 else {})}

    @model_validator(mode="after")
    def _engines_fit_a_gpu(self) -> Runtime:
        parallel = sorted(PARALLEL & set(self.vllm))
        if self.engines > 1 and parallel:
            raise UserError(f"runtime.vllm.{parallel[0]} spreads one engine over GPUs; remove it, "
                            "or set runtime.engines=1")
        return self


class Experiment(Config):
    """One run of limbeck from problems to report."""

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


def plans(experiment: Experiment, target: str) -> dict[str, Plan]:
    """The plan of every stage that `target` stands on, in order, `target` last."""
    made: dict[str, Plan] = {}
    for name in _order(experiment, target):
        stage = STAGES[name]
        inputs = {need: made[need] for need in stage.needs(experiment)}
        made[name] = make_plan(stage, experiment, inputs, experiment.runtime.artifacts)
    return made


def _order(experiment: Experiment, target: str) -> tuple[str, ...]:
    """Depth-first order of `target` and what it needs."""
    @cache
    def visit(name: str) -> tuple[str, ...]:
        before = [step for need in STAGES[name].needs(experiment) for step in visit(need)]
        return (*before, name)

    return tuple(dict.fromkeys(visit(target)))
