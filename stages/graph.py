"""The whole flow on one page: every stage, what it needs and reads, and what follows it.

The only list of stages: commands, help, `make` targets and the report follow it. A stage's module,
stages/NAME.py, has `run`, and `check` and `summary` if it needs them; it is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UserError
from pipeline.prompts import PAGE, chat_template_path, prompt_path, template_path
from pipeline.stage import Plan, Stage, make_plan
from pipeline.user_code import user_files

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


def _prompts(e: Experiment) -> tuple[Path, ...]:
    names = dict.fromkeys([e.generate.prompt, *e.generate.prompts.values()])
    return tuple(prompt_path(name) for name in names)


def _generate_files(e: Experiment) -> tuple[Path, ...]:
    config = e.generate
    own = [template_path(config.system or ""), config.examples,
           prompt_path(config.hint) if config.hint else None]
    traces = [teacher.traces for teacher in (config.teacher, *config.imports.values())
              if teacher.type == "file"]
    return (*_prompts(e), *filter(None, own), *_local(e, *traces))


def _filter_files(e: Experiment) -> tuple[Path, ...]:
    """The prompt of its LLM judge, and the verdicts of people if these decide."""
    from pipeline.curate.select import needs_reviews

    return (*_verifiers(e), *((prompt_path("same_answer"),) if e.filter.llm_judge else ()),
            *((prompt_path(e.filter.rewrite.prompt),) if e.filter.rewrite else ()),
            *_judge_files(e.filter), *(_reviews(e) if needs_reviews(e.filter) else ()))


def _reviews(e: Experiment) -> tuple[Path, ...]:
    from pipeline.curate.reviews import reviews_path

    path = reviews_path(e.runtime.traces)
    return (path,) if path.is_file() else ()


def _student_files(e: Experiment) -> tuple[Path, ...]:
    template = chat_template_path(e.student.chat_template, e.student.model)
    return (*_prompts(e), *([template] if template else []))


def _verifiers(e: Experiment, *sets: Any) -> tuple[Path, ...]:
    """The files of the user's own kinds, of the problems taught and of evaluation `sets`."""
    sources = (*e.prepare.sets().values(), *sets)
    return user_files(getattr(source, "kind", "") for source in sources)


def _length_prompt(asked: bool) -> tuple[Path, ...]:
    return (prompt_path("length"),) if asked else ()


def _rl_files(e: Experiment) -> tuple[Path, ...]:
    length = _length_prompt(bool(e.rl.lengths))
    own = (key for rewards in (e.rl.rewards, *e.rl.source_rewards.values()) for key in rewards)
    return (*_prompts(e), *length, *user_files(own), *_verifiers(e), *_judge_files(e.rl))


def _judge_files(section: Any) -> tuple[Path, ...]:
    """The prompts of the models that judge in a section."""
    kinds = {judge.type for judge in section.judges.values()} - {"reward_model"}
    return tuple(prompt_path(kind) for kind in sorted(kinds))


def _judge_models(section: Any) -> tuple[str, ...]:
    """The reward models that a section loads."""
    return tuple(judge.model for judge in section.judges.values()
                 if judge.type == "reward_model" and not judge.url)


def _logits_needs(e: Experiment) -> tuple[str, ...]:
    from_traces = e.logits.scorer.type == "traces"
    return ("student", "pack", *(("prepare", "filter") if from_traces else ()))


def _sft_needs(e: Experiment) -> tuple[str, ...]:
    method = e.sft.method
    stored = method.type == "logits" and method.source.type == "offline"
    return ("student", "pack", *(("logits",) if stored else ()))


def _rl_needs(e: Experiment) -> tuple[str, ...]:
    by_teacher = e.rl.difficulty and e.rl.difficulty_samples == 0
    return ("prepare", "student", *(("sft",) if e.rl.start == "sft" else ()),
            *(("filter",) if by_teacher else ()))


def _evaluate_needs(e: Experiment) -> tuple[str, ...]:
    models = e.compared()
    if not e.steps:
        return ("prepare", *sorted({MAKER.get(model, model) for model in models} | {"student"}))
    trained = [model for model in models if model != "teacher"]
    teacher = getattr(e.generate.teacher, "model", "") if "teacher" in models else ""
    return ("prepare", *trained, *(f"{name.partition('.')[0]}.student" for name in trained),
            *([teacher] if teacher.partition(".")[0] in e.all_steps() else []))


def _evaluate_files(e: Experiment) -> tuple[Path, ...]:
    from pipeline.problems.sources import benchmark_prompts

    settings = (e, *(step.experiment for step in e.steps.values()))
    own = {prompt: None for one in settings
           for prompt in (one.generate.prompt, *one.generate.prompts.values())}
    asked = {one for prompt in own for one in benchmark_prompts(
        e.evaluate.benchmarks, e.evaluate.prompts, prompt).values()} - own.keys()
    length = _length_prompt(e.evaluate.name_budget)
    return (*map(prompt_path, own), *sorted(map(prompt_path, asked)), *length,
            *_local(e, *e.evaluate.benchmarks), *_judge_files(e.evaluate),
            *_verifiers(e, *e.evaluate.benchmarks))


def _generate_models(e: Experiment) -> tuple[str, ...]:
    teacher = e.generate.teacher
    return (teacher.model,) if teacher.type in ("vllm", "transformers") else ()


def _export_needs(e: Experiment) -> tuple[str, ...]:
    from pipeline.config.evaluate import CALIBRATED

    made = MAKER.get(e.exported(), e.exported())
    step, _, stage = made.rpartition(".")
    if stage not in MODELS:         # a checkpoint folder
        return ("prepare",)
    learnt = learnt_from(e, made) if set(e.export.formats) & set(CALIBRATED) else None
    return tuple(dict.fromkeys(("prepare", f"{step}.student" if step else "student", made,
                                *([learnt] if learnt else []))))


def learnt_from(e: Experiment, model: str, *passed: str) -> str | None:
    """The pack (pack or STEP.pack) whose rows `model` learnt from last; None if it did of none.

    `model` is a stage of MODELS or STEP.STAGE; `passed` are those that lead to it, as in a circle.
    """
    from pipeline.config.experiment import is_reference

    step, _, stage = model.rpartition(".")
    prefix = f"{step}." if step else ""
    steps = e.all_steps()
    if stage not in MODELS or model in passed or (step and step not in steps):
        return None
    if stage == "sft":
        return f"{prefix}pack"
    own = steps[step].experiment if step else e
    below = {"sft": f"{prefix}sft", "base": f"{prefix}student"}.get(own.rl.start, own.rl.start) \
        if stage == "rl" else own.student.model
    return learnt_from(e, below, *passed, model) \
        if is_reference(below) or below in MODELS else None


def _sft_models(e: Experiment) -> tuple[str, ...]:
    teacher = e.sft.teacher_model()
    return (teacher,) if teacher else ()


def _rl_models(e: Experiment) -> tuple[str, ...]:
    start = () if e.rl.start in ("sft", "base") else (e.rl.start,)
    process = e.rl.process
    return (*start, *_judge_models(e.rl),
            *([process.model] if process and process.type == "local" else []))


def _by_name(stages: Iterable[Stage]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


def _load(name: str) -> Any:
    return partial(import_module, f"stages.{name}")


STAGES = _by_name((
    Stage("prepare", _load("prepare"), next="generate", version=4,
          help="Load problems, check their gold answers, hold some out.",
          files=lambda e: _local(e, *e.prepare.sets().values(), *e.prepare.decontaminate)),
    Stage("generate", _load("generate"), next="filter", model="teacher",
          help="Ask the teacher for reasoning traces; each is paid for once.",
          needs=lambda e: ("prepare",), files=_generate_files, models=_generate_models),
    Stage("filter", _load("filter"), next="sft", version=4,
          help="Judge every trace and choose those the student learns from.",
          needs=lambda e: ("prepare", "generate"), files=_filter_files,
          models=lambda e: _judge_models(e.filter)),
    Stage("student", _load("student"), next="pack", model="untrained",
          help="Build or name the student before training.",
          needs=lambda e: ("prepare", "filter") if e.student.model == "tiny" else (),
          files=_student_files,
          models=lambda e: (e.student.model,) if e.student.model != "tiny" else ()),
    Stage("pack", _load("pack"), next="sft", version=3,
          help="Turn kept traces into token rows with a loss mask.",
          needs=lambda e: ("prepare", "filter", "student"),
          files=lambda e: (*_prompts(e), *_length_prompt(e.pack.name_length))),
    Stage("logits", _load("logits"), next="sft", resumable=True,
          help="Score the rows with the teacher: its distribution at every trained token.",
          needs=_logits_needs,
          models=lambda e: (e.logits.teacher,) if e.logits.teacher else ()),
    Stage("sft", _load("sft"), next="rl", model="sft", resumable=True,
          help="Fine-tune the student on the rows.", needs=_sft_needs, models=_sft_models),
    Stage("rl", _load("rl"), next="evaluate", model="rl", resumable=True, version=5,
          help="Refine the student by GRPO with verifiable rewards.",
          needs=_rl_needs, files=_rl_files, models=_rl_models),
    Stage("evaluate", _load("evaluate"), next="report", version=7, resumable=True,
          of_the_whole=True,
          help="Sample every model on held-out problems and score it.",
          needs=_evaluate_needs,
          files=_evaluate_files, models=lambda e: _judge_models(e.evaluate)),
    Stage("export", _load("export"), next="report", of_the_whole=True,
          help="Write the student as GGUF files, each run and held against its checkpoint.",
          needs=_export_needs,
          files=lambda e: (*_prompts(e), *_local(e, e.export.benchmark)),
          models=lambda e: (e.exported(),) if _export_needs(e) == ("prepare",) else ()),
    Stage("report", _load("report"), shows_name=True,
          help="Write numbers.json and one HTML page.",
          of_the_whole=True, reads_all=True,
          needs=lambda e: ("evaluate", *(("export",) if e.report.exports else ())),
          files=lambda e: (PAGE, *_reviews(e))),
))

MODELS = ("student", "sft", "rl")
"""The stages whose artifact is a model."""
MAKER: dict[str, str] = {stage.model: stage.name for stage in STAGES.values() if stage.model}
"""Which stage makes each model that evaluate compares."""



def plans(experiment: Experiment, *targets: str) -> dict[str, Plan]:
    """Return the plan of every stage that `targets` stand on, in order, by name.

    A name is STAGE, or STEP.STAGE of a step; what a seed or a swept value makes anew is
    NAME@LABEL, and NAME alone the first variant's.
    """
    planner = Planner(experiment)
    for target in targets:
        planner.plan_all(target)
    return planner.by_name()


class Node(NamedTuple):
    """A stage of a step ("": of the experiment itself) in one variant, by number."""

    variant: int
    step: str
    stage: str

    def __str__(self) -> str:
        return f"{self.step}.{self.stage}" if self.step else self.stage


class Planner:
    """Plans nodes and what they need; equal keys of several steps or variants are one artifact."""

    def __init__(self, experiment: Experiment) -> None:
        self.whole, self.variants = experiment, experiment.variants()
        self.steps = [{"": variant.experiment,
                       **{name: step.experiment
                          for name, step in variant.experiment.all_steps().items()}}
                      for variant in self.variants]
        self.made: dict[Node, Plan] = {}
        self.needs: dict[Node, list[Node]] = {}
        self.open: list[Node] = []

    def plan_all(self, target: str) -> None:
        """Plan `target`, a STAGE or STEP.STAGE, in every variant."""
        for number in range(len(self.variants)):
            self.plan(self.node(number, target))

    def by_name(self) -> dict[str, Plan]:
        """Return the plans by name; a variant's that has the first variant's key is that one."""
        return {self.name(node): plan for node, plan in self.made.items()}

    def name(self, node: Node) -> str:
        """Return the node's name, with its variant's label where it has a key of its own."""
        first = self.made.get(node._replace(variant=0))
        shared = first is not None and first.key == self.made[node].key
        return str(node) if shared else f"{node}@{self.variants[node.variant].label}"

    def node(self, variant: int, name: str, said: str = "") -> Node:
        """Return the node of STAGE or STEP.STAGE. Raises UserError if there is none."""
        said = said or name
        step, _, stage = name.rpartition(".")
        if step not in self.steps[variant]:
            there = ", ".join(filter(None, self.steps[variant])) or "none"
            raise UserError(f"{said}: there is no step {step!r}; the steps are {there}")
        if stage not in STAGES or (step and STAGES[stage].of_the_whole):
            known = ", ".join(one.name for one in STAGES.values() if not one.of_the_whole)
            raise UserError(f"{said}: a step has no stage {stage!r}; its stages are {known}")
        return Node(0 if STAGES[stage].of_the_whole else variant, step, stage)

    def plan(self, node: Node) -> Plan:
        """Return the plan of `node`. Raises UserError if it stands on itself."""
        from pipeline.config.load import renamed

        if node in self.made:
            return self.made[node]
        if node in self.open:
            circle = " → ".join(map(str, [*self.open[self.open.index(node):], node]))
            raise UserError(f"{node} stands on itself ({circle}); name another model or other "
                            "traces in one of them")
        self.open.append(node)
        stage = STAGES[node.stage]
        settings = self.whole if stage.of_the_whole else self.steps[node.variant][node.step]
        self.needs[node] = self._needs(node, stage)
        inputs = {self._input_name(node, need): self.plan(need) for need in self._inputs(node)}
        self.made[node] = make_plan(stage, renamed(settings, lambda name: self._bound(node, name)),
                                    inputs, settings.runtime.artifact)
        self.open.pop()
        return self.made[node]

    def _needs(self, node: Node, stage: Stage) -> list[Node]:
        """What `node` needs: its own step's stages, and others' that its settings name."""
        from pipeline.config.experiment import is_reference
        from pipeline.config.load import references

        found: list[Node] = []
        for number in range(len(self.variants)) if stage.of_the_whole else [node.variant]:
            settings = self.steps[number][node.step]
            section = getattr(settings, stage.name, None)
            named = [] if section is None or len(self.steps[number]) == 1 else [
                name for name in references(section) if is_reference(name)]
            own = [name if "." in name or not node.step else f"{node.step}.{name}"
                   for name in stage.needs(settings)]
            found += [self.node(number, name, f"{node} names {name}") for name in own + named]
        for need in found:
            self.plan(need)
        return list(dict.fromkeys(found))

    def _inputs(self, node: Node) -> list[Node]:
        """What `node` reads: its needs, each artifact once, or all that these stand on."""
        if not STAGES[node.stage].reads_all:
            return self.needs[node]
        nodes = [below for need in self.needs[node] for below in self._below(need)]
        return list({self.made[one].key: one for one in reversed(nodes)}.values())[::-1]

    def _below(self, node: Node) -> list[Node]:
        """All that `node` stands on, and itself, in order."""
        return list(dict.fromkeys([*(one for need in self.needs[node]
                                     for one in self._below(need)), node]))

    def _input_name(self, node: Node, need: Node) -> str:
        if STAGES[node.stage].of_the_whole:
            return self.name(need)
        # Of another step the artifact's name: the key holds what it is, not what a step is called.
        return need.stage if need.step == node.step else self.made[need].folder.name

    def _bound(self, node: Node, name: str) -> str:
        """The artifact that `name` stands for if it is planned, else `name`."""
        step, _, stage = name.rpartition(".")
        plan = self.made.get(Node(node.variant, step, stage)) if step else None
        return plan.folder.name if plan else name
