"""GRPO on problems inside a band, with groups that teach nothing drawn again, exactly resumable.

TRL 1.16 logs the share of groups of equal reward and has no way to refill them, starts each
resumed run at the first epoch's order and forgets completions that were not trained on yet.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler

from pipeline.curriculum import outside_band
from pipeline.grpo import CompactGRPOTrainer

REMEMBERED = 32
"""Newest scores of a problem that its running pass rate is the mean of."""
Rows = list[dict[str, Any]]


class EpochOrder(Sampler):
    """TRL's RepeatSampler with an order that follows from seed and epoch alone."""

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __iter__(self):
        if self.sampler.shuffle:
            epoch = int(self.trainer.state.epoch or 0)
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class CurriculumTrainer(CompactGRPOTrainer):
    """CompactGRPOTrainer with a difficulty band and dynamic sampling; both are off at first."""

    band = ""
    """Expression over a problem's running pass_rate and samples; "" takes every problem."""
    rounds = 0
    """Most extra generations to refill groups of equal reward (DAPO, arXiv 2503.14476, 3.2)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scores: dict[str, list[float]] = {}
        rows: Any = self.train_dataset
        self.rows, self.names = rows, [name_of(row) for row in rows]
        self.rewards = torch.zeros(0)
        self.group = int(self.num_generations or 1)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return EpochOrder(super()._get_train_sampler(dataset), self)

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        if not self._training() or not (self.band or self.rounds):
            return super()._generate_and_score_completions(inputs)
        inputs = self._inside(inputs)
        output = super()._generate_and_score_completions(inputs)
        return self._refilled(inputs, output) if self.rounds else output

    def _calculate_rewards(self, inputs: Rows, *args: Any) -> torch.Tensor:
        scores = super()._calculate_rewards(inputs, *args)
        if self._training():
            weights = self.reward_weights.to(scores.device)
            unknown = scores.isnan().all(1)
            self.rewards = (scores * weights).nansum(1).masked_fill(unknown, torch.nan)
            names = self.reward_func_names
            judged = scores[:, names.index("accuracy") if "accuracy" in names else 0].tolist()
            for name, score in zip(self._all_names(inputs), judged, strict=True):
                if score == score:  # NaN is a completion that could not be judged
                    self.scores[name] = [*self.scores.get(name, []), score][-REMEMBERED:]
        return scores

    def _training(self) -> bool:
        return bool(self.model and self.model.training)

    def _all_names(self, inputs: Rows) -> list[str]:
        """The problem of each row of every process."""
        return gather_object([name_of(row) for row in inputs])

    def _group_of(self, rows: int) -> list[int]:
        """The number, over all processes, of the group that each of this one's `rows` is in."""
        first = self.accelerator.process_index * rows
        return [(first + row) // self.group for row in range(rows)]

    def _fresh(self, count: int, avoid: set[str], salt: str) -> Rows:
        """At most `count` problems that are not in `avoid`, the same in every process.

        They follow from the seed and the step, so that a resumed run draws the same.
        """
        left = [index for index, name in enumerate(self.names) if name not in avoid]
        draw = Random(f"{self.args.seed} {self._step} {salt}")
        return [self.rows[i] for i in draw.sample(left, min(count, len(left)))]

    def _inside(self, inputs: Rows) -> Rows:
        """`inputs` with problems whose running rate has left the band replaced by others."""
        if not self.band:
            return inputs
        outside = outside_band(self.band, self.scores)
        asked = self._all_names(inputs)
        stale = [g for g, name in enumerate(asked[::self.group]) if name in outside]
        swapped = dict(zip(stale, self._fresh(len(stale), outside | set(asked), "band"),
                           strict=False))
        self._note("difficulty/replaced", len(swapped) * self.group / len(asked))
        return [swapped.get(g, row)
                for g, row in zip(self._group_of(len(inputs)), inputs, strict=True)]

    def _refilled(self, inputs: Rows, output: dict[str, Any]) -> dict[str, Any]:
        """`output` with groups of equal reward replaced as far as `rounds` go, the rest masked.

        A fresh group takes the place of the old one in every process, so nothing is sent about;
        one process alone samples only what is missing.
        """
        groups, alone = self._group_of(len(inputs)), self.accelerator.num_processes == 1
        avoid = outside_band(self.band, self.scores) if self.band else set()
        avoid |= set(self._all_names(inputs))
        total = len(self.rewards) // self.group
        dead, taken = self._dead(), 0
        while dead and taken < self.rounds:
            wanted = sorted(dead) if alone else list(range(total))
            fresh = dict(zip(wanted, self._fresh(len(wanted), avoid, str(taken)), strict=False))
            if not fresh or not (alone or len(fresh) == total):
                break
            rows = [row for row, group in enumerate(groups) if group in fresh]
            more = self._quietly([fresh[groups[row]] for row in rows])
            still = self._dead()
            filled = dead & {group for i, group in enumerate(fresh) if i not in still}
            place(output, more, {row: i for i, row in enumerate(rows) if groups[row] in filled},
                  self._tokenizer.pad_token_id)
            avoid |= {name_of(row) for row in fresh.values()}
            dead, taken = dead - filled, taken + 1
        self._note("dynamic_sampling/rounds", taken)
        self._note("dynamic_sampling/left_zero_std", len(dead) / total)
        return self._without([row for row, group in enumerate(groups) if group in dead], output)

    def _dead(self) -> set[int]:
        """The groups of the last generation in which every sample earned the same."""
        grouped = self.rewards.view(-1, self.group)
        spread = grouped.nan_to_num(-torch.inf).amax(1) - grouped.nan_to_num(torch.inf).amin(1)
        return {group for group, width in enumerate(spread.tolist()) if not width > 1e-6}

    def _quietly(self, inputs: Rows) -> dict[str, Any]:
        """A generation of which neither metrics nor table are kept: it is no fair sample.

        TRL's table is as long as a whole generation: the new rows would push out others of it.
        """
        kept, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        table = deepcopy(self._logs)
        more = super()._generate_and_score_completions(inputs)
        kept["num_tokens"] = self._metrics["train"]["num_tokens"]
        self._metrics["train"], self._logs = kept, table
        return more

    def _without(self, rows: list[int], output: dict[str, Any]) -> dict[str, Any]:
        """`output` with `rows` masked: neither loss, KL nor token count of the step holds them.

        The loss types that divide by sequences (grpo, dr_grpo, luspo) still count them.
        """
        output["completion_mask"][rows] = 0
        output["advantages"][rows] = 0
        return self._counted(output)

    def _note(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # With save_only_model the first process alone makes the folder: the others come too early.
        self.accelerator.wait_for_everyone()
        args: Any = self.args
        unused = self._step % (args.steps_per_generation * self.num_iterations)
        rollouts = self._buffered_inputs if unused else None
        torch.save({"step": self._step, "scores": self.scores, "rollouts": rollouts},
                   self._kept(f"{self.args.output_dir}/checkpoint-{self.state.global_step}"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := self._kept(checkpoint)).is_file():
            kept = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self._step, self.scores = kept["step"], kept["scores"]
            self._buffered_inputs = kept["rollouts"]

    def _kept(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"curriculum-{self.accelerator.process_index}.pt"


def name_of(row: dict[str, Any]) -> str:
    """What tells problems apart."""
    return str(row.get("problem_id") or row["prompt"])


def place(output: dict[str, Any], more: dict[str, Any], rows: dict[int, int], pad: int) -> None:
    """Put rows of `more` into `output`: {row there: row here}; both are padded to one width.

    Tensors are [rows] or [rows, columns]; prompts are padded on the left, the rest on the right,
    with `pad` for token ids and 0 for masks and log-probabilities.
    """
    for name, value in output.items():
        if value.ndim == 0:
            continue
        other = more[name]
        if value.ndim == 2:
            width = max(value.shape[1], other.shape[1])
            value, other = (_widened(v, width, name, pad) for v in (value, other))
        value[list(rows)] = other[list(rows.values())]
        output[name] = value


def _widened(value: torch.Tensor, width: int, name: str, pad: int) -> torch.Tensor:
    missing = width - value.shape[1]
    sides = (missing, 0) if name.startswith("prompt") else (0, missing)
    return torch.nn.functional.pad(value, sides, value=pad if name.endswith("ids") else 0)
