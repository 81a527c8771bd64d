"""How the student is trained: the config of the logits, sft and rl stages.

Kept apart from the stages because a launched training process reads it too
(`pipeline.train.launch`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.load import Config


class Transformers(Config):
    """Score with transformers, on this machine's accelerator or processor."""

    type: Literal["transformers"] = "transformers"
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens a forward pass; a longer row goes alone."""
    dtype: str = "auto"
    """Weights' type: auto (as saved), bfloat16 or float32."""


class Vllm(Config):
    """Score with vLLM's `prompt_logprobs`; the distribution is taken at temperature 1."""

    type: Literal["vllm"] = "vllm"
    engine: dict[str, Any] = {}
    """Handed to vllm.LLM under its own names (tensor_parallel_size, max_model_len, ...)."""


class Traces(Config):
    """Take the log-probabilities that came with the traces: no model is run.

    Needs `generate.sampling.top_logprobs` and a teacher that splits text as the student does. Ask
    at temperature 1 if the endpoint gives them after its temperature (vLLM gives them before).
    """

    type: Literal["traces"] = "traces"


class LogitsConfig(Config):
    """The teacher's distribution at every trained token, stored once (`limbeck logits`)."""

    teacher: str = ""
    """Hub id or folder of the model that scores; its vocabulary must be the student's."""
    scorer: Annotated[Transformers | Vllm | Traces, Field(discriminator="type")] = Transformers()
    """What runs the teacher, or `traces`: what its endpoint said as it answered."""
    top_k: int = Field(default=32, ge=1, le=255)
    """Most outcomes stored a token; the mass of all others is one more outcome."""
    mass: float = Field(default=0.999, gt=0, le=1)
    """Outcomes are stored until they hold this much probability; 1 stores all top_k."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions: the teacher's when scored, the student's when trained."""
    shard_rows: int = Field(default=512, ge=1)
    """Rows a shard; an interrupted run goes on at the first shard that is missing."""


class Offline(Config):
    """The teacher's distributions come from the logits stage."""

    type: Literal["offline"] = "offline"


class Online(Config):
    """The teacher is loaded beside the student: its whole distribution, no storage."""

    type: Literal["online"] = "online"
    teacher: str
    """Hub id or folder of the teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions."""
    dtype: str = "bfloat16"
    """Type of the teacher's weights: bfloat16, float32 or auto (as saved)."""


class SequenceMethod(Config):
    """Cross-entropy on the teacher's tokens."""

    type: Literal["sequence"] = "sequence"


class LogitsMethod(Config):
    """The student learns the teacher's distribution at every token of the teacher's traces."""

    type: Literal["logits"] = "logits"
    source: Annotated[Offline | Online, Field(discriminator="type")] = Offline()
    """Where the teacher's distribution comes from."""
    beta: float = Field(default=0.0, ge=0, le=1)
    """0: forward KL(teacher, student); 1: reverse KL; between: GKD's JSD (arXiv 2306.13649)."""
    cross_entropy: float = Field(default=0.0, ge=0, le=1)
    """Share of the plain cross-entropy on the trace's tokens in the loss."""


class OnPolicyMethod(Config):
    """The student answers the rows' prompts itself and learns the teacher's distribution there.

    GKD with every answer the student's own (arXiv 2306.13649), by TRL's DistillationTrainer:
    `sft.trainer` takes the names of its config (beta, temperature, max_completion_length, ...).
    Unless it names a `max_completion_length`, answers may be as long as the rows' longest.
    """

    type: Literal["on_policy"] = "on_policy"
    teacher: str
    """Hub id or folder of the teacher; its vocabulary must be the student's."""
    dtype: str = "bfloat16"
    """Type of the teacher's weights: bfloat16, float32 or auto (as saved)."""


class SftConfig(Config):
    """How the student is fine-tuned."""

    method: Annotated[SequenceMethod | LogitsMethod | OnPolicyMethod,
                      Field(discriminator="type")] = SequenceMethod()
    """`sequence`: learn the traces' tokens; `logits`: learn the teacher's distribution there;
    `on_policy`: learn it at the student's own tokens."""
    trainer: dict[str, Any] = {}
    """Handed to TRL's SFTConfig under its own names (learning_rate, num_train_epochs, ...)."""
    head: Literal["trl", "limbeck"] = "trl"
    """What turns states into the sequence loss, chunk by chunk: TRL's tiles, which are computed
    again for the gradient, or the logits method's pass, which works out both at once."""
    lora: dict[str, Any] | None = None
    """Handed to peft's LoraConfig (r, lora_alpha, target_modules, ...); merged when trained."""
    minutes: float | None = Field(default=None, gt=0)
    """Training ends after so many minutes, or at the trainer's own end, whichever is first."""
    held_out: int = Field(default=64, ge=0)
    """Rows, in blocks samples, kept from training to watch the loss on: whole problems, at most 2 %
    of all; 0: none. With `on_policy` the loss is that at the student's answers to their prompts."""
    report_to: list[Literal["wandb", "trackio"]] = []
    """Trackers beside TensorBoard, which is always written."""


class SftJob(Config):
    """One training run as a launched process reads it."""

    sft: SftConfig
    """The recipe."""
    model: str
    """Hub id or folder of the student before training."""
    tokenizer: Path
    """Folder of the student's tokenizer."""
    rows: Path
    """Token rows, a Parquet file."""
    logits: Path | None = None
    """Folder of the teacher's distributions, for the offline source."""
    out: Path
    """Folder that gets model/, log.jsonl and checkpoints/."""
    seed: int = 0
    """Seed of order and first adapter weights."""
    engine: dict[str, Any] = {}
    """Options of a colocated vllm.LLM, where the student samples by one."""
