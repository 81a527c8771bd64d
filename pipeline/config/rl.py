"""The rl section (rewards, phases, alarms) and the job that a launched process reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config.job import SHARED_TRAINER_DEFAULTS, TRACKING, Job
from pipeline.config.judges import Judges
from pipeline.config.load import REFERENCE, Config
from pipeline.config.teacher import JudgeRuntime


class Alarms(Config):
    """Thresholds of the alarms, each for a mean over `window` logged steps; null turns one off."""

    window: int = Field(default=10, ge=1)
    """Logged steps in a mean."""
    kl: float | None = 1.0
    """Highest KL divergence from the reference model in nats a token (if rl.trainer.beta is not 0).
    """
    entropy: float | None = 0.02
    """Lowest entropy of the next token in nats, over the completions trained on."""
    clip_ratio: float | None = 0.2
    """Highest share of tokens whose probability has left the clipping range."""
    cut_off: float | None = 0.5
    """Highest share of truncated completions: those that reach the length limit."""
    zero_variance: float | None = 0.9
    """Highest share of groups in which every sample earned the same reward."""
    reward_std: float | None = 0.01
    """Lowest standard deviation of the reward."""
    longer: float | None = 4.0
    """Highest ratio of the mean length to the mean length at the start of the phase."""
    shorter: float | None = 0.25
    """Lowest ratio of the mean length to the mean length at the start of the phase."""
    falling: float | None = 0.2
    """Highest share of its best mean that the reward may lose; off once rl.difficulty has replaced
    more than 5 % of a step's problems."""
    hacking: float | None = 0.1
    """Gain in reward since the start that accuracy (held-out, if measured) should share."""
    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"memory", "epochs", "undecided", "restated", "many_boxes", "constant"})
    memory: float | None = 0.1
    """Highest gain of accuracy on problems asked again, since they were new, over the gain on
    held-out ones, which 500 of them (rl.evaluate_problems) tell to four points."""
    epochs: float | None = 1.0
    """Times that every problem may be asked."""
    undecided: float | None = 0.05
    """Share of answers that the judge could not decide (they earn 0), at most."""
    restated: float | None = 0.05
    """Share of answers that only repeat what the problem asks to work out, at most."""
    many_boxes: float | None = 0.3
    """Share of responses with more than two boxes, at most."""
    constant: float | None = 0.0
    """Spread (standard deviation) that each reward must exceed, or be a constant."""


class Phase(Config):
    """One trainer run that starts from the previous phase's model with a new schedule."""

    UNKEYED: ClassVar[frozenset[str]] = TRACKING
    trainer: dict[str, Any] = {}
    """Keys that override rl.trainer's (max_completion_length, num_generations, ...)."""
    until_step: int | None = Field(default=None, ge=1)
    """Step, counted over all phases, after which the next phase starts."""
    until_cut_off: float | None = Field(default=None, gt=0, lt=1)
    """Share of truncated completions above which the next phase starts."""
    cut_off_steps: int = Field(default=10, ge=1)
    """Logged steps in the mean of that share."""


Aggregate = Literal["min", "product", "mean", "last"]


class HttpPrm(Config):
    """A PRM served by vLLM (`vllm serve Qwen/Qwen2.5-Math-PRM-7B`), one request a completion."""

    type: Literal["http"] = "http"
    """A served model."""
    url: str = Field(pattern=r"^https?://.+/(pooling|classify)$")
    """Its address with the endpoint. /pooling gets a chat whose assistant message ends each step in
    `separator` and returns a score for each separator; /classify gets a text for each step (the
    problem and the steps so far) and returns its `probs`. The last class means right."""
    model: str
    """The model's name on the server."""
    key_env: str | None = None
    """Environment variable that holds the server's key."""
    separator: str = "<extra_0>"
    """Text that ends a step; the default is Qwen2.5-Math-PRM's token."""
    aggregate: Aggregate = "min"
    """How the steps' scores are combined: min, product, mean or last."""
    seconds: float = Field(default=60.0, gt=0)
    """Timeout of one completion's scores."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight."""


class LocalPrm(Config):
    """A token or sequence classifier in this process, for example from TRL's PRMTrainer."""

    type: Literal["local"] = "local"
    """A checkpoint folder or hub id."""
    model: Annotated[str, REFERENCE]
    """The classifier: a token classifier is read at the last token of each separator, a sequence
    classifier after each step. The last class means right."""
    separator: str = "\n\n"
    """Text that ends the problem and each step."""
    aggregate: Aggregate = "min"
    """How the steps' scores are combined: min, product, mean or last."""


Prm = HttpPrm | LocalPrm


class RlConfig(Config):
    """Start model, rewards, problems, phases and monitoring of refinement by GRPO."""

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"lengths", "report_to", "languages", "layers", "source_rewards", "judges", "overlap",
         "schedule"})
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"report_to"}) | TRACKING
    TRAINER_DEFAULTS: ClassVar[dict[str, Any]] = {
        **SHARED_TRAINER_DEFAULTS, "logging_steps": 1, "top_k": 0, "epsilon_high": 0.28,
        "lr_scheduler_type": "constant", "temperature": 1.0, "beta": 0.0,
        "num_completions_to_print": 0}
    """Keys of TRL's config that hold unless `trainer` sets them."""

    start: Annotated[str, REFERENCE] = "sft"
    """`sft` (the sft stage's student), `base` (the student before training), a checkpoint, or
    STEP.STAGE."""
    rewards: dict[str, float] = Field(default={"accuracy": 1.0, "format": 0.1}, min_length=1)
    """Weight of each reward, null for one to take out: accuracy, format, r1_format, language,
    overlong, repetition, process, length, a name of `judges`, or path/to/file.py:function (relative
    to the working folder) for your own, called as TRL calls a reward function: it returns a number
    or None (undecided) for each completion."""
    source_rewards: dict[str, dict[str, float]] = {}
    """By source the rewards of its problems, in the place of `rewards` (prepare.sources: rewards).
    """
    judges: Judges = {}
    """Of the experiment's `judges` those that are rewards here."""
    lengths: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Shortest and longest completion in tokens that a prompt may ask for ("Think for 300
    tokens."); one is drawn for each problem. The reward `length` pays for keeping to it (L1)."""
    policy: dict[str, Any] = {"marker": "box", "restated": "refused"}
    """Policy of the judge behind `accuracy`, under a problem's own meta.policy: the answer stands
    in a box (`marker: tag` for answer tags, any for both), and a formula of the problem's text, or
    an equation left unsolved, earns nothing. What is not named stays so."""
    language: Literal["en", "de", "fr", "es", "zh", "ru", "ar", "ja", "ko", "el", "he", "hi",
                      "th", "it", "nl", "pl", "pt", "tr", "uk", "vi"] = "en"
    """Language that the reward `language` asks of the thinking; recognised by its script."""
    languages: list[str] = []
    """Languages of the same script to tell it from, as filter.languages; empty: by script alone."""
    process: Prm | None = Field(default=None, discriminator="type")
    """The process reward model behind the reward `process`."""
    keep_completions: int = Field(default=0, ge=0)
    """Steps between two saved tables of completions with their rewards and advantages, in
    checkpoints/completions/*.parquet (in each phase-N if there are phases), as first sampled,
    before dynamic_sampling replaces any; 0 saves none."""
    patience: int = Field(default=20, ge=1)
    """Steps after which a run stops in which no completion was right; without `accuracy`: in which
    your own rewards (and process) were the same for every completion."""
    minutes: float | None = Field(default=None, gt=0)
    """Time limit of all phases together, which may end earlier by the trainer's own limit."""
    schedule: Literal["steps", "minutes"] = "steps"
    """What a falling learning rate follows, as sft.schedule."""
    phases: list[Phase] = []
    """Trainer runs one after another, as for a growing context; empty is one run."""
    difficulty: str | None = None
    """Expression over pass_rate and samples, as `0 < pass_rate < 1`: other problems are not asked.
    Checked at the start, and while training with each problem's newest scores."""
    difficulty_samples: int | None = Field(default=0, ge=0)
    """Samples of the start model a problem for its pass rate; 0 takes the teacher's pass rate, null
    none at the start: each problem is asked until its own newest scores leave it out."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Most extra generations to refill groups whose samples all earned the same (DAPO)."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between two evaluations on held-out problems; 0 is never."""
    evaluate_problems: int = Field(default=128, ge=1)
    """Held-out problems in an evaluation, one sample each."""
    keep: Literal["last", "best"] = "last"
    """Which model is the result: the last, or the best on held-out problems."""
    alarms: Alarms = Alarms()
    """Thresholds beyond which the run prints a warning."""
    lora: dict[str, Any] | None = None
    """Passed to peft's LoraConfig (r, lora_alpha, ...); merged at the end of each phase."""
    layers: Literal["transformers", "compiled"] = "transformers"
    """The student's decoder layers, as sft.layers."""
    overlap: bool = False
    """Sample the next step's completions while one is trained on: they come from the weights before
    it. The loss's ratio corrects for that (by TRL's importance sampling, if that is on)."""
    server: dict[str, Any] | None = None
    """Options of `vllm serve` under its own names: a server on GPUs of its own samples the
    completions and gets the new weights every step. If nodes of a cluster train, it gets GPUs that
    training does not use, as many as its tensor_parallel_size and the like say."""
    server_gpus: str = Field(default="", coerce_numbers_to_str=True)
    """GPUs of that server in the form of CUDA_VISIBLE_DEVICES, for example 1 or 2,3; unset on a
    cluster."""
    report_to: list[Literal["wandb", "trackio"]] = []
    """Trackers in addition to TensorBoard, which is always written."""
    trainer: dict[str, Any] = {}
    """Passed to TRL's GRPOConfig under its own names (learning_rate, num_generations, ...)."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _given(cls, rewards: Any) -> Any:
        """Leave out what is null: nothing else takes a key out of a mapping laid over another."""
        return {name: weight for name, weight in rewards.items() if weight is not None} \
            if isinstance(rewards, dict) else rewards

    def trainer_defaults(self) -> dict[str, Any]:
        """GRPOConfig keys that hold unless `trainer` or a phase sets them."""
        return {**self.TRAINER_DEFAULTS, "log_completions": self.keep_completions > 0}


class RlJob(Job):
    """One refinement as a launched process reads it."""

    rl: RlConfig
    """The rl section."""
    rows: list[dict[str, Any]]
    """Problems with `prompt`, a chat."""
    held_out: list[dict[str, Any]]
    """Held-out problems with `prompt`."""
    judge_runtimes: dict[str, JudgeRuntime] = {}
    """Where the models of rl.judges are reached."""
    traces: Path = Path("data/traces")
    """The trace store, which keeps what they said."""
    judge_workers: int
    """Judge processes of each training process."""
    last: int | None = None
    """Index of the phase after which this process ends; null: the last phase."""

    def at(self, server: str) -> RlJob:
        """Return the job whose completions are sampled by the server at an address."""
        trainer = {**self.rl.trainer, "use_vllm": True, "vllm_mode": "server",
                   "vllm_server_base_url": server}
        return self.model_copy(update={"rl": self.rl.model_copy(update={"trainer": trainer})})
