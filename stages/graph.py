"""The whole flow on one page: every stage, what it needs and reads, and what follows it.

The only list of stages: commands, help, `make` targets and the report follow it. A stage's module,
stages/NAME.py, has `run`, and `check` and `summary` if it needs them; it is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.prompts import PAGE, chat_template_path, prompt_path
from pipeline.stage import Plan, Stage, make_plan

if TYPE_CHECKING:       # importing pydantic would cost `--help` a quarter of a second
    from pipeline.config.experiment import Experiment


def _local(e: Experiment, *sources: Any) -> tuple[Path, ...]:
    """The local files among names of problem sets, traces or evaluation sets."""
    from pipeline.problems.benchmarks import BENCHMARKS, local_file
    from pipeline.problems.files import files_of
    from pipeline.problems.sources import is_file

    names = [getattr(source, "problems", source) for source in sources]
    stand_ins = (local_file(name, e.runtime.benchmarks) for name in names if name in BENCHMARKS)
    return (*(path for name in names if is_file(name) for path in files_of(name)),
            *filter(None, stand_ins))


def _prompt(e: Experiment) -> Path:
    return prompt_path(e.generate.prompt)


def _generate_files(e: Experiment) -> tuple[Path, ...]:
    teacher = e.generate.teacher
    return (_prompt(e), *(_local(e, teacher.traces) if teacher.type == "file" else ()))


def _filter_files(e: Experiment) -> tuple[Path, ...]:
    """The prompt of its LLM judge, and the verdicts of people if these decide."""
    from pipeline.curate.select import needs_reviews

    return (*((prompt_path("same_answer"),) if e.filter.llm_judge else ()),
            *(_reviews(e) if needs_reviews(e.filter) else ()))


def _reviews(e: Experiment) -> tuple[Path, ...]:
    from pipeline.curate.reviews import reviews_path

    path = reviews_path(e.runtime.traces)
    return (path,) if path.is_file() else ()


def _student_files(e: Experiment) -> tuple[Path, ...]:
    template = chat_template_path(e.student.chat_template, e.student.model)
    return (_prompt(e), *([template] if template else []))


def _rl_files(e: Experiment) -> tuple[Path, ...]:
    return (_prompt(e), *sorted({Path(key.rpartition(":")[0])
                                 for key in e.rl.rewards if ":" in key}))


def _logits_needs(e: Experiment) -> tuple[str, ...]:
    from_traces = e.logits.scorer.type == "traces"
    return ("student", "pack", *(("prepare", "filter") if from_traces else ()))


def _sft_needs(e: Experiment) -> tuple[str, ...]:
    method = e.sft.method
    stored = method.type == "logits" and method.source.type == "offline"
    return ("student", "pack", *(("logits",) if stored else ()))


def _rl_needs(e: Experiment) -> tuple[str, ...]:
    by_teacher = e.rl.difficulty and not e.rl.difficulty_samples
    return ("prepare", "student", *(("sft",) if e.rl.start == "sft" else ()),
            *(("filter",) if by_teacher else ()))


def _evaluate_needs(e: Experiment) -> tuple[str, ...]:
    makers = {MAKER[model] for model in e.evaluate.models}
    return ("prepare", *sorted(makers - {"prepare"} | {"student"}))


def _evaluate_files(e: Experiment) -> tuple[Path, ...]:
    from pipeline.problems.sources import benchmark_prompts

    prompts = benchmark_prompts(e.evaluate.benchmarks, e.evaluate.prompts, e.generate.prompt)
    return (_prompt(e), *sorted({prompt_path(one) for one in prompts.values()} - {_prompt(e)}),
            *_local(e, *e.evaluate.benchmarks))


def _report_needs(e: Experiment) -> tuple[str, ...]:
    """Every stage that the models compared come from."""
    models = e.evaluate.models
    refined = "rl" in models
    tuned = "sft" in models or (refined and e.rl.start == "sft")
    return ("prepare", "generate", "filter", "student", *(("pack", "sft") if tuned else ()),
            *(("rl",) if refined else ()), "evaluate")


def _sft_models(e: Experiment) -> tuple[str, ...]:
    teacher = e.sft.teacher_model()
    return (teacher,) if teacher else ()


def _rl_models(e: Experiment) -> tuple[str, ...]:
    start = () if e.rl.start in ("sft", "base") else (e.rl.start,)
    return (*start, *([e.rl.process.model] if e.rl.process and e.rl.process.type == "local"
                      else []))


def _by_name(stages: Iterable[Stage]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


def _load(name: str) -> Any:
    return partial(import_module, f"stages.{name}")


STAGES = _by_name((
    Stage("prepare", _load("prepare"), next="generate", version=4,
          help="Load problems, check their gold answers, hold some out.",
          files=lambda e: _local(e, e.prepare.problems, *e.prepare.decontaminate)),
    Stage("generate", _load("generate"), next="filter", model="teacher",
          help="Ask the teacher for reasoning traces; each is paid for once.",
          needs=lambda e: ("prepare",), files=_generate_files),
    Stage("filter", _load("filter"), next="sft", version=3,
          help="Judge every trace and choose those the student learns from.",
          needs=lambda e: ("prepare", "generate"), files=_filter_files),
    Stage("student", _load("student"), next="pack", model="untrained",
          help="Build or name the student before training.",
          needs=lambda e: ("prepare", "filter") if e.student.model == "tiny" else (),
          files=_student_files,
          models=lambda e: (e.student.model,) if e.student.model != "tiny" else ()),
    Stage("pack", _load("pack"), next="sft", version=3,
          help="Turn kept traces into token rows with a loss mask.",
          needs=lambda e: ("prepare", "filter", "student"), files=lambda e: (_prompt(e),)),
    Stage("logits", _load("logits"), next="sft", resumable=True,
          help="Score the rows with the teacher: its distribution at every trained token.",
          needs=_logits_needs,
          models=lambda e: (e.logits.teacher,) if e.logits.teacher else ()),
    Stage("sft", _load("sft"), next="rl", model="sft", resumable=True,
          help="Fine-tune the student on the rows.", needs=_sft_needs, models=_sft_models),
    Stage("rl", _load("rl"), next="evaluate", model="rl", resumable=True, version=4,
          help="Refine the student by GRPO with verifiable rewards.",
          needs=_rl_needs, files=_rl_files, models=_rl_models),
    Stage("evaluate", _load("evaluate"), next="report", version=6, resumable=True,
          help="Sample every model on held-out problems and score it.",
          needs=_evaluate_needs,
          files=_evaluate_files),
    Stage("report", _load("report"), shows_name=True,
          help="Write numbers.json and one HTML page.",
          needs=_report_needs, files=lambda e: (PAGE, *_reviews(e))),
))

MAKER = {stage.model: stage.name for stage in STAGES.values() if stage.model}
"""Which stage makes each model that evaluate compares."""


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
