"""Divergences between the student's and the teacher's next-token distributions, in chunks.

The teacher is given by its K likeliest outcomes and the mass of all others as one more outcome (a
true divergence over K + 1 outcomes), or by its hidden states and output matrix. Loss and gradient
come from one pass that holds one chunk of [tokens, vocabulary] a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad

from pipeline.errors import UserError
from pipeline.train.layers import compiled

ABSENT = -1e4
"""Logit of an outcome that the teacher does not have: finite, or a gradient would be 0 * inf."""
FLOOR = math.log(1e-30)
"""Lowest log-probability of an outcome, which keeps every loss finite."""

# With p the student's and q the teacher's probability of an outcome, s = log p and t = log q, each
# function returns ([n] values, [n, K] gradients by the student's logits) for s and t [n, K].


def forward_kl(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q, p) = sum q (t - s); gradient p - q."""
    q = t.exp()
    return (q * (t - s)).sum(-1), s.exp() * q.sum(-1, keepdim=True) - q


def reverse_kl(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p, q) = sum p (s - t) = D; gradient p (s - t - D)."""
    p, gap = s.exp(), s - t
    value = (p * gap).sum(-1)
    return value, p * (gap - value[:, None])


def jsd(s: torch.Tensor, t: torch.Tensor,
        beta: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """beta KL(q, m) + (1 - beta) KL(p, m), with m = (1 - beta) p + beta q (GKD, arXiv 2306.13649).

    The gradient is (1 - beta) p (s - log m - KL(p, m)).
    """
    p, q = s.exp(), t.exp()
    m = torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))
    gap = s - m
    student = (p * gap).sum(-1)
    value = beta * (q * (t - m)).sum(-1) + (1 - beta) * student
    return value, (1 - beta) * p * (gap - student[:, None])


DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor],
                                tuple[torch.Tensor, torch.Tensor]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}
"""What `sft.method.beta` may name; a number selects one of these three."""


def divergence(s: torch.Tensor, t: torch.Tensor,
               beta: float | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the divergence that `beta` selects, with values and gradients as above."""
    s, t = s.clamp(min=FLOOR), t.clamp(min=FLOOR)
    if isinstance(beta, str):
        return DIVERGENCES[beta](s, t)
    if 0 < beta < 1:
        return jsd(s, t, beta)
    return reverse_kl(s, t) if beta else forward_kl(s, t)


def check_beta(beta: float | str) -> None:
    """Raise UserError if `beta` names no divergence."""
    if isinstance(beta, str) and beta not in DIVERGENCES:
        raise UserError(f"sft.method.beta={beta} is not a divergence; set a number from 0 to 1 or "
                        f"one of {', '.join(DIVERGENCES)}")


@dataclass(frozen=True)
class TopK:
    """The teacher's K likeliest outcomes for each token: `ids` and `logps` [N, K].

    `tail_logprob` [N] is the log mass of all others. Log-probabilities are at the training
    temperature; unused entries have -inf.
    """

    ids: torch.Tensor
    logps: torch.Tensor
    tail_logprob: torch.Tensor

    def normalised(self) -> TopK:
        """Rescale the outcomes, which storage rounds, to sum to 1."""
        total = torch.logsumexp(torch.cat([self.logps, self.tail_logprob[:, None]], 1), 1)
        return TopK(self.ids, self.logps - total[:, None], self.tail_logprob - total)

    def chunk(self, rows: slice) -> TopK:
        return TopK(self.ids[rows], self.logps[rows], self.tail_logprob[rows])


@dataclass(frozen=True)
class Groups:
    """Which of the student's tokens `ids` [K] each of the teacher's V' tokens counts for.

    `of` [V'] are places in `ids`, and K of a token that counts for none. If there are such on both
    sides (`rest`), they are one outcome more; else they are left out.
    """

    ids: torch.Tensor
    of: torch.Tensor
    rest: bool

    def student(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, K] of the outcomes, and [n, 1] of all others as one if `rest`."""
        kept = logits[:, self.ids]
        if not self.rest:
            return kept
        others = logits.index_fill(1, self.ids, -math.inf).logsumexp(1, keepdim=True)
        return torch.cat([kept, others], 1)

    def teacher(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the same outcomes: the sums of what counts for each."""
        mass = logits.new_zeros(len(logits), len(self.ids) + 1)
        mass.index_add_(1, self.of, logits.softmax(1))
        return (mass if self.rest else mass[:, :-1]).log().clamp(min=FLOOR)

    def parted(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Gradient [n, V] by `logits` of what `student` made of them."""
        whole = grad.new_zeros(logits.shape)
        if self.rest:        # the others share the last by probability
            whole += logits.index_fill(1, self.ids, -math.inf).softmax(1) * grad[:, -1:]
        return whole.index_copy_(1, self.ids, grad[:, :len(self.ids)].contiguous())


@dataclass(frozen=True)
class Dense:
    """The teacher's full distribution: `hidden` [N, H'] and its output `weight` [V', H'].

    With another vocabulary `groups` say what of it is which of the student's tokens.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    groups: Groups | None = None

    def fitted(self, vocabulary: int, dtype: torch.dtype) -> Dense:
        """Cut or pad the output matrix to the student's `vocabulary`; products are in `dtype`."""
        if self.groups:
            return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype))
        weight, bias = self.weight[:vocabulary], self.bias
        bias = bias if bias is None else bias[:vocabulary]
        if missing := vocabulary - len(weight):
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            weight, bias = pad(weight, (0, 0, 0, missing)), pad(bias, (0, missing), value=ABSENT)
        return Dense(self.hidden.to(dtype), weight.to(dtype), bias)

    def chunk(self, rows: slice) -> Dense:
        return replace(self, hidden=self.hidden[rows])


@dataclass(frozen=True)
class LossWeights:
    """The loss: (1 - cross_entropy) * divergence(beta) at `temperature` + cross_entropy * CE at 1.

    The divergence is not multiplied by the squared temperature.
    """

    beta: float | str = 0.0
    temperature: float = 1.0
    cross_entropy: float = 0.0
    chunk_elements: int = 1 << 28
    """Logits in memory at a time, and twice as many in half precision: 2**28 are 1 GiB, there 3,533
    tokens at 151,936 outcomes. A dense teacher adds its own, all in float32: 5 GiB."""


def distillation_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                      labels: torch.Tensor, teacher: TopK | Dense | None, loss: LossWeights
                      ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, divergence, cross-entropy, entropy) summed over N tokens; loss has gradients.

    `hidden` [N, H] are the student's states before its output `weight` [V, H] (and `bias` [V]) at
    N trained positions, `labels` [N] the next tokens. Without a teacher the loss is the
    cross-entropy alone; the student's entropy is known beside a dense teacher only. Products are in
    the autocast type if that is on, sums in float32.
    """
    return _Fused.apply(hidden, weight, bias, labels, teacher, loss)  # type: ignore


class _Fused(torch.autograd.Function):
    """Computes loss and gradients in one pass over the chunks."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, teacher, loss):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        matrix = weight.to(dtype)
        if isinstance(teacher, Dense):
            teacher = teacher.fitted(len(weight), dtype)
        wanted = [torch.zeros_like(x, dtype=torch.float32) if need and x is not None else None
                  for x, need in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)]
        sums = torch.zeros(3, device=hidden.device)
        width = 4 if isinstance(teacher, Dense) else matrix.element_size()
        step = max(1, loss.chunk_elements * 4 // width // len(weight))
        for start in range(0, len(hidden), step):
            chunk = slice(start, start + step)
            states = hidden[chunk].to(dtype)
            logits = _project(states, matrix, bias, wide=isinstance(teacher, Dense))
            values, grad = _chunk(logits, labels[chunk], teacher and teacher.chunk(chunk), loss)
            sums += values
            _add_gradients(wanted, chunk, grad.to(dtype), states, matrix)
        ctx.gradients = [None if grad is None else grad.to(x.dtype)
                         for grad, x in zip(wanted, (hidden, weight, bias), strict=True)]
        total = (1 - loss.cross_entropy) * sums[0] + loss.cross_entropy * sums[1]
        ctx.mark_non_differentiable(*(parts := sums.clone().unbind()))
        return total, *parts

    @staticmethod
    def backward(ctx, scale, *_):
        return (*(None if grad is None else grad * scale.to(grad.dtype)
                  for grad in ctx.gradients), None, None, None)


def _project(states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None,
             wide: bool = False) -> torch.Tensor:
    """Compute logits [n, V], in half precision as the product gives them unless `wide`."""
    # Rounded to 16 bits, the logits of two like models differ by noise more than by their gap.
    wide = wide and states.is_cuda and states.dtype is not torch.float32
    logits = torch.mm(states, matrix.T, out_dtype=torch.float32) if wide else states @ matrix.T
    return logits if bias is None else logits.float().add_(bias.float())


def _add_gradients(wanted: list[torch.Tensor | None], chunk: slice, grad: torch.Tensor,
                   states: torch.Tensor, matrix: torch.Tensor) -> None:
    by_hidden, by_weight, by_bias = wanted
    if by_hidden is not None:
        by_hidden[chunk] = grad @ matrix
    if by_weight is not None:
        if grad.is_cuda and grad.dtype is not torch.float32:
            # Products rounded to 16 bits before they are summed would be biased.
            torch.addmm(by_weight, grad.T, states, out_dtype=torch.float32, out=by_weight)
        else:
            by_weight.addmm_(grad.T.float(), states.float())
    if by_bias is not None:
        by_bias += grad.float().sum(0)


def _chunk(logits: torch.Tensor, labels: torch.Tensor, teacher: TopK | Dense | None,
           loss: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ([divergence, cross-entropy, entropy] sums, gradient [n, V]); overwrites `logits`."""
    grad = None
    values = torch.zeros(3, device=logits.device)
    share = loss.cross_entropy
    if teacher is None:
        values[1], grad = _cross_entropy(logits, labels, 1.0)
        return values, grad
    dense = isinstance(teacher, Dense)
    if share and (dense or loss.temperature != 1):
        # The cross-entropy needs a second distribution, at temperature 1.
        values[1], grad = _cross_entropy(logits, labels, share)
        share = 0.0
    if isinstance(teacher, Dense):
        sums, at_temperature = _dense(logits, teacher, loss)
    else:
        sums, at_temperature = _sparse(logits, labels, teacher, loss, share)
    return values + sums, at_temperature if grad is None else grad.add_(at_temperature)


def _dense(logits: torch.Tensor, teacher: Dense,
           loss: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (sums, gradient) over all outcomes, or those of the teacher's groups."""
    ours, heat = logits, loss.temperature
    theirs = _project(teacher.hidden, teacher.weight, teacher.bias, wide=True)
    sides = [ours, theirs]
    if teacher.groups:
        ours, theirs, heat = logits.float() / heat, theirs.float() / heat, 1.0
        sides = [teacher.groups.student(ours), teacher.groups.teacher(theirs)]
    gap, entropy, grad = _on_gpu(dense_divergence, *sides, loss.beta, heat,
                                 (1 - loss.cross_entropy) / loss.temperature, teacher.weight.dtype)
    if teacher.groups:
        grad = teacher.groups.parted(grad, ours)
    return torch.stack([gap.sum(), gap.new_zeros(()), entropy.sum()]), grad


def dense_divergence(logits: torch.Tensor, theirs: torch.Tensor, beta: float | str,
                     temperature: float, scale: float, dtype: torch.dtype
                     ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (divergence [n], student's entropy [n], gradient [n, V] times `scale` in `dtype`)."""
    s, t = ((x.float() / temperature).log_softmax(1) for x in (logits, theirs))
    value, grad = divergence(s, t, beta)
    return value, -(s.exp() * s).sum(1), (grad * scale).to(dtype)


def log_mass(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logarithm of the sum of exp(logits / temperature), float32 [n, 1]."""
    return torch.logsumexp(logits.float() / temperature, 1, keepdim=True)


def scaled_softmax(logits: torch.Tensor, mass: torch.Tensor, scale: torch.Tensor,
                   temperature: float) -> torch.Tensor:
    """Probabilities at `temperature` times `scale` [n, 1], in the type of `logits`."""
    return ((logits.float() / temperature - mass).exp() * scale).to(logits.dtype)


def _on_gpu(function: Callable[..., Any], logits: torch.Tensor, *args: Any) -> Any:
    """Run `function`; on a GPU as one kernel that reads the logits once or twice."""
    if not logits.is_cuda:
        return function(logits, *args)
    for x in (logits, *args):
        if isinstance(x, torch.Tensor):
            torch._dynamo.maybe_mark_dynamic(x, 0)  # type: ignore[no-untyped-call]
    return compiled(function)(logits, *args)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor,
                   share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy's (sum, gradient times `share`)."""
    at_label, mass = logits.gather(1, labels[:, None]).float(), _on_gpu(log_mass, logits, 1.0)
    grad = _on_gpu(scaled_softmax, logits, mass, torch.full_like(mass, share), 1.0)
    own = ((at_label - mass).exp() - 1) * share
    return (mass - at_label).sum(), grad.scatter_(1, labels[:, None], own.to(grad.dtype))


def _sparse(logits: torch.Tensor, labels: torch.Tensor, teacher: TopK, loss: LossWeights,
            share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (sums, gradient) over K + 1 outcomes, with `share` of the cross-entropy."""
    # The K outcomes are taken out of the logits and handled as [n, K]; those of the tail, which
    # stay, share its gradient by probability.
    valid = teacher.logps > -math.inf
    ids, heat = torch.where(valid, teacher.ids, teacher.ids[:, :1]), loss.temperature
    top = torch.where(valid, logits.gather(1, ids).float() / heat, -math.inf)
    at_label = logits.gather(1, labels[:, None]).float() / heat
    tail = _on_gpu(log_mass, logits.scatter_(1, ids, -math.inf), heat)
    total = torch.logaddexp(tail, top.logsumexp(1, keepdim=True))
    s = torch.cat([top, tail], 1) - total
    t = torch.cat([teacher.logps, teacher.tail_logprob[:, None]], 1)
    value, grad = divergence(s, t, loss.beta)
    grad.mul_(1 - loss.cross_entropy)
    p = s.exp()
    rest = (grad[:, -1:] / p[:, -1:].clamp(min=1e-30) + share) / heat
    e = _on_gpu(scaled_softmax, logits, total, rest, heat)
    kept = torch.where(valid, grad[:, :-1] + share * p[:, :-1], 0.0) / heat
    e.scatter_add_(1, ids, kept.to(e.dtype))
    if share:
        e.scatter_add_(1, labels[:, None], torch.full_like(e[:, :1], -share))
    nll = (total - at_label).sum() if share else value.new_zeros(())
    return torch.stack([value.sum(), nll, torch.zeros_like(nll)]), e
