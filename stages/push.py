"""push and lineage: a model, its traces and its report to a hub; what a checkpoint came from."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.hub import cards, lineage
from pipeline.hub.upload import Files, refuse_secrets, secrets, upload
from pipeline.stage import Plan
from stages.graph import MAKER, MODELS, STAGES, plans

PARTS = ("model", "data", "report")
LEFT_OUT = {"training_args.bin", lineage.FILE}


def push(experiment: Experiment, repo: str, parts: list[str], *, model: str | None,
         private: bool, accepted: bool, out: Path | None) -> None:
    """Push `parts` of a finished run to `repo` and `repo`-traces, or write them to `out`.

    `model` is one that evaluate compares; None is the last of them.

    Raises UserError if a stage is not made, a licence forbids it, or a file holds a key.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"there is no {unknown[0]!r} to push; name some of {', '.join(PARTS)}")
    model = model or [name for name in experiment.compared() if name != "teacher"][-1]
    target = MAKER.get(model, model)
    step, _, stage = target.rpartition(".")
    if stage not in MODELS:
        raise UserError(f"--model {model} is no trained model; name untrained, sft, rl, or "
                        "STEP.sft or STEP.rl of a step")
    plan = plans(experiment, target)[target]
    inputs = made(experiment, plan, parts, step)
    places = experiment.runtime.folders()
    manifests = lineage.chain(inputs[stage if "model" in parts else "filter"], places)
    if "evaluate" in inputs and "model" in parts:
        manifests |= {"evaluate": lineage.chain(inputs["evaluate"], places)["evaluate"]}
    origin = cards.origin(plan.experiment, inputs, manifests, "data" in parts)
    for sentence in origin.restrictions:
        print(f"push: {sentence}", file=sys.stderr)
    if origin.restrictions and not accepted:
        raise UserError("what is said above restricts this push; leave `data` out, or give "
                        "--accept if you may publish it nevertheless")
    scores = cards.scores_of(inputs, model)
    repositories = _repositories(plan.experiment, inputs, origin, repo, parts, stage, scores)
    keys = [runtime.api_key().get_secret_value()
            for runtime in (experiment.runtime.teacher, experiment.runtime.llm_judge)]
    for _, files in repositories.values():
        refuse_secrets(files, secrets(keys))
    for name, (kind, files) in repositories.items():
        if out:
            _write(files, out / name.rpartition("/")[2])
            print(f"{out / name.rpartition('/')[2]}: {len(files)} files", file=sys.stderr)
        else:
            where = upload(name, kind, files, private=private, message="Upload by limbeck")
            print(f"{kind}: {where} ({'private' if private else 'public'}, {len(files)} files)")


def made(experiment: Experiment, model: Plan, parts: list[str],
         step: str = "") -> dict[str, Path]:
    """The folders of the finished stages that `model`, of `step`, stands on, evaluate's, report's.

    Raises UserError if one that is needed is not made.
    """
    whole = plans(experiment, "report")
    chain = {**_below(model), **{name: whole[name] for name in ("evaluate", "report")}}
    found = {name: plan.fetched() for name, plan in chain.items() if plan.manifest}
    needed = {"prepare", *([model.stage.name] if "model" in parts else []),
              *(["filter"] if "data" in parts else []), *(["report"] if "report" in parts else [])}
    if missing := sorted(needed - set(found)):
        step = f" --step {step}" if step and not STAGES[missing[0]].of_the_whole else ""
        raise UserError(f"{missing[0]} is not made yet for this config; run "
                        f"`limbeck {missing[0]}{step}`, or push less (--only)")
    return found


def _below(plan: Plan) -> dict[str, Plan]:
    """The plan of each stage below `plan` and its own, by stage; of several the nearest."""
    found = {plan.stage.name: plan}
    for need in plan.inputs.values():
        found = {**_below(need), **found}
    return found


def _repositories(experiment: Experiment, inputs: Mapping[str, Path], origin: cards.Origin,
                  repo: str, parts: list[str], stage: str, scores: Mapping[str, Any]
                  ) -> dict[str, tuple[str, Files]]:
    """{repository: (kind, its files)}."""
    out: dict[str, tuple[str, Files]] = {}
    chain = json.dumps(origin.manifests, indent=1, ensure_ascii=False).encode()
    report: Files = {name: inputs["report"] / name for name in ("report.html", "numbers.json")} \
        if "report" in parts else {}
    if "model" in parts:
        folder = inputs[stage] / "model"
        if not folder.is_dir():
            raise UserError(f"the untrained model is {experiment.student.model} itself, which is "
                            "not yours to push; name --model sft or rl")
        weights = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))
                   if path.is_file() and path.name not in LEFT_OUT}
        card = cards.model_card(experiment, origin, scores, repo)
        out[repo] = ("model", {**weights, lineage.FILE: chain, "README.md": card.encode(),
                               "scores.json": json.dumps(scores, indent=1).encode(), **report})
    if "data" in parts:
        kept = cards.kept_traces(inputs)
        name, table = f"{repo}-traces", io.BytesIO()
        kept.write_parquet(table)
        refuse_secrets({f"the table of kept traces (data of {name})": kept.write_ndjson().encode()},
                       secrets([]))
        card = cards.data_card(experiment, origin, kept, inputs["filter"] / "judged.parquet",
                               name)
        out[name] = ("dataset", {"data/train.parquet": table.getvalue(), lineage.FILE: chain,
                                 "README.md": card.encode(),
                                 **({} if "model" in parts else report)})
    elif "model" not in parts:
        out[repo] = ("model", report)
    return out


def _write(files: Files, folder: Path) -> None:
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if strange := sorted(there - set(files)):
        # Weights of another push would be published beside these.
        raise UserError(f"{folder} holds {strange[0]}, which is no part of this push; remove the "
                        "folder, or give another --out")
    for path, given in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(given if isinstance(given, bytes) else given.read_bytes())


def show_lineage(folder: Path, as_json: bool) -> None:
    """Print what made a checkpoint, a line a stage, or the manifests as JSON."""
    found: dict[str, Any] = lineage.read(folder)
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else
          "\n".join(lineage.lines(found)))
