"""Who teaches, how it samples, and how it is reached. Only the first two are part of any key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from pipeline.config.load import REFERENCE, Config
from pipeline.errors import UserError
from pipeline.stage import is_artifact, model_identity

SHAPING_VLLM_OPTIONS = frozenset({
    "revision", "tokenizer", "tokenizer_revision", "dtype", "quantization", "kv_cache_dtype",
    "hf_overrides", "chat_template", "generation_config", "override_generation_config"})
"""`vllm serve` options that change what is sampled; the others only change how fast."""
FALLBACK_KEYS = {"deepseek.com": "DEEPSEEK_API_KEY", "openai.com": "OPENAI_API_KEY"}
"""Usual key variables by host; bound to it, so that no host is sent another one's key."""


class SolverTeacher(Config):
    """The embedded teacher: a search program that narrates itself. Costs nothing."""

    type: Literal["solver"] = "solver"
    """An embedded program."""
    options: dict[str, Any] = {}
    """Patience and slips of the solver, under its own names."""

    @property
    def model(self) -> str:
        return "solver"

    def identity(self) -> dict[str, Any]:
        """What, with messages and sampling, decides the distribution of its traces."""
        return {"type": self.type, **self.options}


class OpenAITeacher(Config):
    """Any endpoint that speaks OpenAI's chat completions; runtime.teacher says where."""

    type: Literal["openai"] = "openai"
    """An OpenAI-compatible endpoint."""
    model: str
    """Model name as the endpoint knows it."""
    opened: bool = False
    """The server's chat template opens <think> and no reasoning parser splits it off again."""

    def identity(self) -> dict[str, Any]:
        """As SolverTeacher's. The address is left out: one model, wherever it is served."""
        return {"type": self.type, "model": self.model}


class VllmTeacher(Config):
    """A model served by vLLM on this machine, started and stopped by the stage."""

    type: Literal["vllm"] = "vllm"
    """A local vLLM server."""
    model: Annotated[str, REFERENCE]
    """Model name on the hub, a folder, or STEP.STAGE."""
    opened: bool = False
    """The chat template opens <think> and no reasoning parser is set in `vllm`."""
    vllm: dict[str, Any] = {}
    """Options of `vllm serve` under its own names, e.g. {max_model_len: 16384}."""
    servers: int = Field(default=1, ge=1)
    """Servers that share the GPUs and, in equal parts, vllm.gpu_memory_utilization (0.9 in all).
    More than one pays for a small model, whose GPU waits for the engine's scheduling in Python."""

    def identity(self) -> dict[str, Any]:
        """As SolverTeacher's, with the vLLM options that shape the samples."""
        shaping = {k: v for k, v in self.vllm.items() if k in SHAPING_VLLM_OPTIONS}
        return {"type": self.type, "model": model_identity(self.model), **shaping}


class TransformersTeacher(Config):
    """A model sampled in this process by transformers: for small ones, where there is no GPU."""

    type: Literal["transformers"] = "transformers"
    """A local model, without a server."""
    model: Annotated[str, REFERENCE]
    """Model name on the hub, a folder, or STEP.STAGE."""
    batch: int = Field(default=512, ge=1)
    """Completions sampled together; each is stored with its batch."""

    def identity(self) -> dict[str, Any]:
        """As SolverTeacher's: an artifact is known by its key, a folder by its files."""
        return {"type": self.type, "model": model_identity(self.model)}


class FileTeacher(Config):
    """Traces that exist already, `generate.samples` a problem at most; nothing is asked."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"thinking_column"})
    type: Literal["file"] = "file"
    """A file or a hub data set of traces."""
    traces: Annotated[str, REFERENCE]
    """A file, pattern, folder or hub data set's id, as prepare.problems; or STEP.generate, another
    step's traces, or STEP.filter, those of them that it kept."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    problem_column: str = "problem"
    """Column with the problem's text, by which a trace finds its problem; if it is absent, the
    trace's conversation asks it."""
    completion_column: str = "completion"
    """Column with a text, <think> inline, a list of such, a message or a conversation; `a.b` is
    field b of column a."""
    thinking_column: str | None = None
    """Column with the thinking, a text or a list of such, if it stands apart from the answer."""
    opened: bool = False
    """The texts begin inside the thinking: their prompt ended in <think>."""
    model: str = "unknown"
    """Who wrote them."""

    def identity(self) -> dict[str, Any]:
        """As SolverTeacher's."""
        return {"type": self.type, "model": self.model}


Teacher = SolverTeacher | OpenAITeacher | VllmTeacher | TransformersTeacher | FileTeacher


class Sampling(Config):
    """Sampling parameters, sent under these names; one that is not set is not sent."""

    temperature: float | None = Field(default=None, ge=0)
    """Softmax temperature."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus mass."""
    top_k: int | None = None
    """Most likely tokens considered; not known to every endpoint."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability relative to the likeliest token; not known to every endpoint."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest completion, thinking included. Raising it asks again only what was cut off; lowering
    it cuts stored traces that are longer."""
    seed: int | None = None
    """Sample i is asked with seed + i."""
    stop: list[str] | None = None
    """Texts that end the completion."""
    reasoning_effort: str | None = None
    """How long to think, if the endpoint supports it."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Keep the log-probabilities of the sampled token and of this many likeliest ones."""
    extra: dict[str, Any] = {}
    """Further body fields, as the endpoint names them."""

    def identity(self) -> dict[str, Any]:
        """What is part of a trace's key: all that is set except max_tokens."""
        shown = self.model_dump(exclude_none=True, exclude={"max_tokens"})
        return {name: value for name, value in shown.items() if value != {}}

    def body(self) -> dict[str, Any]:
        """The request's fields, without seed."""
        body = self.model_dump(exclude_none=True, exclude={"seed", "extra"})
        if self.top_logprobs is not None:
            body["logprobs"] = True
        return body | self.extra


class TeacherRuntime(Config):
    """Where the teacher is, its key, its limits and the budget; no part of any key."""

    who: ClassVar[str] = "the teacher"
    where: ClassVar[str] = "runtime.teacher"
    base_url: str | None = None
    """Address up to and with /v1; the embedded and the vLLM teacher set it themselves."""
    mirrors: list[str] = []
    """Further addresses of the same model, sent the same key; the least busy one is asked."""
    api_key_env: str = "LIMBECK_API_KEY"
    """Environment variable of the key; DEEPSEEK_API_KEY and OPENAI_API_KEY serve their hosts."""
    key_file: Path | None = None
    """File that holds the key, used if the variable is not set."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests in flight in all; on a cluster of each node. Unset: found by rising until the
    endpoint objects, or as a local vLLM's max_num_seqs says. Set: the ceiling."""
    n: int = Field(default=8, ge=1)
    """Most samples asked in one request, if the endpoint honours `n`."""
    rpm: float | None = Field(default=None, gt=0)
    """Requests a minute; unset: as the endpoint's headers say, if they do."""
    tpm: float | None = Field(default=None, gt=0)
    """Tokens a minute; unset: as the endpoint's headers say, if they do."""
    max_attempts: int = Field(default=6, ge=1)
    """Attempts for each request, the first one counted."""
    max_wait: float = Field(default=120.0, gt=0)
    """Longest wait between two attempts in seconds, whatever Retry-After asks for."""
    timeout: float = Field(default=1800.0, gt=0)
    """Longest time for one attempt in seconds."""
    max_usd: float | None = Field(default=None, gt=0)
    """Stop before the traces asked for cost more dollars than this, earlier runs' answers to the
    same requests included; attempts that were not answered count in the run that made them."""
    prices: Path | None = None
    """Price file; unset: configs/prices.yaml."""
    stream: bool = False
    """Ask for streamed answers: for endpoints whose proxies drop silent connections."""
    batch: bool = False
    """Ask through the batch API (files and batches, as OpenAI's): often at half the price, with
    answers within a day. Stopped meanwhile, the same command collects them."""

    quick_judge: bool = True
    """Judge traces while more are asked, in one thread (code is not run), and show the share
    accepted so far."""

    @model_validator(mode="after")
    def _addresses_are_sound(self) -> TeacherRuntime:
        """Raises UserError itself: pydantic's errors would say the password that is refused."""
        for name, address in (("base_url", self.base_url or "http://unset"),
                              *(("mirrors", mirror) for mirror in self.mirrors)):
            if wrong := _wrong(address):
                raise UserError(f"{self.where}.{name} {wrong}")
        if self.mirrors and not self.base_url:
            raise ValueError("mirrors are addresses beside base_url; set that too")
        return self

    def addresses(self) -> list[str]:
        """All of them, base_url first."""
        return [self.base_url, *self.mirrors] if self.base_url else []

    def api_key(self) -> SecretStr:
        """The key, or an empty one. Raises UserError if it cannot be read or sent in a header."""
        key = self._given_key()
        if not (key.isascii() and key.isprintable()):
            raise UserError("the API key is not one line of printable ASCII; see what "
                            f"{self.api_key_env} or {self.where}.key_file holds")
        return SecretStr(key)

    def _given_key(self) -> str:
        hosts = [f".{urlsplit(address).hostname}" for address in self.addresses()] or [""]
        names = [self.api_key_env] + [name for domain, name in FALLBACK_KEYS.items()
                                      if all(host.endswith(f".{domain}") for host in hosts)]
        for name in names:
            if os.environ.get(name, "").strip():
                return os.environ[name].strip()
        if self.key_file is None:
            return ""
        try:
            return self.key_file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise UserError(f"{self.where}.key_file {self.key_file} cannot be read "
                            f"({error.strerror}); name a readable file or unset it") from None

    def shown_url(self) -> str:
        """The addresses, for a sentence."""
        return ", ".join(self.addresses())


def _wrong(address: str) -> str:
    """What keeps `address` from being asked, without saying what may be secret in it; or ""."""
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:                           # a port or a host that is none
        sound = False
    if "@" in address or "?" in address:
        return ("holds a user name, a password or a query; give the bare address, and the key by "
                "api_key_env or key_file")
    return "" if sound else (f"is {address!r}, which is no address; give one such as "
                             "https://api.deepseek.com/v1")


class JudgeRuntime(TeacherRuntime):
    """Where the model of filter.llm_judge is, its key, its limits and the budget."""

    who: ClassVar[str] = "the LLM judge"
    where: ClassVar[str] = "runtime.llm_judge"
    batch: Literal[False] = False
    """The judge is asked directly: filter waits for what it says."""
    vllm: dict[str, Any] = {}
    """Options of `vllm serve` under its own names for a judge that is a model of this machine, e.g.
    {gpu_memory_utilization: 0.3}; several judges share 0.9 unless they say otherwise."""


class LLMJudgeConfig(OpenAITeacher):
    """The model asked if the judge's rules abstain; runtime.llm_judge has its address."""

    model: Annotated[str, REFERENCE]
    """Model name as the endpoint knows it; or a folder or STEP.STAGE, which vLLM serves here."""

    def identity(self) -> dict[str, Any]:
        """As SolverTeacher's."""
        return {"type": self.type, "model": model_identity(self.model)}

    def is_local(self) -> bool:
        """Whether it is a model of this machine, not of an endpoint."""
        return is_artifact(self.model) or Path(self.model).is_dir()

    sampling: Sampling = Sampling(temperature=0.0, max_tokens=4096)
    """Sampling parameters, as generate.sampling."""
