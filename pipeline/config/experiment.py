"""The whole experiment: a section a stage, its steps, and the runtime, which is part of no key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from pipeline.config.evaluate import EvaluateConfig, ExportConfig, ReportConfig
from pipeline.config.filter import FilterConfig
from pipeline.config.generate import GenerateConfig
from pipeline.config.judges import Judges, give_judges
from pipeline.config.load import Config, explain, merge, renamed
from pipeline.config.problems import PrepareConfig, check_names, distribute
from pipeline.config.rl import RlConfig
from pipeline.config.sft import LogitsConfig, SftConfig
from pipeline.config.student import PackConfig, StudentConfig
from pipeline.config.teacher import JudgeRuntime, TeacherRuntime
from pipeline.errors import UserError
from pipeline.objects import address, bucket_of, local_copy
from pipeline.shared_artifacts import is_made

Place = Annotated[Path, BeforeValidator(local_copy),
                  PlainSerializer(address, return_type=str, when_used="json")]
"""A folder, or the local copy of one in an object store, given as s3://BUCKET/FOLDER."""
S = TypeVar("S", SftConfig, RlConfig)
PARALLEL = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}


class RayCluster(Config):
    """A Ray cluster: every node asks the teacher, scores, samples and judges, and stores itself; of
    the nodes runtime.launch.num_machines train."""

    type: Literal["ray"] = "ray"
    """Ray, started on each node by `ray start`. All nodes see runtime.traces (for logits and
    evaluate runtime.artifacts too) at the same path and have the same limbeck."""
    address: str = "auto"
    """HOST:PORT of the head, as `ray start --head` prints it; auto: the cluster of this machine."""
    servers: int | None = Field(default=None, ge=1)
    """vLLM teachers (and processes of logits and evaluate with GPUs) at once, each on GPUs of its
    own; unset: as many as the cluster's GPUs hold. Set, they are asked for even if no GPU is there
    yet, so that an autoscaler brings nodes."""
    patience: float = Field(default=600.0, ge=0)
    """Seconds without any node that can work, or with too few to train, until the run gives up."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address != "auto" and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", address):
            raise ValueError("give HOST:PORT of the head, as `ray start --head` prints it, or auto")
        return address


class Runtime(Config):
    """Where and how fast it runs; no part of any key."""

    artifacts: Place | Annotated[list[Place], Field(min_length=1)] = Path("data/artifacts")
    """Folder of the stages' artifacts, or s3://BUCKET/FOLDER (gs://, hf://) with a local copy; of a
    list the first is written, and what is made already in one of the others (a group's, read-only)
    is read there."""
    traces: Place = Path("data/traces")
    """Folder of the trace store: every completion ever paid for. Of s3://BUCKET/FOLDER this machine
    keeps a whole copy, below $XDG_CACHE_HOME."""
    benchmarks: Path | None = None
    """Folder of local files that stand in for the hub's benchmarks: gsm8k.jsonl, aime24.jsonl or
    aime2024.jsonl, ... (`limbeck benchmarks` lists the names)."""
    trackers: list[Literal["wandb", "trackio"]] = []
    """Trackers that sft, rl and evaluate report to, beside TensorBoard and the stages' own logs."""
    judge_workers: int = Field(default=2, ge=1)
    """Processes that judge."""
    launch: dict[str, Any] = {}
    """Handed to `accelerate launch` (config_file, num_processes, ...) by sft and rl; empty: train
    in this process, or in one of its own where vLLM samples. With a cluster, num_machines=2 starts
    it on two nodes, num_processes counting those of both (by default one a GPU)."""
    cluster: RayCluster | None = None
    """Machines that generate, filter, logits and evaluate spread their work over and of which
    launch.num_machines train, {type: ray, address: auto}; unset: this one alone."""
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
    judges: dict[str, JudgeRuntime] = {}
    """The same for a judge of `judges`, by name; one that is not here is where llm_judge is."""

    def tracked(self, section: S) -> S:
        """The sft or rl section, with these trackers beside its own."""
        named = list(dict.fromkeys([*section.report_to, *self.trackers]))
        return section.model_copy(update={"report_to": named})

    def folders(self) -> list[Path]:
        """Return the folders that artifacts are looked for in; the first is written."""
        return self.artifacts if isinstance(self.artifacts, list) else [self.artifacts]

    def places(self) -> list[Path]:
        """Return the folders of artifacts and traces."""
        return [*self.folders(), self.traces]

    def artifact(self, name: str) -> Path:
        """Return the folder of the artifact `name`: where it is, else where it would be made."""
        places = [folder / name for folder in self.folders()]
        return next(filter(is_made, places), places[0])

    def for_judges(self, names: Iterable[str]) -> dict[str, JudgeRuntime]:
        """Where each of `judges` is reached."""
        return {name: self.judges.get(name, self.llm_judge) for name in names}

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


class Step(Config):
    """One step: what it lays over the common settings, and which stage it is made for."""

    goal: Literal["filter", "sft", "rl"]
    """The stage it is made for."""
    rounds: int = Field(default=1, ge=1)
    """Times that it is made, each from the round before (expert iteration): the step's model takes
    the place of the one that samples (generate.teacher, if it is another step's) or is refined."""
    experiment: Experiment
    """The common settings with the step's own over them."""

    def source(self) -> str:
        """Return the model that a further round replaces: what samples, or training starts from."""
        teacher, start = self.experiment.generate.teacher, self.experiment.rl.start
        if teacher.type in ("vllm", "transformers") and is_reference(teacher.model):
            return teacher.model
        refined = self.goal == "rl" and start not in ("sft", "base")
        return start if refined else self.experiment.student.model


class Variant(NamedTuple):
    """The experiment with one value of each swept key and one training seed."""

    values: str
    """The swept values as KEY=VALUE, "" without any."""
    seed: int | None
    experiment: Experiment

    @property
    def label(self) -> str:
        """What tells the variant's artifacts apart, e.g. learning_rate=3e-05,seed=1."""
        return ",".join(filter(None, [self.values,
                                      "" if self.seed is None else f"seed={self.seed}"]))


class Experiment(Config):
    """One run from problems to report."""

    name: str = "default"
    """Shown in the report."""
    seed: int = 0
    """Seed of every random choice: problems, samples, and training where no other is given."""
    seeds: list[int] = []
    """Training seeds: all that is trained is repeated with each, on the same problems and traces,
    and scores get an interval that holds training too. A seed is sft.trainer.seed and
    rl.trainer.seed."""
    each: dict[str, list[Any]] = {}
    """Values of swept keys, {sft.trainer.learning_rate: [1e-5, 3e-5]}: all that stands on the key
    is repeated with each value; --each gives the same."""
    judges: Judges = {}
    """Models that judge what has no gold, by name: {helpful: {type: reward_model, model: FOLDER}},
    rubric or pairwise. Columns in filter.keep, rewards in rl.rewards, scores by evaluate.judges."""
    prepare: PrepareConfig = PrepareConfig()
    generate: GenerateConfig
    filter: FilterConfig = FilterConfig()
    student: StudentConfig = StudentConfig()
    pack: PackConfig = PackConfig()
    logits: LogitsConfig = LogitsConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    report: ReportConfig = ReportConfig()
    runtime: Runtime = Runtime()
    steps: dict[str, Step] = {}
    """The steps of a recipe, {NAME: {goal: sft, rl: {...}, ...}}: each lays its settings over those
    beside `steps`. Wherever a model or traces may stand, STEP.STAGE names another step's."""
    _tree: dict[str, Any] = PrivateAttr({})

    @model_validator(mode="before")
    @classmethod
    def _to_each_section_its_own(cls, tree: Any) -> Any:
        return give_judges(distribute(tree))

    @model_validator(mode="wrap")      # the last one runs first: sources are a step's own by then
    @classmethod
    def _lay_steps_over_what_is_common(cls, tree: Any,
                                       validate: ValidatorFunctionWrapHandler) -> Experiment:
        made = validate(_with_steps(tree))
        if isinstance(tree, dict):
            made._tree = tree
        return made

    @model_validator(mode="after")
    def _sources_are_there(self) -> Experiment:
        check_names(self)
        return self

    @model_validator(mode="after")
    def _variants_differ(self) -> Experiment:
        # Two of one seed are one training: an interval over them would be too narrow.
        for name, values in {"seeds": self.seeds, **self.each}.items():
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise UserError(f"{name} has {twice[0]} twice; name each value once")
        return self

    @model_validator(mode="after")
    def _batches_have_an_api(self) -> Experiment:
        if self.runtime.teacher.batch and self.generate.teacher.type != "openai":
            raise UserError("runtime.teacher.batch needs an endpoint with a batch API, but "
                            f"generate.teacher is of type {self.generate.teacher.type}; name a "
                            "teacher of type openai or set runtime.teacher.batch=false")
        if self.runtime.teacher.batch and bucket_of(self.runtime.traces):
            raise UserError(f"runtime.teacher.batch keeps its open batches in a folder, which "
                            f"{address(self.runtime.traces)} is not; set runtime.traces to one, or "
                            "runtime.teacher.batch=false")
        return self

    def all_steps(self) -> dict[str, Step]:
        """Return every step by name; NAME-1, NAME-2, ... are the rounds before NAME's last."""
        out: dict[str, Step] = {}
        for name, step in self.steps.items():
            source, made = step.source(), ""
            for number in range(1, step.rounds + 1):
                settings = renamed(step.experiment, _replacing(source, made)) if made \
                    else step.experiment
                this = name if number == step.rounds else f"{name}-{number}"
                out[this] = step.model_copy(update={"experiment": settings})
                made = f"{this}.{step.goal}"
        return out

    def compared(self) -> list[str]:
        """Return the models that evaluate compares. Raises UserError if one is of no step."""
        steps = self.all_steps()
        if not steps:
            return self.evaluate.models
        if "models" not in self.evaluate.model_fields_set:
            return [f"{name}.{step.goal}" for name, step in steps.items() if step.goal != "filter"]
        for model in self.evaluate.models:
            if model != "teacher" and not is_reference(model):
                known = ", ".join(f"{name}.{step.goal}" for name, step in steps.items()
                                  if step.goal != "filter")
                raise UserError(f"evaluate.models: {model!r} is the model of no step; name {known}")
        return self.evaluate.models

    def exported(self) -> str:
        """Return the model that export writes: the last one compared if none is named."""
        if self.export.model:
            return self.export.model
        trained = [model for model in self.compared() if model != "teacher"]
        if not trained:
            raise UserError("evaluate compares no student to export; name one in export.model")
        return trained[-1]

    def variants(self) -> list[Variant]:
        """Return the experiment once for each value of `each` and each of `seeds`."""
        if not self.seeds and not self.each:
            return [Variant("", None, self)]
        keys, out = list(self.each), []
        for values in product(*self.each.values()):
            chosen = [_override(key, value) for key, value in zip(keys, values, strict=True)]
            label = ",".join(f"{key.rpartition('.')[2]}={value}"
                             for key, value in zip(keys, values, strict=True))
            one = self._laid_over(chosen, label)
            out += [Variant(label, seed, one._laid_over(one._training_seed(seed), f"seed={seed}"))
                    for seed in self.seeds] or [Variant(label, None, one)]
        return out

    def _training_seed(self, seed: int) -> list[dict[str, Any]]:
        # Where a seed is what training would take anyway, the artifacts of a run without `seeds`
        # serve it.
        return [{section: {"trainer": {"seed": seed}}} for section in ("sft", "rl")
                if seed != getattr(self, section).trainer.get("seed", self.seed)]

    def _laid_over(self, overlays: list[dict[str, Any]], label: str) -> Experiment:
        common = {key: value for key, value in self._tree.items() if key not in ("seeds", "each")}
        tree = reduce(merge, overlays, common)
        try:
            return Experiment.model_validate(tree)
        except ValidationError as error:
            raise UserError(explain(error, Experiment, [(f"each {label}", tree)])) from None


Step.model_rebuild()
OF_THE_WHOLE = ("name", "seeds", "each", "evaluate", "export", "report", "steps")
"""What a step has no settings of its own for."""


def is_reference(name: str) -> bool:
    """Whether `name` has the form of STEP.STAGE."""
    return re.fullmatch(r"[A-Za-z][\w-]*\.[a-z]+", name) is not None


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda name: new if name == old else name


def _override(key: str, value: Any) -> dict[str, Any]:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def _with_steps(tree: Any) -> Any:
    """Lay each step of `tree` over what is common; raises UserError if its name cannot stand."""
    steps = tree.get("steps") if isinstance(tree, dict) else None
    if not isinstance(steps, dict) or not steps:
        return tree
    common = {key: value for key, value in tree.items() if key not in ("steps", "seeds", "each")}
    return {**tree, "steps": {name: _laid(str(name), step, common)
                              for name, step in steps.items()}}


def _laid(name: str, step: Any, common: dict[str, Any]) -> Any:
    if not isinstance(step, dict):
        return step
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UserError(f"steps: {name!r} is no name for a step; take letters, digits, - and _")
    if wrong := sorted(set(OF_THE_WHOLE) & set(step)):
        raise UserError(f"steps.{name}.{wrong[0]}: {wrong[0]} belongs to the whole experiment; "
                        "move it beside `steps`")
    own = {key: value for key, value in step.items() if key not in ("goal", "rounds")}
    return {**{key: step[key] for key in ("goal", "rounds") if key in step},
            "experiment": merge(common, own)}
