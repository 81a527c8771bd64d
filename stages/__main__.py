"""limbeck's command line: every stage is a command; the help text is the documentation."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.deferred import defer
from pipeline.errors import UserError
from pipeline.prompts import config_files
from pipeline.serving.processes import STOP_SIGNALS
from stages import commands
from stages.graph import STAGES

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Distil the reasoning of a large teacher into a small student. "
                       "A stage makes what it needs first and does nothing twice.")

STOPPED = "stopped; what was finished is kept, the same command goes on"
Files = Annotated[list[Path] | None, typer.Option(
    "-c", "--config", help="Config file; may be given several times, later ones win. "
                           "Default: configs/default.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(
    metavar="[KEY=VALUE]...", help="Config overrides, e.g. filter.keep='pass_rate < 1'")]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="A stage, or STEP.STAGE, as "
                                          "`limbeck plan` lists")]
StepName = Annotated[str | None, typer.Option("--step", help="The step of the config, where it has "
                                              "several; default: every step that has the stage.")]
Each = Annotated[list[str] | None, typer.Option(
    "--each", metavar="KEY=V1,V2", help="Repeat all that stands on the key with each value.")]

Wait = Annotated[bool, typer.Option("--wait", help="Wait for a stage that another process makes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"limbeck {version('limbeck')}")
    except PackageNotFoundError:
        print("limbeck, from a checkout that is not installed")
    raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version.")] = False
        ) -> None:
    pass


def _experiment(files: list[Path] | None, overrides: list[str] | None,
                each: list[str] | None = None) -> Experiment:
    from pipeline.config.experiment import Experiment
    from pipeline.config.load import load, sweep

    return load(Experiment, config_files(files), [*(overrides or []), *map(sweep, each or ())])


def _given(overrides: list[str] | None, files: list[Path] | None, step: str | None,
           each: list[str] | None) -> list[str]:
    """The arguments that lead to the same experiment and step."""
    return [*(part for path in files or () for part in ("-c", str(path))),
            *(("--step", step) if step else ()),
            *(part for text in each or () for part in ("--each", text)), *(overrides or ())]


def _only_read() -> None:
    """Start sooner: a command that only reads settings needs few of the libraries it imports."""
    defer("numpy", "pipeline.tables")
    gc.set_threshold(100_000)       # what is imported stays; looking through it takes a tenth


def _stage_command(name: str) -> None:
    def command(overrides: Overrides = None, config: Files = None, step: StepName = None,
                each: Each = None, wait: Wait = False,
                debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False) -> None:
        from stages.make import make, stage_targets

        experiment = _experiment(config, overrides, each)
        make(experiment, stage_targets(experiment, name, step),
             _given(overrides, config, step, each), wait)

    app.command(name, help=STAGES[name].help)(command)


for _name in STAGES:
    _stage_command(_name)


@app.command("all")
def make_all(overrides: Overrides = None, config: Files = None, each: Each = None,
             wait: Wait = False, debug: bool = False) -> None:
    """Make every stage of every step, up to the report."""
    from stages.make import goals, make

    experiment = _experiment(config, overrides, each)
    make(experiment, goals(experiment), wait=wait)


@app.command()
def plan(overrides: Overrides = None, config: Files = None, each: Each = None,
         check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything would run.")]
         = False, as_json: Json = False, debug: bool = False) -> None:
    """Say what is cached, what would run, and why; runs nothing."""
    _only_read()
    from stages.make import show_plan

    if show_plan(_experiment(config, overrides, each), as_json) and check:
        raise typer.Exit(1)


@app.command()
def show(stage: StageName, overrides: Overrides = None, config: Files = None,
         rows: Annotated[int, typer.Option("-n", "--n", "--rows", min=0, help="Rows to show.")] = 3,
         where: Annotated[str | None, typer.Option(
             help="Show whole, and alone, rows for which this holds: an expression over columns, "
                  "as filter.keep, e.g. 'not kept and reason == \"wrong\"'")] = None,
         as_json: Json = False, debug: bool = False) -> None:
    """Show a stage's manifest, counts and a few rows, or the rows that --where picks."""
    from stages.show import show_stage

    show_stage(_experiment(config, overrides), stage, rows, where, as_json)


@app.command()
def path(stage: StageName, overrides: Overrides = None, config: Files = None,
         as_json: Json = False, debug: bool = False) -> None:
    """Print the artifact's folder and nothing else."""
    _only_read()
    from stages.make import plan_of

    plan = plan_of(_experiment(config, overrides), stage)
    folder = plan.fetched().resolve()
    print(json.dumps({"stage": stage, "key": plan.key, "folder": str(folder),
                      "made": plan.manifest is not None}) if as_json else folder)


@app.command()
def clean(overrides: Overrides = None, config: Files = None,
          partial: Annotated[bool, typer.Option("--partial", help="Also what interrupted stages "
                                                "left, from which they would go on.")] = False,
          delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this nothing "
                                               "is deleted.")] = False,
          debug: bool = False) -> None:
    """List what may go and how much it is: the training checkpoints of finished stages."""
    from stages.clean import clean as clean_folder

    clean_folder(_experiment(config, overrides).runtime.folders()[0], partial, delete)


@app.command()
def runs(overrides: Overrides = None, config: Files = None, as_json: Json = False,
         debug: bool = False) -> None:
    """List what is made: which experiment, when, how large, and the settings that differ."""
    from stages.graph import plans
    from stages.make import goals
    from stages.runs import show_runs

    experiment = _experiment(config, overrides)
    current = {plan.folder.name for plan in plans(experiment, *goals(experiment)).values()}
    show_runs(experiment.runtime.folders(), current, as_json)


@app.command()
def submit(target: Annotated[str, typer.Argument(metavar="STAGE", help="A stage, or all")],
           overrides: Overrides = None, config: Files = None, step: StepName = None,
           each: Each = None,
           on: Annotated[str, typer.Option(help="The scheduler: slurm.")] = "slurm",
           wait: Annotated[bool, typer.Option("--wait", help="Wait for the job's end and exit with "
                                              "its code; Ctrl-C leaves the job running.")] = False,
           debug: bool = False) -> None:
    """Run STAGE as a batch job (runtime.slurm) that is queued again until it is done."""
    from stages.submit import check_request, submit_command

    check_request(target, on, step)
    code = submit_command(_experiment(config, overrides, each), target, step,
                          _given(overrides, config, step, each), wait)
    raise typer.Exit(code)


@app.command()
def jobs(overrides: Overrides = None, config: Files = None, as_json: Json = False,
         debug: bool = False) -> None:
    """List the batch jobs submitted from this artifacts folder, their states and logs."""
    from stages.submit import show_jobs

    show_jobs(_experiment(config, overrides), as_json)


@app.command("config")
def show_config(overrides: Overrides = None, config: Files = None, debug: bool = False) -> None:
    """Print the resolved config and where each value came from."""
    from pipeline.config.load import read_layers
    from stages.make import print_config

    layers = read_layers(config_files(config), overrides or [])
    print_config(_experiment(config, overrides), layers)


@app.command()
def audit(overrides: Overrides = None, config: Files = None,
          file: Annotated[Path | None, typer.Option(help="Judge this file, as for `limbeck judge`, "
                                                         "instead of the filtered traces.")] = None,
          n: Annotated[int, typer.Option(min=1, help="Rows to judge twice.")] = 200,
          step: StepName = None, debug: bool = False) -> None:
    """Judge a sample with a second, independent grader and show what the two disagree on."""
    from pipeline.problems.files import read_rows
    from stages.make import judged_rows, step_plan

    rows = list(read_rows(file)) if file else judged_rows(
        step_plan(_experiment(config, overrides), "filter", step))
    commands.audit_rows(rows, n, 0)


@app.command()
def estimate(overrides: Overrides = None, config: Files = None,
             pilot: Annotated[int, typer.Option(help="Requests asked first, directly even where "
                                                   "runtime.teacher.batch is set; 0 sends none.")]
             = 0,
             step: StepName = None,
             gpus: Annotated[int | None, typer.Option(min=1, help="Also say hours of every stage "
                                                      "on this many GPUs.")] = None,
             gpu: Annotated[str, typer.Option(help="Their kind.")] = "h100",
             gpu_usd: Annotated[float | None, typer.Option(help="Dollars an hour of one.")] = None,
             train_rate: Annotated[float | None, typer.Option(
                 help="Tokens a second that one trains on, if measured.")] = None,
             sample_rate: Annotated[float | None, typer.Option(
                 help="Tokens a second that one samples, if measured.")] = None,
             student_billions: Annotated[float | None, typer.Option(
                 help="Parameters of the student, if its name does not say.")] = None,
             problems: Annotated[int | None, typer.Option(
                 min=1, help="Problems that are taught, instead of loading them.")] = None,
             trace_tokens: Annotated[float | None, typer.Option(
                 min=1, help="Tokens of a trace, where none is stored yet.")] = None,
             as_json: Json = False, debug: bool = False) -> None:
    """Say tokens, dollars and hours of a generate run, or of a whole recipe on described GPUs."""
    from pipeline.cluster.gpu_hours import Gpus
    from stages.gpu_work import Given, show_estimate

    there = Gpus(gpus, gpu, gpu_usd, train_rate, sample_rate) if gpus else None
    show_estimate(_experiment(config, overrides), step, pilot, there,
                  Given(problems, trace_tokens, student_billions), as_json)


@app.command()
def preview(overrides: Overrides = None, config: Files = None, step: StepName = None,
            as_json: Json = False,
            debug: bool = False) -> None:
    """Say what filter would keep and why the rest would leave; writes nothing, asks no teacher."""
    from stages.make import step_plan

    commands.preview_filter(step_plan(_experiment(config, overrides), "filter", step), as_json)


@app.command()
def push(repo: Annotated[str, typer.Argument(help="USER/NAME, or NAME alone; the traces go to "
                                                  "NAME-traces.")],
         overrides: Overrides = None, config: Files = None,
         model: Annotated[str | None, typer.Option(help="untrained, sft, rl, or STEP.sft, STEP.rl; "
                                                        "default: the last that evaluate "
                                                        "compares.")] = None,
         only: Annotated[list[str] | None, typer.Option(
             help="model, data (the kept traces) or report; may be given several times. "
                  "Default: all.")] = None,
         public: Annotated[bool, typer.Option("--public", help="Repositories are private "
                                              "without this.")] = False,
         accept: Annotated[bool, typer.Option("--accept", help="Push although a licence or a "
                                              "benchmark's rules restrict it.")] = False,
         out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the repositories to "
                                                  "this folder instead, to look at.")] = None,
         debug: bool = False) -> None:
    """Push the trained model, its traces and its report with their cards to a hub (HF_ENDPOINT)."""
    from stages.push import PARTS
    from stages.push import push as push_parts

    push_parts(_experiment(config, overrides), repo, only or list(PARTS), model=model,
               private=not public, accepted=accept, out=out)


@app.command()
def lineage(folder: Annotated[Path, typer.Argument(help="A checkpoint, or a stage's folder.")],
            as_json: Json = False, debug: bool = False) -> None:
    """Say what made a checkpoint: every stage, its key, problems, teacher, student and commit."""
    from stages.push import show_lineage

    show_lineage(folder, as_json)


@app.command()
def view(targets: Annotated[list[str] | None, typer.Argument(
             metavar="[FILE|FOLDER|KEY=VALUE]...", help="Files of traces or folders of artifacts; "
             "default: the artifacts of this experiment.")] = None, config: Files = None,
         port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any "
                                           "free one.")] = 8321,
         browser: Annotated[bool, typer.Option("--open", help="Open a browser too.")] = False,
         debug: bool = False) -> None:
    """Serve a local page to read traces, judge them by eye and follow runs; Ctrl-C ends it."""
    from stages import view as page

    paths, overrides = page.split_targets(targets or [])
    page.view(_experiment(config, overrides), paths, port, browser)


@app.command("export-reviews")
def export_reviews(overrides: Overrides = None, config: Files = None,
                   out: commands.Output = None, debug: bool = False) -> None:
    """Write what people said of traces as JSON Lines."""
    from stages.view import export_reviews as export

    export(_experiment(config, overrides), out)


@app.command("import-reviews")
def import_reviews(file: Annotated[str, typer.Argument(help="JSONL, as export-reviews writes; - "
                                                            "reads standard input.")],
                   overrides: Overrides = None, config: Files = None, debug: bool = False) -> None:
    """Add what people said elsewhere; a verdict that is there already is not added twice."""
    from stages.view import take_reviews

    take_reviews(_experiment(config, overrides), file)


@app.command()
def chat(model: Annotated[str | None, typer.Argument(
             help="A model of the run (untrained, sft, rl), a checkpoint folder, a .gguf file, a "
                  "hub id, or an address with /v1. Default: the model that export writes.")] = None,
         overrides: Overrides = None, config: Files = None,
         serve: Annotated[bool, typer.Option("--serve", help="Serve it as an OpenAI-compatible "
                                             "endpoint, and do not talk.")] = False,
         host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
         port: Annotated[int, typer.Option(help="Port to serve on; 0: any free one.")] = 0,
         name: Annotated[str | None, typer.Option(help="Model's name at an address that has "
                                                  "several.")] = None,
         temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
         max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
         debug: bool = False) -> None:
    """Talk to a model, its thinking dimmed; Ctrl-C stops an answer only. Or serve it."""
    from stages.chat import chat as talk

    if model and "=" in model and not Path(model).exists():
        overrides, model = [model, *(overrides or ())], None
    talk(_experiment(config, overrides), model, serve=serve, host=host, port=port, name=name,
         settings={"temperature": temperature, "max_tokens": max_tokens})


@app.command()
def compare(first: Annotated[Path, typer.Argument(metavar="A", help="A config file, or the folder "
                                                  "of an evaluation or report.")],
            second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
            overrides: Overrides = None, debug: bool = False) -> None:
    """Set two evaluated experiments side by side: settings that differ, scores, differences."""
    from stages.compare import compare as compare_runs

    compare_runs(first, second, overrides or [])


app.command()(commands.doctor)
app.command()(commands.judge)
app.command()(commands.attack)
app.command()(commands.benchmarks)
app.command()(commands.probe)


def main() -> None:
    """Entry point: a UserError becomes one sentence and exit code 2.

    Ctrl-C is exit code 130, and so are the signals that batch systems send before they kill.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGINT}:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:       # nohup
            signal.signal(number, _interrupt)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if any(name.casefold().endswith("_proxy") for name in os.environ):
        from pipeline.proxies import keep_loopback_direct

        keep_loopback_direct()
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):     # may be ASCII or Latin-1
        stream.reconfigure(errors="backslashreplace")       # type: ignore[union-attr]
    try:
        app()
    except UserError as error:
        if debug:
            raise
        sys.exit(_complain(str(error), error.code))
    except SystemExit as stop:  # Typer turns Ctrl-C into exit code 130 without a word
        if stop.code == 130:
            _complain(STOPPED, 130)
        raise
    except BaseException as error:
        # Rust (polars) panics if Ctrl-C is raised in Python code that it calls; and a stop may meet
        # Typer while it deals with the first.
        if isinstance(error, KeyboardInterrupt) or (
                type(error).__name__ == "PanicException" and "KeyboardInterrupt" in str(error)):
            sys.exit(_complain(STOPPED, 130))
        said = _of_the_disk(error)
        if debug or not said:
            raise
        sys.exit(_complain(f"{said}; free space or fix permissions, then run the same command "
                           "again", 2))


def _of_the_disk(error: BaseException) -> str:
    """What kept a file from being read or written, "" if `error` is about something else."""
    if isinstance(error, OSError) and (error.filename, error.errno) != (None, None):
        return f"{error.strerror}: {error.filename or 'no file named'}"
    # numpy and safetensors have words of their own for it.
    words = {"OSError": r"\d+ requested and \d+ written", "SafetensorError": ".*I/O error.*"}
    if re.fullmatch(words.get(type(error).__name__, "(?!)"), str(error)):
        return f"a file could not be written ({error})"
    return ""


def _interrupt(*_: object) -> None:
    """Do as on Ctrl-C, even if a shell that starts background jobs had it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _complain(sentence: str, code: int) -> int:
    print(f"limbeck: {sentence}", file=sys.stderr)
    if code == 130:
        # A Ctrl-C that met code in a string (a dataclass being made, say) ends `python -m` by that
        # signal, whatever was caught since, unless other code in a string follows (CPython).
        exec("")
    return code


if __name__ == "__main__":
    main()
