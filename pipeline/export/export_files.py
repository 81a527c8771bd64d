"""Makes the files of an export: each format written, run, held against the checkpoint, scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.evaluate import VLLM_FORMATS, ExportConfig
from pipeline.errors import UserError

PACKAGES = {"gguf": "gguf", "libggml": "libggml-python", "xllamacpp": "xllamacpp"}
COMPRESSED = {"llmcompressor": "llmcompressor"}
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9,
        "fp8": 10, "w4a16": 7, "gptq": 7, "awq": 7}       # with a small model's embeddings at 16
SLOTS = 8


def check_extra(formats: Sequence[str]) -> None:
    """Raise UserError if a package that writes or runs one of `formats` is missing."""
    for extra, packages in (("gguf", PACKAGES), ("compressed", COMPRESSED)):
        asked = [one for one in formats if (one in VLLM_FORMATS) == (extra == "compressed")]
        missing = [name for module, name in packages.items() if asked and find_spec(module) is None]
        if missing:
            raise UserError(f"export of {', '.join(asked)} needs {', '.join(missing)}; run pip "
                            f"install '.[{extra}]' in limbeck's checkout")


def export(checkpoint: str, tokenizer_folder: str, config: ExportConfig, out: Path, *, name: str,
           rows: Sequence[dict], chats: Mapping[str, Messages], lineage: Mapping[str, Any],
           learnt: Sequence[Sequence[int]] = (), seed: int = 0, workers: int = 2) -> dict[str, Any]:
    """Write NAME-FORMAT.gguf or, for vLLM, the folder NAME-FORMAT for each format to `out`.

    Beside them Modelfile and README.md; returns figures.

    The proof is made on the first problems of `rows`, the score on `config.limit` of them; gptq and
    awq are calibrated on the token rows `learnt`. Raises
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
    if gguf := [form for form in config.formats if form not in VLLM_FORMATS]:
        architecture(model)
    _check_room(out, sum(p.numel() for p in model.parameters()), config.formats)
    sampling = config.sampling
    files: dict[str, Path] = {form: out / f"{name}-{form}{'.gguf' * (form in gguf)}"
                              for form in config.formats}
    _write(files, checkpoint, model, tokenizer, name=name, ends=ends, lineage=lineage,
           learnt=learnt, sampling={"temperature": sampling.temperature, "top_p": sampling.top_p})
    asked = list(chats.values())[:config.problems]
    reference = Reference.of(model, tokenizer, ends, asked, config.tokens)
    longest = max(map(len, reference.prompts)) + max(config.tokens, sampling.max_tokens) + 64
    found: dict[str, Any] = {
        form: _proven(path, form, reference, config, ends, rows, chats, seed, workers, 2 * longest)
        for form, path in files.items()}
    if gguf:
        most = positions(checkpoint) or 1 << 20
        num_ctx = config.num_ctx or min(most, max(2048, 2 * longest))
        stops = [tokenizer.convert_ids_to_tokens(index) for index in ends]
        text = modelfile(files[gguf[0]].name, tokenizer, stops, sampling.temperature,
                         sampling.top_p, num_ctx)
        (out / "Modelfile").write_text(text, encoding="utf-8")
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


def _write(files: Mapping[str, Path], checkpoint: str, model: Any, tokenizer: Any, *, name: str,
           ends: list[int], lineage: Mapping[str, Any], learnt: Sequence[Sequence[int]],
           sampling: Mapping[str, float]) -> None:
    from pipeline.export.compressed import write_folder
    from pipeline.export.gguf_file import write_gguf

    keys = {stage: one["key"] if isinstance(one, Mapping) else one
            for stage, one in lineage.items()}
    for form, path in files.items():
        if form in VLLM_FORMATS:
            write_folder(path, checkpoint, _load(checkpoint), tokenizer, form, ends=ends,
                         sampling=sampling, lineage=lineage, learnt=learnt)
        else:
            write_gguf(path, model, tokenizer, form, name=name, ends=ends, sampling=sampling,
                       lineage=keys)


def _proven(path: Path, form: str, reference: Any, config: ExportConfig, ends: list[int],
            rows: Sequence[dict], chats: Mapping[str, Messages], seed: int, workers: int,
            context: int) -> dict[str, Any]:
    """Run the file and return its figures; one that fails its proof is deleted."""
    if form in VLLM_FORMATS:
        return _proven_folder(path, form, reference, config, rows, chats, seed, workers)
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


def _proven_folder(folder: Path, form: str, reference: Any, config: ExportConfig,
                   rows: Sequence[dict], chats: Mapping[str, Messages], seed: int,
                   workers: int) -> dict[str, Any]:
    """Load the folder and return its figures; one that fails its proof is deleted."""
    from pipeline.export.compressed import CompressedFolder
    from pipeline.export.proof import prove
    from pipeline.export.score import score_folder

    found: dict[str, Any] = {"file": folder.name,
                             "bytes": sum(one.stat().st_size for one in folder.iterdir())}
    try:
        found |= prove(CompressedFolder(folder), reference, form, folder.name, config.max_kl)
    except UserError:
        shutil.rmtree(folder)
        raise
    if scored := rows[:config.limit]:
        found["score"] = score_folder(folder, scored, chats, config.sampling, config.samples,
                                      seed, workers)
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
    lines = [f"- `{path.name}`: {described(form, found[form])}" for form, path in files.items()]
    gguf = [path.name for form, path in files.items() if form not in VLLM_FORMATS]
    served = [f"vllm serve ./{path.name}" for form, path in files.items() if form in VLLM_FORMATS]
    told = {"Ollama, LM Studio and llama.cpp": commands(name, gguf[0]) if gguf else [],
            "vLLM": served}
    return f"# {name}\n\n" + "\n".join(lines) + "\n" + "".join(
        f"\nIn this folder, for {tools}:\n\n```sh\n" + "\n".join(some) + "\n```\n"
        for tools, some in told.items() if some)
