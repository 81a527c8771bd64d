"""The loss of `sft.method.type=logits`: the student's divergence from the teacher, by token."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config.sft import CrossTokenizerMethod, LogitsMethod, Online, SftJob
from pipeline.sft.divergence import Dense, LossWeights, TopK, distillation_loss
from pipeline.sft.target_store import TargetStore
from pipeline.sft.teacher_scorer import hidden_states, load_teacher, output_layer
from pipeline.student.token_rows import IGNORED, Rows
from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary


class DistillationLoss:
    """Computes the loss of a batch, summed over its trained tokens.

    The teacher is `teacher`, the batch's stored distributions, or neither (cross-entropy).
    """

    def __init__(self, weights: LossWeights, teacher: Any = None):
        self.weights, self.teacher = weights, teacher

    def __call__(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        labels = inputs.pop("labels")[:, 1:]
        stored = {key: inputs.pop(key) for key in list(inputs) if key.startswith("target_")}
        trained = labels != IGNORED
        signal: TopK | Dense | None = None
        if self.teacher is not None:
            signal = self._online(inputs, trained)
        elif stored:
            signal = TopK(stored["target_ids"], stored["target_logps"],
                          stored["target_tail_logprob"])
        states = hidden_states(model, inputs)[:, :-1][trained]
        loss, gap, nll, _ = distillation_loss(states, *output_layer(model), labels[trained], signal,
                                              self.weights)
        metrics = {"divergence": gap} if signal is not None else {}
        return loss, {**metrics, "cross_entropy": nll} if self.weights.cross_entropy else metrics

    @torch.no_grad()
    def _online(self, inputs: dict[str, Any], trained: torch.Tensor) -> Dense:
        return Dense(hidden_states(self.teacher, inputs)[:, :-1][trained],
                     *output_layer(self.teacher))


def loss_and_targets(job: SftJob, rows: Rows, tokenizer: Any) -> tuple[Any, Any]:
    """Return (loss, function for a batch's stored targets) of the job's method.

    The loss is None if the trainer's own is used, the function if nothing is stored.
    """
    method = job.sft.method
    if isinstance(method, CrossTokenizerMethod):
        from pipeline.sft.cross_tokenizer import CrossTokenizerLoss

        return CrossTokenizerLoss(method, tokenizer), None
    if not isinstance(method, LogitsMethod):
        plain = DistillationLoss(LossWeights(cross_entropy=1.0))
        return plain if job.sft.head == "limbeck" else None, None
    if isinstance(method.source, Online):
        name = method.source.teacher
        check_vocabulary(bare_tokenizer(name), tokenizer, name)
        weights = LossWeights(method.beta, method.source.temperature, method.cross_entropy)
        return DistillationLoss(weights, load_teacher(name, method.source.dtype)), None
    assert job.logits is not None
    targets = TargetStore.read(job.logits, rows)
    weights = LossWeights(method.beta, targets.metadata["temperature"], method.cross_entropy)
    return DistillationLoss(weights), targets.batch
