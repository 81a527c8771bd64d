"""Commands beside the stages: judge, audit, probe."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment
    from pipeline.stage import Plan

Output = Annotated[Path | None, typer.Option("-o", "--out",
                                             help="File to write; default: standard output.")]
Policies = Annotated[list[str] | None, typer.Option(help="Policy as key=value.")]


def judge(file: Annotated[str, typer.Argument(help="JSONL, JSON, CSV or Parquet; - reads JSONL "
                                                   "from standard input.")],
          out: Output = None, policy: Policies = None,
          llm_url: Annotated[str | None, typer.Option(help="Address, with /v1, of a model that "
                                                           "decides what the rules leave open; "
                                                           "key in LIMBECK_API_KEY.")] = None,
          llm_model: Annotated[str | None, typer.Option(help="Name of that model.")] = None,
          traces: Annotated[Path, typer.Option(help="Trace store that keeps its replies.")]
          = Path("data/traces"),
          kind: Annotated[str | None, typer.Option(help="Kind of rows that name none; "
                                                        "path/to/file.py:function for your own "
                                                        "verifier.")] = None,
          explain: Annotated[bool, typer.Option(help="Add the rule that decided, and how the gold "
                                                     "and the answer were read.")] = False,
          debug: bool = False) -> None:
    """Judge a file of answers: {prediction or completion, gold or answer, kind?, id?} a row."""
    from pipeline.judge.file import judge_file
    from pipeline.judge.llm import LLMJudge

    asker = _asker(llm_url, llm_model, traces)
    model = LLMJudge(asker) if asker else None
    counts = judge_file(file if file == "-" else Path(file), out, policy or [], model=model,
                        explained=explain, kind=kind)
    said = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
    where = f" → {out}" if out else ""
    print(f"judge: {sum(counts.values()):,} rows: {said}{where}", file=sys.stderr)
    if asker and model:
        print(f"judge: the model decided {model.counts['decided']:,} and left "
              f"{model.counts['open']:,} open; {asker.counts.get('asked', 0):,} questions asked "
              f"now for ${asker.counts.get('spent_now_usd', 0.0):.4f}", file=sys.stderr)


def _asker(url: str | None, name: str | None, traces: Path) -> Any:
    """What asks the model `name` at `url`; None where neither is given."""
    from pipeline.config.teacher import JudgeRuntime, LLMJudgeConfig
    from pipeline.errors import UserError
    from pipeline.teacher.llm_judge import LLMJudgeClient

    if url is None and name is None:
        return None
    if url is None or name is None:
        raise UserError("--llm-url and --llm-model go together; give both or neither")
    return LLMJudgeClient(LLMJudgeConfig(model=name), JudgeRuntime(base_url=url), traces)


def audit_rows(rows: list[dict[str, Any]], n: int, seed: int) -> None:
    """Print the table of rows on which the two graders disagree, and their share."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.judge.file import audit

    found = audit(rows, n, seed)
    if found["table"]:
        table = Table(*found["table"][0], title="where the two graders disagree")
        for row in found["table"]:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(table, markup=False)
    print(f"audit: {found['disagreements']} of {found['judged']} judged twice disagree "
          f"({found['rate']:.1%}); {found['left_out']} left out")


def benchmarks(debug: bool = False) -> None:
    """List the benchmarks that evaluate and prepare.decontaminate know by name."""
    from pipeline.problems.benchmarks import BENCHMARKS

    print(f"{'name':14}{'kind':8}{'samples':9}{'data set':52}{'licence':16}published")
    for name, one in BENCHMARKS.items():
        where = "/".join(filter(None, (one.hub, one.subset, *(one.files or [one.split]))))
        known = one.published
        print(f"{name:14}{one.kind:8}{one.samples:<9}{where:52}{one.licence:16.15}"
              f"{known.model} {100 * known.score:.1f} ({known.source})")


def attack(file: Annotated[Path, typer.Argument(help="Problems: JSONL, JSON, CSV or Parquet with "
                                                     "problem and answer.")],
           n: Annotated[int | None, typer.Option(min=1, help="Problems; default: all.")] = None,
           show: Annotated[bool, typer.Option(help="Print what would score.")] = False,
           policy: Policies = None, debug: bool = False) -> None:
    """Try answers that should earn nothing on a problem set, under the policy of rl."""
    from pipeline.config.problems import Source
    from pipeline.judge import needs_answer
    from pipeline.judge.checks.attack import attack as run
    from pipeline.judge.file import parse_policy
    from pipeline.judge.verdict import RL_POLICY
    from pipeline.problems.sources import load_rows

    rows = load_rows(Source(problems=str(file)), 0, needs_answer)
    found = run(rows, n, policy=parse_policy(policy or [], RL_POLICY))
    for name, outcome in found.items():
        print(f"{name:10} {outcome.scored:6,} of {outcome.tried:,} would score on "
              f"{outcome.problems:,} problems; {outcome.undecided:,} undecided, which earn 0")
        for text, gold in outcome.examples if show else []:
            print(f"    {text!r} for {gold!r}")


def probe(model: Annotated[str, typer.Argument(help="Model name as the endpoint knows it.")],
          base_url: Annotated[str, typer.Option(help="Address up to and with /v1.")],
          key_file: Annotated[Path | None, typer.Option(help="File that holds the key.")] = None,
          debug: bool = False) -> None:
    """Ask an endpoint a short question: its dialect, thinking, n, logprobs, limits."""
    from pipeline.config.teacher import TeacherRuntime
    from pipeline.teacher.probe import probe as ask

    print("\n".join(ask(TeacherRuntime(base_url=base_url, key_file=key_file), model).lines()))


def doctor(model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
           overrides: Annotated[list[str] | None, typer.Argument(
               metavar="[KEY=VALUE]...", help="With these or a config file, check its settings "
                                              "of sft and rl for this model.")] = None,
           config: Annotated[list[Path] | None, typer.Option("-c", "--config", help="Config file; "
                                                             "as for the stages.")] = None,
           chat_template: Annotated[str | None, typer.Option(
               help="A name in prompts/chat_templates/ or a file, instead of the tokenizer's own "
                    "template.")] = None,
           teacher: Annotated[str | None, typer.Option(help="Compare vocabularies with this "
                                                            "model.")] = None,
           problems: Annotated[str | None, typer.Option(help="Check the gold answers of this file "
                                                             "(problem, answer).")] = None,
           vllm: Annotated[bool, typer.Option(help="Serve it by vLLM and compare tokens.")] = False,
           as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
           debug: bool = False) -> None:
    """Check a model before a token is trained: end of turn, template, mask, thinking, padding."""
    from pipeline.prompts import chat_template_path, config_files
    from pipeline.student.doctor import examine, run

    template = chat_template_path(chat_template, model)
    checks = examine(model, template, teacher, problems)
    if overrides or config:
        from pipeline.config.experiment import Experiment
        from pipeline.config.load import load

        chosen = load(Experiment, config_files(config), overrides or [])
        checks.append(run("lengths", partial(_lengths, chosen), model))
        checks.append(run("trainer settings", partial(_settings, chosen), model))
    if vllm:
        from pipeline.student.doctor_vllm import examine_served

        checks += examine_served(model, template)
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    for check in () if as_json else checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<14} {check.sentence}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _settings(experiment: Experiment, model: str) -> tuple[bool, str]:
    """What sft and rl look at before they start, and whether their adapters fit `model`."""
    from pipeline.train.arguments import lora_config
    from stages.graph import STAGES

    for name in ("sft", "rl"):
        STAGES[name].check(experiment, fully=True)
        lora_config(getattr(experiment, name).lora, f"{name}.lora", model)
    return True, "sft and rl can start with theirs"


def _lengths(experiment: Experiment, model: str) -> tuple[bool, str]:
    """Whether the longest texts that these settings allow fit the positions of `model`."""
    from pipeline.student.positions import REMEDY, positions

    limit = positions(model, experiment.sft.trainer.get("model_init_kwargs"))
    if limit is None:
        return True, "the model names no limit to hold them against"
    completions = [phase.trainer.get("max_completion_length", 0) for phase in experiment.rl.phases]
    allowed = {"generate.sampling.max_tokens and pack.max_tokens": min(
                   experiment.pack.max_tokens,
                   experiment.generate.sampling.max_tokens or experiment.pack.max_tokens),
               "rl.trainer.max_completion_length": max(
                   experiment.rl.trainer.get("max_completion_length", 0), *completions, 0),
               "evaluate.sampling.max_tokens": experiment.evaluate.sampling.max_tokens}
    beyond = [f"{key} ({value:,})" for key, value in allowed.items() if value > limit]
    if not beyond:
        return True, f"no text may be longer than {limit:,} tokens"
    return False, (f"{', '.join(beyond)} allow texts beyond the {limit:,} positions that the model "
                   f"was made for; lower them, or set {REMEDY}")


def preview_filter(plan: Plan, as_json: bool = False) -> None:
    """Print how many traces filter would keep, and why the others would leave."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.errors import UserError
    from stages.filter import preview

    ready = {name: one.fetched() for name, one in {**plan.inputs, "filter": plan}.items()
             if one.manifest}
    if not {"prepare", "generate"} <= ready.keys():
        raise UserError("generate is not made yet for this config, and preview asks no teacher; "
                        "run `limbeck generate`")
    frame = preview(plan.experiment, ready)
    if as_json:
        print(json.dumps(frame.to_dicts(), indent=1))
        return
    table = Table(*frame.columns, title="filter preview; nothing is written")
    for *row, share in frame.rows():
        table.add_row(*map(str, row), f"{share:.1%}")
    Console().print(table, markup=False)
