"""What is measured and how students are sampled, what is exported, what the report shows."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from pipeline.config.judges import Judges
from pipeline.config.load import Config
from pipeline.config.problems import NameOrSet


class StudentSampling(Config):
    """How a student is sampled in evaluation."""

    temperature: float = Field(default=0.6, ge=0)
    """0 is greedy; 0.6 is what DeepSeek-R1's card advises."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of the distribution."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest completion in tokens; what reaches it counts as truncated."""


MODEL_NAMES = ("untrained", "sft", "rl", "teacher")


def _known(name: str) -> str:
    if name not in MODEL_NAMES and not re.fullmatch(r"[A-Za-z][\w-]*\.(student|sft|rl)", name):
        raise ValueError(f"name {', '.join(MODEL_NAMES)}, or STEP.student, STEP.sft, STEP.rl")
    return name


ModelName = Annotated[str, AfterValidator(_known)]


class EvaluateConfig(Config):
    """What is measured, on what, and how often each problem is sampled."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"prompts", "budgets", "answer_tokens", "waits",
                                                 "name_budget", "judges"})

    models: list[ModelName] = Field(default=["untrained", "sft", "rl"], min_length=1)
    """The models compared; `teacher` is asked through the same client as in generate. With steps
    STEP.student, STEP.sft or STEP.rl; by default what each step is made for."""
    benchmarks: list[NameOrSet] = Field(default=["heldout"], min_length=1)
    """`heldout` (prepare's), benchmarks by name (`limbeck benchmarks` lists them: aime24, math500,
    ...), problem files, or hub ids (their test split), or {problems:
    openai/gsm8k, subset: main, problem_column: question, answer_pattern: '#### (.+)'}. The
    stem of a file or hub id names its column, or its whole name where another has the same."""
    samples: Annotated[int, Field(ge=1)] | Literal["r1"] = 4
    """k of avg@k, pass@k and maj@k; `r1`: for benchmarks by name as many as DeepSeek-R1's authors
    drew (64 on AIME and GPQA, 16 on MATH-500, 8 on LiveCodeBench), 4 on any other set."""
    prompts: Literal["own", "lm_eval"] = "own"
    """How benchmarks by name are asked: own (mathematics as in generate.prompt, others with an
    instruction of their own), or as lm-evaluation-harness asks them zero-shot, where it does."""
    judges: Judges = {}
    """Of the experiment's `judges` those that score every completion too: a list of names."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N problems of each benchmark."""
    budgets: list[Annotated[int, Field(ge=1)]] = []
    """Students are also measured thinking within each of these numbers of tokens: thinking that is
    still open then is closed by force, and the answer follows. The report has the curve."""
    answer_tokens: int = Field(default=512, ge=1)
    """Longest answer after thinking within a budget."""
    waits: int = Field(default=0, ge=0)
    """Times that thinking which ends before its budget is lengthened by "Wait" (s1)."""
    name_budget: bool = False
    """Whether the prompt names the budget, as rl.lengths trains it: "Think for 512 tokens."."""
    sampling: StudentSampling = StudentSampling()
    """How students are sampled."""


class ReportConfig(Config):
    """What the page shows."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"exports"})

    title: str = "limbeck"
    """Heading of the page."""
    exports: bool = False
    """Show the exported files too, which makes export first."""


Format = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "fp8",
                 "w4a16", "gptq", "awq"]
VLLM_FORMATS = ("fp8", "w4a16", "gptq", "awq")
"""Written as a checkpoint folder for vLLM, not as GGUF."""
CALIBRATED = ("gptq", "awq")
"""Rounded so that what the model learnt from is answered as before."""
OTHER_FORMATS = {"fp8_dynamic", "int8", "w8a8", "nvfp4"}


class ExportConfig(Config):
    """The files that a student leaves in."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"calibration"})

    model: str | None = None
    """A model of the run (untrained, sft, rl; with steps STEP.sft, STEP.rl) or a checkpoint
    folder; unset: the last one that evaluate compares."""
    formats: list[Format] = Field(default=["q8_0", "q5_k_m"], min_length=1)
    """GGUF types. Bits a weight: f32 32, f16 and bf16 16, q8_0 8.5, q6_k 6.6, q5_k_m 5.7,
    q4_k_m 4.9; the last three mix types as llama.cpp does. For vLLM, a checkpoint folder each:
    fp8 (weights a channel, activations a token) and 4 bits in groups of at most 128: w4a16 (rounded
    to nearest), gptq and awq (calibrated on traces); embeddings and the head stay at 16 bits."""
    calibration: int = Field(default=256, ge=1)
    """Rows of the traces that the model learnt from on which gptq and awq are calibrated."""
    problems: int = Field(default=20, ge=1)
    """Problems whose prompts must give equal tokens, and on whose answers the file is compared."""
    tokens: int = Field(default=64, ge=1)
    """Tokens of each of those answers."""
    max_kl: float | None = Field(default=None, gt=0)
    """Nats a token from its checkpoint above which a file is refused, in place of the format's own
    limits (0.01 for 16 and 32 bits, 0.03 for q8_0, 0.1 for q6_k, 0.3 for q5_k_m, 0.6 for q4_k_m,
    0.3 for fp8, 0.6 for w4a16, gptq and awq, and for 16 and 32 bits no two tokens mistaken that are
    1 apart in logits)."""
    benchmark: NameOrSet = "heldout"
    """What the file itself is scored on: `heldout`, a file, a hub id, or a set as in evaluate."""
    limit: int | None = Field(default=200, ge=0)
    """Use only the first N problems of the benchmark; 0 scores none."""
    samples: int = Field(default=1, ge=1)
    """Samples a problem."""
    sampling: StudentSampling = StudentSampling()
    """How the file is sampled; also the defaults that are written into it."""
    num_ctx: int | None = Field(default=None, ge=64)
    """Context that the Modelfile asks for; unset: room for two answers, and what the model has."""

    @field_validator("formats", mode="before")
    @classmethod
    def _are_written(cls, formats: Any) -> Any:
        named = [formats] if isinstance(formats, str) else formats
        for one in named if isinstance(named, list) else []:
            if str(one).casefold() in OTHER_FORMATS:
                raise ValueError(
                    f"{one} is not written by export; for vLLM it writes "
                    f"{', '.join(VLLM_FORMATS)}, so name one of those")
        return formats
