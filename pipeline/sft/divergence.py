"""Divergences between a student's and a teacher's next-token distributions, chunked over tokens.

The teacher is known either by its K likeliest outcomes and the mass of all others, which is one
more outcome (a true divergence over K + 1 outcomes, equal to the dense one at K = vocabulary), or
by its hidden states and output matrix, which TRL's kernel is for. For the outcomes the gradient is
worked out with the loss, chunk by chunk, so that at no time more than one chunk of [tokens,
vocabulary] is held.

With p the student's and q the teacher's probability of a bin, log p = s and log q = t, the
gradients by the logit of a bin are (GKD, arXiv 2306.13649, for the definitions):
forward KL  sum q (t - s)                       p - q
reverse KL  sum p (s - t) = D                   p (s - t - D)
JSD(beta)   beta KL(q, m) + (1 - beta) KL(p, m) (1 - beta) p (s - log m - KL(p, m))
with m = (1 - beta) p + beta q. Inside the bin of the rest, its gradient is shared by p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

ABSENT = -1e4
"""Logit of an outcome the teacher does not know: finite, or TRL's kernel makes 0 * inf of it."""
FLOOR = math.log(1e-30)
"""Log-probability below which an outcome counts as that improbable: keeps every loss finite."""


@dataclass(frozen=True)
class TopK:
    """The teacher's K likeliest outcomes a token: `ids` and `logps` [N, K], log mass `rest` [N].

    Log-probabilities are at the training temperature; a place without an outcome has logp -inf.
    """

    ids: torch.Tensor
    logps: torch.Tensor
    rest: torch.Tensor

    def normalised(self) -> TopK:
        """The same with outcomes that sum to 1 exactly (storage rounds them)."""
        total = torch.logsumexp(torch.cat([self.logps, self.rest[:, None]], 1), 1)
        return TopK(self.ids, self.logps - total[:, None], self.rest - total)

    def part(self, chunk: slice) -> TopK:
        return TopK(self.ids[chunk], self.logps[chunk], self.rest[chunk])


@dataclass(frozen=True)
class Dense:
    """The teacher's whole distribution: `hidden` [N, H'] and its output `weight` [V', H']."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LossWeights:
    """The loss: (1 - cross_entropy) * divergence(beta) at `temperature` + cross_entropy * CE at 1.

    The divergence is not multiplied by the squared temperature.
    """

    beta: float = 0.0
    temperature: float = 1.0
    cross_entropy: float = 0.0
    chunk_elements: int = 1 << 28
    """Logits held at a time; 2**28 are 1 GiB in float32, 1,766 tokens at 151,936 outcomes."""


def divergence(s: torch.Tensor, t: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """([n] divergences, [n, K] gradients by the student's logits) of log-probabilities [n, K]."""
    s, t = s.clamp(min=FLOOR), t.clamp(min=FLOOR)
    p, q = s.exp(), t.exp()
    if beta == 0:
        return (q * (t - s)).sum(-1), p * q.sum(-1, keepdim=True) - q
    if beta == 1:
        gap = s - t
        value = (p * gap).sum(-1)
        return value, p * (gap - value[:, None])
    m = torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))
    gap = s - m
    student = (p * gap).sum(-1)
    value = beta * (q * (t - m)).sum(-1) + (1 - beta) * student
    return value, (1 - beta) * p * (gap - student[:, None])


def distillation_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                      labels: torch.Tensor, teacher: TopK | Dense | None,
                      mix: LossWeights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, divergence, cross-entropy), each summed over the N tokens; the loss has gradients.

    `hidden` [N, H] are the student's states before its output `weight` [V, H] (and `bias` [V]) at
    N trained positions, `labels` [N] the tokens that follow. Products are taken in the autocast
    type where that is on, sums in float32. Without a teacher the loss is the cross-entropy alone.
    """
    if not isinstance(teacher, Dense):
        return _Fused.apply(hidden, weight, bias, labels, teacher, mix)  # type: ignore
    matrix, offset = _as_wide(teacher, len(weight))
    gap = ChunkedDivergenceFunction.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, teacher.hidden, matrix, offset, mix.beta, mix.temperature)[0].sum()
    if not mix.cross_entropy:
        return gap, gap.detach(), torch.zeros_like(gap)
    alone = LossWeights(cross_entropy=1.0, chunk_elements=mix.chunk_elements)
    nll = _Fused.apply(hidden, weight, bias, labels, None, alone)[0]  # type: ignore
    share = mix.cross_entropy
    return (1 - share) * gap + share * nll, gap.detach(), nll.detach()


def _as_wide(teacher: Dense, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The teacher's output (weight, bias) over the student's outcomes: cut, or widened by none."""
    weight, bias = teacher.weight[:vocabulary], teacher.bias
    bias = bias if bias is None else bias[:vocabulary]
    if missing := vocabulary - len(weight):
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        weight, bias = pad(weight, (0, 0, 0, missing)), pad(bias, (0, missing), value=ABSENT)
    return weight, bias


class _Fused(torch.autograd.Function):
    """Values and gradients in one pass over the chunks."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, teacher, mix):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        matrix = weight.to(dtype)
        wanted = [torch.zeros_like(x, dtype=torch.float32) if need and x is not None else None
                  for x, need in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)]
        sums = torch.zeros(2, device=hidden.device)
        step = max(1, mix.chunk_elements // weight.shape[0])
        for start in range(0, len(hidden), step):
            chunk = slice(start, start + step)
            states = hidden[chunk].to(dtype)
            logits = _project(states, matrix, bias)
            values, grad = _chunk(logits, labels[chunk], teacher and teacher.part(chunk), mix)
            sums += values
            _add_gradients(wanted, chunk, grad.to(dtype), states, matrix)
        ctx.gradients = [None if grad is None else grad.to(x.dtype)
                         for grad, x in zip(wanted, (hidden, weight, bias), strict=True)]
        loss = (1 - mix.cross_entropy) * sums[0] + mix.cross_entropy * sums[1]
        ctx.mark_non_differentiable(parts := sums.clone())
        return loss, parts[0], parts[1]

    @staticmethod
    def backward(ctx, scale, *_):
        return (*(None if grad is None else grad * scale.to(grad.dtype)
                  for grad in ctx.gradients), None, None, None)


def _project(states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits [n, V] in float32."""
    logits = (states @ matrix.T).float()
    return logits if bias is None else logits.add_(bias.float())


def _add_gradients(wanted: list[torch.Tensor | None], chunk: slice, grad: torch.Tensor,
                   states: torch.Tensor, matrix: torch.Tensor) -> None:
    """Add one chunk's gradients by hidden states, weight and bias to those wanted."""
    by_hidden, by_weight, by_bias = wanted
    if by_hidden is not None:
        by_hidden[chunk] = grad @ matrix
    if by_weight is not None:
        if grad.is_cuda and grad.dtype is not torch.float32:
            # Rounded to 16 bits before they are added up, the chunks' products would be biased.
            by_weight += torch.mm(grad.T, states, out_dtype=torch.float32)
        else:
            by_weight.addmm_(grad.T.float(), states.float())
    if by_bias is not None:
        by_bias += grad.float().sum(0)


def _chunk(logits: torch.Tensor, labels: torch.Tensor, teacher: TopK | None,
           mix: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """([divergence, cross-entropy] sums, gradient [n, V]) of one chunk; overwrites `logits`."""
    grad = None
    values = torch.zeros(2, device=logits.device)
    share = mix.cross_entropy
    if teacher is None:
        values[1], grad = _cross_entropy(logits, labels, 1.0)
        return values, grad
    if share and mix.temperature != 1:
        # A second distribution is needed, the one at temperature 1.
        values[1], grad = _cross_entropy(logits, labels, share)
        share = 0.0
    if mix.temperature != 1:
        logits.div_(mix.temperature)
    found, at_temperature = _sparse(logits, labels, teacher, mix, share)
    at_temperature.div_(mix.temperature)
    return values + found, at_temperature if grad is None else grad.add_(at_temperature)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor,
                   share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, gradient times `share`) of the cross-entropy."""
    s = torch.log_softmax(logits, -1)
    value = -s.gather(1, labels[:, None]).sum()
    grad = s.exp_().mul_(share)
    return value, grad.scatter_add_(1, labels[:, None], torch.full_like(grad[:, :1], -share))


def _sparse(logits: torch.Tensor, labels: torch.Tensor, teacher: TopK, mix: LossWeights,
            share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums, gradient) over K + 1 bins; `share` of the cross-entropy joins from the same softmax.

    One buffer is turned from logits to exponentials to gradients in place: the likeliest outcomes
    are taken out of it, handled as [n, K], and put back.
    """
    valid = teacher.logps > -math.inf
    ids = torch.where(valid, teacher.ids, teacher.ids[:, :1])
    top, at_label = logits.gather(1, ids), logits.gather(1, labels[:, None])
    peak = logits.amax(1, keepdim=True)
    e = logits.sub_(peak).exp_()
    e_top = torch.where(valid, (top - peak).exp(), 0.0)
    e.scatter_(1, ids, 0.0)
    rest = e.sum(1, keepdim=True)
    total = rest + e_top.sum(1, keepdim=True)
    s_top = torch.where(valid, top - peak - total.log(), -math.inf)
    s = torch.cat([s_top, rest.log() - total.log()], 1)
    t = torch.cat([teacher.logps, teacher.rest[:, None]], 1)
    value, grad = divergence(s, t, mix.beta)
    grad.mul_(1 - mix.cross_entropy)
    e.mul_(grad[:, -1:] / rest.clamp(min=1e-30) + share / total)
    e.scatter_add_(1, ids, torch.where(valid, grad[:, :-1] + share * e_top / total, 0.0))
    if share:
        e.scatter_add_(1, labels[:, None], torch.full_like(at_label, -share))
    nll = (total.log() - at_label + peak).sum() if share else value.new_zeros(())
    return torch.stack([value.sum(), nll]), e
