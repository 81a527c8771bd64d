"""The logits and sft sections, and the job that a launched SFT process reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.job import SHARED_TRAINER_DEFAULTS, TRACKING, Job
from pipeline.config.load import REFERENCE, Config


class Transformers(Config):
    """Score with transformers, on this machine's accelerator or processor."""

    type: Literal["transformers"] = "transformers"
    batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens in a forward pass; a longer row is scored alone."""
    dtype: str = "auto"
    """Type of the weights: auto (as saved), bfloat16 or float32."""


class Vllm(Config):
    """Score with vLLM's `prompt_logprobs`, at temperature 1."""

    type: Literal["vllm"] = "vllm"
    engine: dict[str, Any] = {}
    """Passed to vllm.LLM under its own names (tensor_parallel_size, max_model_len, ...)."""


class Traces(Config):
    """Use the log-probabilities stored with the traces, without running a model.

    Needs `generate.sampling.top_logprobs` and a teacher that splits text as the student does.
    Sample at temperature 1 if the endpoint applies its temperature to them (vLLM does not).
    """

    type: Literal["traces"] = "traces"


class LogitsConfig(Config):
    """The teacher's distribution at every trained token, stored once (`limbeck logits`)."""

    teacher: Annotated[str, REFERENCE] = ""
    """Hub id, folder or STEP.STAGE of the model that scores; it needs the student's vocabulary."""
    scorer: Annotated[Transformers | Vllm | Traces, Field(discriminator="type")] = Transformers()
    """What runs the teacher, or `traces`: the log-probabilities stored with the traces."""
    top_k: int = Field(default=32, ge=1, le=255)
    """Most outcomes stored for a token; the mass of all others is one more outcome."""
    mass: float = Field(default=0.999, gt=0, le=1)
    """Outcomes are stored until they hold this much probability; 1 stores all top_k."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions: the teacher's when scored, the student's when trained."""
    shard_rows: int = Field(default=512, ge=1)
    """Rows in a shard; an interrupted run resumes at the first missing shard."""


class Offline(Config):
    """Use the teacher's distributions from the logits stage."""

    type: Literal["offline"] = "offline"


class Online(Config):
    """Load the teacher beside the student for its full distribution, without storage."""

    type: Literal["online"] = "online"
    teacher: Annotated[str, REFERENCE]
    """Hub id, folder or STEP.STAGE of the teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions."""
    dtype: str = "bfloat16"
    """Type of the teacher's weights: bfloat16, float32 or auto (as saved)."""


class SequenceMethod(Config):
    """Cross-entropy on the teacher's tokens."""

    type: Literal["sequence"] = "sequence"


class LogitsMethod(Config):
    """Learn the teacher's distribution at every token of the traces."""

    type: Literal["logits"] = "logits"
    source: Annotated[Offline | Online, Field(discriminator="type")] = Offline()
    """Where the teacher's distribution comes from."""
    beta: Annotated[float, Field(ge=0, le=1)] | str = Field(default=0.0, union_mode="left_to_right")
    """0: forward KL(teacher, student); 1: reverse KL; between: GKD's JSD (arXiv 2306.13649). Or the
    name of a divergence in pipeline/sft/divergence.py."""
    cross_entropy: float = Field(default=0.0, ge=0, le=1)
    """Share of the cross-entropy on the trace's tokens in the loss."""


class CrossTokenizerMethod(Config):
    """Learn from a teacher with another tokenizer, where both split the traces at the same byte.

    Each of the teacher's tokens counts for the student's token that it begins with; what cannot be
    compared is learnt as the `sequence` method does.
    """

    REVISION: ClassVar[int] = 1     # before, what cannot be compared was not learnt

    type: Literal["cross_tokenizer"] = "cross_tokenizer"
    teacher: Annotated[str, REFERENCE]
    """Hub id, folder or STEP.STAGE of the teacher, with its tokenizer (over bytes, as Llama 3's,
    Qwen's and SmolLM2's)."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions."""
    beta: Annotated[float, Field(ge=0, le=1)] | str = Field(default=0.0, union_mode="left_to_right")
    """As the logits method's."""
    cross_entropy: float = Field(default=0.0, ge=0, le=1)
    """Share of the cross-entropy on the trace's tokens in the loss."""
    dtype: str = "bfloat16"
    """Type of the teacher's weights: bfloat16, float32 or auto (as saved)."""


class OnPolicyMethod(Config):
    """Learn the teacher's distribution at the student's own answers to the rows' prompts.

    On-policy GKD (arXiv 2306.13649) by TRL's DistillationTrainer: `sft.trainer` takes the keys of
    its config (beta, temperature, max_completion_length, ...). The default of
    `max_completion_length` is the length of the longest answer in the rows.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"mask_truncated"})

    type: Literal["on_policy"] = "on_policy"
    teacher: Annotated[str, REFERENCE]
    """Hub id, folder or STEP.STAGE of the teacher; it needs the student's vocabulary."""
    dtype: str = "bfloat16"
    """Type of the teacher's weights: bfloat16, float32 or auto (as saved)."""
    mask_truncated: bool = False
    """Leave answers that reach max_completion_length out of the loss."""


_ROW_DEFAULTS = {"train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 8}


class SftConfig(Config):
    """How the student is fine-tuned."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"layers", "schedule"})
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"report_to"}) | TRACKING
    TRAINER_DEFAULTS: ClassVar[dict[str, Any]] = {
        **SHARED_TRAINER_DEFAULTS, "lr_scheduler_type": "cosine", "eval_steps": 0.25}
    """Keys of TRL's config that hold unless `trainer` sets them."""
    METHOD_DEFAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        "sequence": _ROW_DEFAULTS, "logits": _ROW_DEFAULTS, "on_policy": {},
        "cross_tokenizer": _ROW_DEFAULTS}
    """The same, for one method."""
    FIXED_KEYS: ClassVar[dict[str, Any]] = {
        "max_length": None, "remove_unused_columns": False, "prediction_loss_only": True,
        "dataset_kwargs": {"skip_prepare_dataset": True}}
    """Rows come as pack made them, so the trainer must not cut, pack or tokenise."""
    KEYS_SET_ELSEWHERE: ClassVar[dict[str, str]] = {
        **dict.fromkeys(FIXED_KEYS, "nothing (pack decides it)"),
        "max_length": "pack.max_tokens", "packing": "the pack stage's packing",
        "assistant_only_loss": "the rows' loss mask", "completion_only_loss": "the rows' mask",
        "report_to": "sft.report_to", "eval_strategy": "sft.held_out",
        "chat_template_path": "student.chat_template", "eos_token": "student.chat_template"}
    """Keys that `trainer` must not set, and what to set instead."""

    method: Annotated[SequenceMethod | LogitsMethod | OnPolicyMethod | CrossTokenizerMethod,
                      Field(discriminator="type")] = SequenceMethod()
    """`sequence`: learn the traces' tokens; `logits`: learn the teacher's distribution there;
    `on_policy`: learn it at the student's own tokens; `cross_tokenizer`: as `logits`, from a
    teacher with another tokenizer."""
    trainer: dict[str, Any] = {}
    """Passed to TRL's SFTConfig under its own names (learning_rate, num_train_epochs, ...)."""
    head: Literal["trl", "limbeck"] = "trl"
    """What computes the sequence loss in chunks: TRL's tiles, which are computed again for the
    gradient, or the logits method's single pass for both."""
    lora: dict[str, Any] | None = None
    """Passed to peft's LoraConfig (r, lora_alpha, target_modules, ...); merged at the end."""
    layers: Literal["transformers", "compiled"] = "transformers"
    """The student's decoder layers: the library's own, or fused by torch.compile on a GPU (Llama,
    Qwen2, Qwen3; one process or DDP, without LoRA; the first step waits for the compiler)."""
    minutes: float | None = Field(default=None, gt=0)
    """Time limit of training, which may end earlier by the trainer's own limit."""
    schedule: Literal["steps", "minutes"] = "steps"
    """What a falling learning rate follows after its warm-up: the trainer's planned steps, or, so
    that it ends low at the time limit, whichever of them and `minutes` is further on."""
    held_out: int = Field(default=64, ge=0)
    """Rows (in blocks: samples) held out to log the loss on: all rows of some problems, at most 2 %
    of all; 0: none. With `on_policy` it is the loss at the student's answers to their prompts."""
    report_to: list[Literal["wandb", "trackio"]] = []
    """Trackers in addition to TensorBoard, which is always written."""

    def trainer_defaults(self) -> dict[str, Any]:
        """Return the keys of TRL's config that hold unless `trainer` sets them."""
        return {**self.TRAINER_DEFAULTS, **self.METHOD_DEFAULTS[self.method.type]}

    def teacher_model(self) -> str | None:
        """Return the model that is loaded beside the student, if one is."""
        source = self.method.source if isinstance(self.method, LogitsMethod) else self.method
        return getattr(source, "teacher", None)


class SftJob(Job):
    """One SFT run as a launched process reads it."""

    sft: SftConfig
    """The sft section."""
    rows: Path
    """Token rows, a Parquet file."""
    logits: Path | None = None
    """Folder of the teacher's distributions, for the offline source."""
