"""GRPO on problems inside a difficulty band, with groups of equal reward sampled again.

A resumed run equals an uninterrupted one. TRL 1.16 only logs the share of groups of equal reward,
starts a resumed run with the first epoch's order, and forgets completions not yet trained on.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler

from pipeline.rl.difficulty import outside_band
from pipeline.rl.grpo_trainer import PaddingFreeGRPOTrainer

RUNNING_SCORES = 32
"""Newest scores of a problem in its running pass rate."""
Rows = list[dict[str, Any]]


class EpochOrder(Sampler):
    """TRL's RepeatSampler with an order that depends on seed and epoch alone."""

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __iter__(self):
        if self.sampler.shuffle:
            epoch = int(self.trainer.state.epoch or 0)
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class DynamicSamplingTrainer(PaddingFreeGRPOTrainer):
    """PaddingFreeGRPOTrainer with a difficulty band and dynamic sampling.

    `difficulty` is an expression over a problem's running pass_rate and samples, "" for every
    problem; `refill_rounds` limits the extra generations that refill groups of equal reward (DAPO,
    arXiv 2503.14476, 3.2).
    """

    def __init__(self, *args: Any, difficulty: str = "", refill_rounds: int = 0, **kwargs: Any):
        self.difficulty, self.refill_rounds = difficulty, refill_rounds
        super().__init__(*args, **kwargs)
        self.scores: dict[str, list[float]] = {}
        self.first: dict[str, float] = {}       # each problem's mean score when it was new
        rows: Any = self.train_dataset
        self.rows, self.keys = rows, [problem_key(row) for row in rows]
        self.rewards = torch.zeros(0)
        self.group_size = int(self.num_generations or 1)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return EpochOrder(super()._get_train_sampler(dataset), self)

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        if not self._is_training() or not (self.difficulty or self.refill_rounds):
            return super()._generate_and_score_completions(inputs)
        inputs = self._replace_outside_band(inputs)
        output = super()._generate_and_score_completions(inputs)
        return self._refill(inputs, output) if self.refill_rounds else output

    def _calculate_rewards(self, inputs: Rows, *args: Any) -> torch.Tensor:
        scores = super()._calculate_rewards(inputs, *args)
        if self._is_training():
            weights = self.reward_weights.to(scores.device)
            unknown = scores.isnan().all(1)
            self.rewards = (scores * weights).nansum(1).masked_fill(unknown, torch.nan)
            names = self.reward_func_names
            judged = scores[:, names.index("accuracy") if "accuracy" in names else 0].tolist()
            fresh = defaultdict[str, list[float]](list)
            for key, score in zip(self._gather_keys(inputs), judged, strict=True):
                if score == score:  # NaN is a completion that could not be judged
                    fresh[key].append(score)
            for key, new in fresh.items():
                self.scores[key] = [*self.scores.get(key, []), *new][-RUNNING_SCORES:]
            self._compare_with_first({key: fmean(new) for key, new in fresh.items()})
        return scores

    def _compare_with_first(self, means: dict[str, float]) -> None:
        """Log the `means` of problems asked before beside those of their first time."""
        again = means.keys() & self.first.keys()
        if again:
            self._add_metric("asked_again/accuracy", fmean(means[key] for key in again))
            self._add_metric("asked_again/first", fmean(self.first[key] for key in again))
        self._add_metric("asked_again/share", len(again) / max(1, len(means)))
        self.first = {**means, **self.first}

    def _is_training(self) -> bool:
        return bool(self.model and self.model.training)

    def _gather_keys(self, inputs: Rows) -> list[str]:
        """The problem of each row of all processes."""
        return gather_object([problem_key(row) for row in inputs])

    def _group_numbers(self, rows: int) -> list[int]:
        """The group, numbered over all processes, of each of this process's `rows`."""
        first = self.accelerator.process_index * rows
        return [(first + row) // self.group_size for row in range(rows)]

    def _draw_problems(self, count: int, avoid: set[str], salt: str) -> Rows:
        """Up to `count` problems not in `avoid`, the same in every process and resumed run."""
        free = [index for index, key in enumerate(self.keys) if key not in avoid]
        draw = Random(f"{self.args.seed} {self._step} {salt}")
        return [self.rows[i] for i in draw.sample(free, min(count, len(free)))]

    def _replace_outside_band(self, inputs: Rows) -> Rows:
        """`inputs` with other problems for those whose running pass rate has left the band."""
        if not self.difficulty:
            return inputs
        outside = outside_band(self.difficulty, self.scores)
        keys = self._gather_keys(inputs)
        stale = [g for g, key in enumerate(keys[::self.group_size]) if key in outside]
        drawn = self._draw_problems(len(stale), outside | set(keys), "band")
        replaced = dict(zip(stale, drawn, strict=False))
        self._add_metric("difficulty/replaced", len(replaced) * self.group_size / len(keys))
        return [replaced.get(g, row)
                for g, row in zip(self._group_numbers(len(inputs)), inputs, strict=True)]

    def _refill(self, inputs: Rows, output: dict[str, Any]) -> dict[str, Any]:
        """`output` with groups of equal reward replaced in up to `refill_rounds`, the rest masked.

        Several processes sample a whole generation, so that a new group replaces one of the same
        process and no rows are exchanged; a single process samples only the missing groups.
        """
        groups = self._group_numbers(len(inputs))
        single = self.accelerator.num_processes == 1
        avoid = outside_band(self.difficulty, self.scores) if self.difficulty else set()
        avoid |= set(self._gather_keys(inputs))
        total = len(self.rewards) // self.group_size
        equal, rounds = self._equal_reward_groups(), 0
        while equal and rounds < self.refill_rounds:
            wanted = sorted(equal) if single else list(range(total))
            drawn = self._draw_problems(len(wanted), avoid, str(rounds))
            fresh = dict(zip(wanted, drawn, strict=False))
            if not fresh or not (single or len(fresh) == total):
                break
            rows = [row for row, group in enumerate(groups) if group in fresh]
            more = self._generate_unlogged([fresh[groups[row]] for row in rows])
            still_equal = self._equal_reward_groups()
            filled = equal & {group for i, group in enumerate(fresh) if i not in still_equal}
            copy_rows(output, more,
                      {row: i for i, row in enumerate(rows) if groups[row] in filled},
                      self._tokenizer.pad_token_id)
            avoid |= {problem_key(row) for row in fresh.values()}
            equal, rounds = equal - filled, rounds + 1
        self._add_metric("dynamic_sampling/rounds", rounds)
        self._add_metric("dynamic_sampling/left_zero_std", len(equal) / total)
        return self._mask_rows([row for row, group in enumerate(groups) if group in equal], output)

    def _equal_reward_groups(self) -> set[int]:
        """The groups of the last generation in which every sample earned the same reward."""
        grouped = self.rewards.view(-1, self.group_size)
        spread = grouped.nan_to_num(-torch.inf).amax(1) - grouped.nan_to_num(torch.inf).amin(1)
        return {group for group, width in enumerate(spread.tolist()) if not width > 1e-6}

    def _generate_unlogged(self, inputs: Rows) -> dict[str, Any]:
        """A generation that leaves no metrics or table rows, because it is a biased sample."""
        metrics, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        table = deepcopy(self._logs)    # as long as one generation: new rows would push others out
        more = super()._generate_and_score_completions(inputs)
        metrics["num_tokens"] = self._metrics["train"]["num_tokens"]
        self._metrics["train"], self._logs = metrics, table
        return more

    def _mask_rows(self, rows: list[int], output: dict[str, Any]) -> dict[str, Any]:
        """`output` with `rows` left out of the step's loss, KL and token count.

        The loss types that divide by sequences (grpo, dr_grpo, luspo) still count them.
        """
        output["completion_mask"][rows] = 0
        output["advantages"][rows] = 0
        return self._add_loss_counts(output)

    def _add_metric(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # With save_only_model the first process alone makes the folder: the others come too early.
        self.accelerator.wait_for_everyone()
        args: Any = self.args
        unused = self._step % (args.steps_per_generation * self.num_iterations)
        rollouts = self._buffered_inputs if unused else None
        torch.save({"step": self._step, "scores": self.scores, "first": self.first,
                    "rollouts": rollouts},
                   self._kept(f"{self.args.output_dir}/checkpoint-{self.state.global_step}"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := self._kept(checkpoint)).is_file():
            kept = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self._step, self.scores = kept["step"], kept["scores"]
            self._buffered_inputs, self.first = kept["rollouts"], kept.get("first", {})

    def _kept(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"curriculum-{self.accelerator.process_index}.pt"


def problem_key(row: dict[str, Any]) -> str:
    """What tells problems apart."""
    return str(row.get("problem_id") or row["prompt"])


def copy_rows(output: dict[str, Any], more: dict[str, Any], rows: dict[int, int],
              pad_token_id: int) -> None:
    """Copy rows of `more` into `output`: {row of output: row of more}, both padded to one width.

    Tensors are [rows] or [rows, columns]; prompts are padded on the left, the rest on the right,
    token ids with `pad_token_id`, masks and log-probabilities with 0.
    """
    for name, value in output.items():
        if value.ndim == 0:
            continue
        source = more[name]
        if value.ndim == 2:
            width = max(value.shape[1], source.shape[1])
            value, source = (_pad_to(v, width, name, pad_token_id) for v in (value, source))
        value[list(rows)] = source[list(rows.values())]
        output[name] = value


def _pad_to(value: torch.Tensor, width: int, name: str, pad_token_id: int) -> torch.Tensor:
    missing = width - value.shape[1]
    sides = (missing, 0) if name.startswith("prompt") else (0, missing)
    padding = pad_token_id if name.endswith("ids") else 0
    return torch.nn.functional.pad(value, sides, value=padding)
