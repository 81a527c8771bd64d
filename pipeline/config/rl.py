"""How the student is refined: rewards, phases, alarms, and the job of a launched process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config.load import Config


class Alarms(Config):
    """Thresholds of the alarms; null turns one off. Each is held against a mean over `window`."""

    window: int = Field(default=10, ge=1)
    """Logged steps that a mean is taken over."""
    kl: float | None = 1.0
    """Nats a token from the reference model, at most (logged where rl.trainer.beta is not 0)."""
    entropy: float | None = 0.02
    """Nats of the next token in the completions trained on, at least."""
    clip_ratio: float | None = 0.2
    """Share of tokens whose probability has moved out of the clipping range, at most."""
    cut_off: float | None = 0.5
    """Share of completions that reach the length limit, at most."""
    zero_variance: float | None = 0.9
    """Share of groups in which every sample earned the same, at most."""
    reward_std: float | None = 0.01
    """Standard deviation of the reward, at least."""
    longer: float | None = 4.0
    """Mean length over what it was at the start (of the phase), at most."""
    shorter: float | None = 0.25
    """Mean length over what it was at the start (of the phase), at least."""
    falling: float | None = 0.2
    """Share of its best mean that the reward may lose again; off once rl.difficulty has exchanged a
    twentieth of a step's problems."""
    hacking: float | None = 0.1
    """Gain in reward since the start that should show in accuracy, held-out where it is known."""
    undecided: float | None = 0.05
    """Share of answers that the judge could not decide (they earn 0), at most."""
    restated: float | None = 0.05
    """Share of answers that only repeat what the problem asks to work out, at most."""
    many_boxes: float | None = 0.3
    """Share of responses with more than two boxes, at most."""


class Phase(Config):
    """One trainer run, from the model of the phase before; its schedule starts anew."""

    trainer: dict[str, Any] = {}
    """Laid over rl.trainer (max_completion_length, num_generations, learning_rate, ...)."""
    until_step: int | None = Field(default=None, ge=1)
    """Step, counted over all phases, after which the next phase takes over."""
    until_cut_off: float | None = Field(default=None, gt=0, lt=1)
    """Share of completions at the length limit over which the next phase takes over."""
    cut_off_steps: int = Field(default=10, ge=1)
    """Logged steps that this share is the mean of."""


Aggregate = Literal["min", "product", "mean", "last"]


class HttpPrm(Config):
    """A PRM that vLLM serves (`vllm serve Qwen/Qwen2.5-Math-PRM-7B`), asked once a completion."""

    type: Literal["http"] = "http"
    """A served model."""
    url: str = Field(pattern=r"^https?://.+/(pooling|classify)$")
    """Its address with the endpoint. /pooling is sent a chat whose assistant message ends every
    step in `separator` and gives a score a separator; /classify is sent a text a step, the problem
    with the steps so far, and gives `probs` a text. Of several classes the last means right."""
    model: str
    """Name of the model as the server knows it."""
    key_env: str | None = None
    """Environment variable that holds the server's key."""
    separator: str = "<extra_0>"
    """What ends a step; the default is Qwen2.5-Math-PRM's token."""
    aggregate: Aggregate = "min"
    """How the steps' scores become one: min, product, mean or last."""
    seconds: float = Field(default=60.0, gt=0)
    """Longest wait for one completion's scores."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight."""


class LocalPrm(Config):
    """A token or sequence classifier in this process, e.g. one that TRL's PRMTrainer made."""

    type: Literal["local"] = "local"
    """A checkpoint folder or hub id."""
    model: str
    """The classifier; a token classifier is read at the last token of each separator, a sequence
    classifier after each step. Of several classes the last means right."""
    separator: str = "\n\n"
    """What ends the problem and each step."""
    aggregate: Aggregate = "min"
    """How the steps' scores become one: min, product, mean or last."""


Prm = HttpPrm | LocalPrm


class RlConfig(Config):
    """Where refinement starts, what it rewards, what it is asked and how it is watched."""

    start: str = "sft"
    """`sft` (the sft stage's student), `base` (the student before training) or a checkpoint."""
    rewards: dict[str, float] = Field(default={"accuracy": 1.0, "format": 0.1}, min_length=1)
    """Weight of each reward: accuracy, format, r1_format, language, overlong, repetition,
    process, or path/to/file.py:function (seen from the working folder) for one of your own, called
    as TRL calls a reward function: it returns a number or None (undecided) for each completion."""
    policy: dict[str, Any] = {"marker": "box", "restated": "refused"}
    """Policy of the judge behind `accuracy`, under a problem's own meta.policy: the answer stands
    in a box (`marker: tag` for answer tags, any for both), and a formula of the problem's text, or
    an equation left unsolved, earns nothing. What is not named stays so."""
    language: Literal["en", "de", "fr", "es", "zh", "ru", "ar", "ja", "ko", "el", "he", "hi",
                      "th"] = "en"
    """What the reward `language` wants the thinking to be in; told apart by script."""
    process: Prm | None = Field(default=None, discriminator="type")
    """The process reward model behind the reward `process`."""
    keep_completions: int = Field(default=0, ge=0)
    """Every so many steps the step's completions are kept with their rewards and advantages, in
    checkpoints/completions/*.parquet (of each phase-N where there are phases), as first drawn,
    without what dynamic_sampling puts in their place; 0 keeps none."""
    patience: int = Field(default=20, ge=1)
    """Steps without a single right completion after which the run stops (with `accuracy`)."""
    minutes: float | None = Field(default=None, gt=0)
    """A phase ends after so many minutes, or at the trainer's own end, whichever is first."""
    phases: list[Phase] = []
    """Trainer runs one after the other, as with a growing context; empty is one run."""
    difficulty: str | None = None
    """Expression over pass_rate and samples, as `0 < pass_rate < 1`: problems outside are not
    asked. Held against the start, and while training against each problem's newest scores."""
    difficulty_samples: int = Field(default=0, ge=0)
    """Samples a problem of the start model that give its pass rate; 0 takes the teacher's."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Extra generations at most to refill groups whose samples all earned the same (DAPO)."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between two evaluations on held-out problems; 0 is never."""
    evaluate_problems: int = Field(default=128, ge=1)
    """Held-out problems of an evaluation, one sample each."""
    keep: Literal["last", "best"] = "last"
    """The model handed on: the last, or the best on held-out problems."""
    alarms: Alarms = Alarms()
    """Thresholds over which the run says that something looks wrong."""
    lora: dict[str, Any] | None = None
    """Handed to peft's LoraConfig (r, lora_alpha, ...); merged at the end of each phase."""
    server: dict[str, Any] | None = None
    """Options of `vllm serve` under its own names: completions are sampled by a server beside the
    training, on GPUs of its own, which gets the new weights every step."""
    server_gpus: str = Field(default="", coerce_numbers_to_str=True)
    """GPUs of that server as CUDA_VISIBLE_DEVICES names them, e.g. 1 or 2,3."""
    trainer: dict[str, Any] = {}
    """Handed to TRL's GRPOConfig under its own names (learning_rate, num_generations, ...)."""


class RlJob(Config):
    """One refinement as a launched process reads it."""

    rl: RlConfig
    """The recipe."""
    model: str
    """Hub id or folder of the student that refinement starts from."""
    tokenizer: Path
    """Folder of the student's tokenizer."""
    rows: list[dict[str, Any]]
    """Problems with `prompt`, a chat."""
    held_out: list[dict[str, Any]]
    """Held-out problems, the same."""
    judge_workers: int
    """Processes that judge, for each process that trains."""
    engine: dict[str, Any]
    """Options of a colocated vllm.LLM."""
    out: Path
    """Folder that gets model/, log.jsonl and checkpoints/."""
    seed: int
    """Seed of order and sampling."""
    last: int | None = None
    """Index of the phase that ends this process; null: the last."""
