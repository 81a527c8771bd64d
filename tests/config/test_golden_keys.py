"""Artifacts made before are found again: the stage keys of every shipped config stay.

A key may change only with a config's own text, a prompt's, or a stage's version raised on purpose;
then golden_keys.json changes in the same commit, which says why.
"""

import json
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from stages.graph import STAGES, plans
from stages.make import goals

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden_keys.json").read_text())
# Overlays, or read a file that is given.
LATER = {"fsdp2", "length", "zero2", "prices", "qwen-distill", "on-policy", "one-gpu",
         "qwen-ablation", "context", "cross-tokenizer", "qwen-seeds"}


@pytest.mark.parametrize("names", GOLDEN)
def test_a_shipped_config_has_the_keys_it_had(names):
    experiment = load(Experiment, [ROOT / f"configs/{name}.yaml" for name in names.split("+")])
    targets = goals(experiment) if experiment.steps else STAGES
    keys = {name: plan.key for one in targets for name, plan in plans(experiment, one).items()}
    assert keys == GOLDEN[names]


def test_every_shipped_config_has_golden_keys():
    shipped = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert shipped - LATER <= {name for names in GOLDEN for name in names.split("+")}
