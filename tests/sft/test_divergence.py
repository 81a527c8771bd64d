"""The chunked loss equals the dense one, value and gradient; what top-k loses is bounded."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from pipeline.errors import UserError
from pipeline.sft.divergence import (
    DIVERGENCES,
    Dense,
    LossWeights,
    TopK,
    check_beta,
    distillation_loss,
)

N, H, V = 13, 16, 60
BETAS, TEMPERATURES = (0.0, 0.1, 0.5, 0.9, 1.0), (0.5, 1.0, 2.0)


def setup(seed=0, vocabulary=V, dtype=torch.float32):
    torch.manual_seed(seed)
    hidden = torch.randn(N, H, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, H, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (N,)), torch.randn(N, 8), torch.randn(V, 8)


def dense_loss(logits, labels, teacher_logits, mix):
    """The textbook definition by autograd, in float64."""
    s = torch.log_softmax(logits.double() / mix.temperature, -1)
    t = torch.log_softmax(teacher_logits.double() / mix.temperature, -1)
    p, q = s.exp(), t.exp()
    if mix.beta == 0:
        gap = torch.where(q > 0, q * (t - s), 0.0).sum()
    elif mix.beta == 1:
        gap = (p * (s - t)).sum()
    else:
        m = (1 - mix.beta) * p + mix.beta * q
        gap = mix.beta * torch.where(q > 0, q * (t - m.log()), 0.0).sum() + \
            (1 - mix.beta) * (p * (s - m.log())).sum()
    nll = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
    return (1 - mix.cross_entropy) * gap + mix.cross_entropy * nll


def top_k(logits, k, temperature=1.0):
    """The teacher's k likeliest outcomes and the log mass of the rest."""
    logps, ids = torch.log_softmax(logits / temperature, -1).sort(-1, descending=True)
    return TopK(ids[:, :k], logps[:, :k], logps[:, k:].logsumexp(-1))


def assert_same(hidden, weight, labels, signal, expected, mix):
    wanted = torch.autograd.grad(expected, [hidden, weight], retain_graph=True)
    loss, *_ = distillation_loss(hidden, weight, None, labels, signal, mix)
    made = torch.autograd.grad(loss, [hidden, weight])
    assert abs(loss.item() - expected.item()) <= 1e-5 * max(1, abs(expected.item()))
    for got, want in zip(made, wanted, strict=True):
        assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())


@pytest.mark.parametrize(("beta", "temperature", "share"),
                         itertools.product(BETAS, TEMPERATURES, (0.0, 0.3, 1.0)))
def test_with_every_outcome_known_value_and_gradient_are_the_dense_ones(beta, temperature, share):
    hidden, weight, labels, states, teacher = setup()
    mix = LossWeights(beta, temperature, share, chunk_elements=4 * V)
    expected = dense_loss(hidden @ weight.T, labels, states @ teacher.T, mix)
    assert_same(hidden, weight, labels, top_k(states @ teacher.T, V, temperature), expected, mix)
    assert_same(hidden, weight, labels, Dense(states, teacher), expected, mix)


@pytest.mark.parametrize("beta", BETAS)
def test_a_dense_teachers_values_and_entropy_are_trls(beta):
    hidden, weight, labels, states, teacher = setup()
    mix = LossWeights(beta, 0.7, chunk_elements=4 * V)
    loss, *_, entropy = distillation_loss(hidden, weight, None, labels, Dense(states, teacher), mix)
    wanted = ChunkedDivergenceFunction.apply(hidden, weight, None, states, teacher, None, beta, 0.7)
    torch.testing.assert_close((loss, entropy), tuple(x.sum() for x in wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("beta", "k"), itertools.product(BETAS, (1, 5, 59)))
def test_the_rest_is_one_more_outcome_of_a_true_divergence(beta, k):
    hidden, weight, labels, states, teacher = setup()
    signal, mix = top_k(states @ teacher.T, k), LossWeights(beta, chunk_elements=4 * V)

    def binned(logits):
        s = torch.log_softmax(logits, -1)
        kept = torch.zeros_like(s, dtype=torch.bool).scatter(1, signal.ids, True)
        rest = s.masked_fill(kept, -math.inf).logsumexp(-1)
        return torch.cat([s.gather(1, signal.ids), rest[:, None]], 1)

    # Bins' log-probabilities serve as logits of K + 1 outcomes.
    expected = dense_loss(binned(hidden @ weight.T), torch.zeros(N, dtype=torch.long),
                          binned(states @ teacher.T), mix)
    assert_same(hidden, weight, labels, signal, expected, mix)


def test_what_top_k_loses_is_the_rests_mass_times_the_divergence_inside_it():
    hidden, weight, labels, states, teacher = setup()
    dense = dense_loss(hidden @ weight.T, labels, states @ teacher.T, LossWeights())
    s, t = (torch.log_softmax(x, -1) for x in (hidden @ weight.T, states @ teacher.T))
    for k in (1, 4, 16, 40):
        signal = top_k(states @ teacher.T, k)
        sparse, *_ = distillation_loss(hidden, weight, None, labels, signal, LossWeights())
        kept = torch.zeros_like(s, dtype=torch.bool).scatter(1, signal.ids, True)
        tails = [torch.log_softmax(x.masked_fill(kept, -math.inf), -1) for x in (s, t)]
        inside = torch.where(kept, 0.0, tails[1].exp() * (tails[1] - tails[0])).sum(-1)
        lost = (signal.tail_logprob.exp() * inside).sum()
        assert abs(dense - sparse - lost) < 1e-4 and lost >= 0


@pytest.mark.parametrize("width", [V - 9, V + 9])
def test_a_student_of_another_padded_width_learns_over_its_own_outcomes(width):
    hidden, weight, labels, states, teacher = setup(vocabulary=width)
    theirs = states @ teacher.T
    theirs = torch.cat([theirs, torch.full((N, max(0, width - V)), -math.inf)], 1)[:, :width]
    expected = dense_loss(hidden @ weight.T, labels, theirs, LossWeights(0.0))
    assert_same(hidden, weight, labels, Dense(states, teacher), expected, LossWeights(0.0))


def test_a_divergence_of_ones_own_is_a_function_and_a_line_and_is_chosen_by_its_name(monkeypatch):
    def squared_distance(s, t):
        """sum (p - q)^2 / 2."""
        p, gap = s.exp(), s.exp() - t.exp()
        return 0.5 * gap.square().sum(-1), p * (gap - (p * gap).sum(-1, keepdim=True))

    with pytest.raises(UserError, match=r"beta=squared is not a divergence.*forward_kl.*jsd"):
        check_beta("squared")
    monkeypatch.setitem(DIVERGENCES, "squared", squared_distance)
    check_beta("squared")
    hidden, weight, labels, states, teacher = setup()
    p, q = (torch.softmax(x.double(), -1) for x in (hidden @ weight.T, states @ teacher.T))
    for signal in (top_k(states @ teacher.T, V), Dense(states, teacher)):
        assert_same(hidden, weight, labels, signal, 0.5 * (p - q).square().sum(),
                    LossWeights("squared"))


@pytest.mark.parametrize(("name", "beta"), [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.5)])
def test_numbers_choose_among_the_named_divergences(name, beta):
    hidden, weight, labels, states, teacher = setup()
    by_name, by_number = (distillation_loss(hidden, weight, None, labels,
                                            top_k(states @ teacher.T, 5), LossWeights(chosen))[0]
                          for chosen in (name, beta))
    assert by_name == by_number


def test_chunks_change_nothing():
    hidden, weight, labels, states, teacher = setup()
    signal = top_k(states @ teacher.T, 8)
    made = [torch.autograd.grad(distillation_loss(
        hidden, weight, None, labels, signal, LossWeights(0.3, 1.5, 0.2, chunk_elements=size))[0],
        [hidden, weight]) for size in (1, 5 * V, 1 << 20)]
    for other in made[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made[0], other, strict=True))


def test_a_student_far_from_the_teacher_still_has_a_finite_loss_and_gradient():
    hidden, weight, labels, states, teacher = setup()
    for beta, scale in itertools.product(BETAS, (1e2, 1e4)):
        loud = (hidden.detach() * scale).requires_grad_()
        for signal in (top_k(states @ teacher.T * 50, 5), Dense(states * 50, teacher)):
            weights = LossWeights(beta, 1.0, 0.1)
            loss, *_ = distillation_loss(loud, weight, None, labels, signal, weights)
            gradients = torch.autograd.grad(loss, [loud, weight])
            assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)


def test_a_nan_in_the_student_reaches_the_loss():
    hidden, weight, labels, states, teacher = setup()
    poisoned = hidden.detach().clone()
    poisoned[3, 0] = math.nan
    for signal in (top_k(states @ teacher.T, 5), Dense(states, teacher)):
        loss, *_ = distillation_loss(poisoned.requires_grad_(), weight, None, labels, signal,
                                     LossWeights())
        assert torch.isnan(loss)


def test_bfloat16_autocast_is_close_to_float32():
    hidden, weight, labels, states, teacher = setup()
    signal = top_k(states @ teacher.T, 8)
    exact, *_ = distillation_loss(hidden, weight, None, labels, signal, LossWeights())
    with torch.autocast("cpu", torch.bfloat16):
        rough, *_ = distillation_loss(hidden, weight, None, labels, signal, LossWeights())
    assert abs(rough - exact) < 0.02 * exact
    assert rough.dtype == torch.float32
