"""What a reader of the report asks first: which models, how large, made by what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.experiment import Experiment
from pipeline.config.load import Config, flat
from pipeline.errors import UserError
from pipeline.stage import read_manifest, stage_of
from pipeline.student.tiny import resolve

ROLES = {"student": "student, untrained", "sft": "after SFT", "rl": "after RL"}


def facts(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return `models` (role, name, parameters), `settings` by stage and `commands` of a run."""
    made = {name: read_manifest(folder / "manifest.json") for name, folder in inputs.items()}
    settings = {name: found for name, manifest in made.items()
                if (found := changed(stage_of(name), manifest.get("config", {})))}
    commands = dict.fromkeys(one["command"] for one in made.values() if one.get("command"))
    return {"models": [*_teachers(made), *_students(inputs, made)], "settings": settings,
            "commands": list(commands)}


def changed(stage: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a stage's section that are not the class's defaults, by dotted key."""
    field = Experiment.model_fields.get(stage)
    default: Any = field.default if field else None
    known = flat(default.model_dump(mode="json"), stage) if isinstance(default, Config) else {}
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in flat(config, stage).items()
            if value not in (None, {}, []) and known.get(key, None) != value}


def _teachers(made: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, float | None]]:
    named = [manifest["config"]["teacher"] for name, manifest in made.items()
             if stage_of(name) == "generate" and "teacher" in manifest.get("config", {})]
    return list(dict.fromkeys(
        ("teacher", teacher.get("model") or teacher["type"], _parameters(teacher.get("model", "")))
        for teacher in named))


def _students(inputs: Mapping[str, Path], made: Mapping[str, Mapping[str, Any]]
              ) -> list[tuple[str, str, float | None]]:
    found = []
    for name, folder in inputs.items():
        if (stage := stage_of(name)) in ROLES and "@" not in name:
            model = resolve(folder)
            own = made[name].get("config", {}).get("model") if stage == "student" else None
            step = name.rpartition(".")[0]
            found.append((f"{ROLES[stage]} of {step}" if step else ROLES[stage],
                          own or f"{folder.name}/model", _parameters(model)))
    return found


def _parameters(model: str) -> float | None:
    """Parameters of a folder's model or of a name that says them; None if unknown."""
    from pipeline.cluster.gpu_hours import parameters_of

    try:
        return parameters_of(model)[0]
    except UserError:
        return None


def size(parameters: float | None) -> str:
    """`1.5 B`, `494 M` or `66 K`; "" if unknown."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters and parameters >= unit:
            return f"{parameters / unit:.3g}\N{NO-BREAK SPACE}{letter}"
    return f"{parameters:.0f}" if parameters else ""
