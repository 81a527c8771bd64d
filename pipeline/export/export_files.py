"""Makes the files of an export: each format written, run, held against the checkpoint, scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.evaluate import ExportConfig
from pipeline.errors import UserError

PACKAGES = {"gguf": "gguf", "libggml": "libggml-python", "xllamacpp": "xllamacpp"}
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9}
SLOTS = 8


def check_extra() -> None:
    """Raise UserError if a package that writes or runs GGUF is missing."""
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise UserError(f"export needs {', '.join(missing)}; run pip install '.[gguf]' in "
                        "limbeck's checkout")


def export(checkpoint: str, tokenizer_folder: str, config: ExportConfig, out: Path, *, name: str,
           rows: Sequence[dict], chats: Mapping[str, Messages], lineage: Mapping[str, Any],
           seed: int = 0, workers: int = 2) -> dict[str, Any]:
    """Write NAME-FORMAT.gguf for each format, Modelfile and README.md to `out`; returns figures.

    The proof is made on the first problems of `rows`, the score on `config.limit` of them. Raises
    UserError if a file cannot be written as it should be or does not answer as its checkpoint.
    """
    from pipeline.export.architecture import architecture
    from pipeline.export.chat_format import modelfile
    from pipeline.export.proof import Reference
    from pipeline.student.positions import positions
    from pipeline.student.template import end_of_turn_ids
    from pipeline.student.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    ends = end_of_turn_ids(tokenizer, checkpoint)
    model = _load(checkpoint)
    architecture(model)
    _check_room(out, sum(p.numel() for p in model.parameters()), config.formats)
    sampling = config.sampling
    files: dict[str, Path] = {form: out / f"{name}-{form}.gguf" for form in config.formats}
    _write(files, model, tokenizer, name=name, ends=ends, lineage=lineage,
           sampling={"temperature": sampling.temperature, "top_p": sampling.top_p})
    asked = list(chats.values())[:config.problems]
    reference = Reference.of(model, tokenizer, ends, asked, config.tokens)
    longest = max(map(len, reference.prompts)) + max(config.tokens, sampling.max_tokens) + 64
    found: dict[str, Any] = {
        form: _proven(path, form, reference, config, ends, rows, chats, seed, workers, 2 * longest)
        for form, path in files.items()}
    most = positions(checkpoint) or 1 << 20
    num_ctx = config.num_ctx or min(most, max(2048, 2 * longest))
    stops = [tokenizer.convert_ids_to_tokens(index) for index in ends]
    first = files[config.formats[0]]
    (out / "Modelfile").write_text(modelfile(first.name, tokenizer, stops, sampling.temperature,
                                             sampling.top_p, num_ctx), encoding="utf-8")
    (out / "README.md").write_text(_readme(name, files, found), encoding="utf-8")
    return found


def _load(checkpoint: str) -> Any:
    from transformers import AutoModelForCausalLM

    from pipeline.progress import quiet_libraries
    from pipeline.student.tokenizer import check_hub

    quiet_libraries()
    try:
        check_hub(checkpoint)
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise UserError(f"model {checkpoint!r} cannot be loaded: "
                        f"{str(error).splitlines()[0]}") from None


def _check_room(out: Path, parameters: int, formats: Sequence[str]) -> None:
    """Raise UserError if the disk cannot hold the files."""
    needed = sum(parameters * BITS[form] / 8 for form in formats)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"the files need about {needed / 1e6:,.0f} MB and {out} has "
                        f"{free / 1e6:,.0f} MB left; free some, or name fewer export.formats")


def _write(files: Mapping[str, Path], model: Any, tokenizer: Any, **told: Any) -> None:
    from pipeline.export.gguf_file import write_gguf

    for form, path in files.items():
        write_gguf(path, model, tokenizer, form, **told)


def _proven(path: Path, form: str, reference: Any, config: ExportConfig, ends: list[int],
            rows: Sequence[dict], chats: Mapping[str, Messages], seed: int, workers: int,
            context: int) -> dict[str, Any]:
    """Run the file and return its figures; one that fails its proof is deleted."""
    from pipeline.export.llama_cpp import LlamaCpp, llama_server
    from pipeline.export.proof import prove
    from pipeline.export.score import score

    scored = rows[:config.limit]
    slots = min(SLOTS, max(1, len(scored)))
    found: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size}
    try:
        with llama_server(path, context=context) as address:
            found |= prove(LlamaCpp(address), reference, form, path.name, config.max_kl)
    except UserError:
        path.unlink(missing_ok=True)
        raise
    if scored:
        with llama_server(path, context=context, slots=slots) as address:
            found["score"] = score(LlamaCpp(address), slots, reference.tokenizer, ends, scored,
                                   chats, config.sampling, config.samples, seed, workers,
                                   path.name)
    return found


def described(form: str, found: Mapping[str, Any]) -> str:
    """Say in a line what a file is and what its proof gave."""
    parts = [f"{form} {found['bytes'] / 1e6:,.1f} MB", f"KL {found['kl']:.2g} nats a token",
             f"{found['greedy_equal']} of {found['prompts']} greedy answers equal"]
    if gap := found["first_difference"]:
        parts.append(f"first difference at token {gap['token']}, {gap['gap']:.2g} in logits")
    parts.append(f"{found['tokens_a_second']:,.0f} tokens/s")
    if score := found.get("score"):
        parts.append(f"{100 * score['avg']:.1f} [{100 * score['ci_low']:.1f}, "
                     f"{100 * score['ci_high']:.1f}] on {score['problems']} problems")
        if not score["reasoned"]:
            parts.append("no answer closed a thinking, so it is no reasoner")
    return ", ".join(parts)


def commands(name: str, file: str) -> list[str]:
    """The commands that run `file` in Ollama, LM Studio and llama.cpp."""
    return [f"ollama create {name} -f Modelfile && ollama run {name}", f"lms import {file}",
            f"llama-server -m {file} --jinja"]


def _readme(name: str, files: Mapping[str, Path], found: Mapping[str, Any]) -> str:
    first = next(iter(files.values())).name
    lines = [f"- `{path.name}`: {described(form, found[form])}" for form, path in files.items()]
    return (f"# {name}\n\n" + "\n".join(lines) + "\n\nIn this folder, for Ollama, LM Studio and "
            "llama.cpp:\n\n```sh\n" + "\n".join(commands(name, first)) + "\n```\n")
