"""Muon: the orthogonalisation is the paper's polynomial, and the optimiser is torch's, but for bfloat16's rounding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paligemma.training.muon import Muon, orthogonalize

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_each_singular_value_goes_through_the_polynomial_and_the_directions_stay(shape, seed, scale):
    """In float64, by the singular value decomposition: no products of matrices with themselves."""
    matrix = randn(*shape, seed=seed) * scale
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(matrix).double(), u @ torch.diag(s) @ v, atol=2e-5, rtol=0)


def test_singular_values_come_near_to_one():
    u, _, v = torch.linalg.svd(randn(64, 100), full_matrices=False)
    spread = torch.linspace(0.003, 0.2, 64)  # of norm 0.9
    values = torch.linalg.svdvals(orthogonalize(u @ torch.diag(spread / spread.norm()) @ v))
    assert values.min() > 0.68 and values.max() < 1.21


def test_a_gradient_of_zeros_or_of_bfloat16_is_no_trouble():
    assert orthogonalize(torch.zeros(3, 5)).eq(0).all()
    assert orthogonalize(randn(3, 5).bfloat16()).dtype == torch.float32


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList([nn.Linear(48, 96, bias=False), nn.Linear(96, 24, bias=False), nn.Linear(24, 24, bias=False)])


def steps(model, optimizer, first, last):
    for step in range(first, last):
        for index, layer in enumerate(model):
            layer.weight.grad = randn(*layer.weight.shape, seed=100 * step + index)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_torchs_muon_to_the_rounding_of_bfloat16(weight_decay):
    start = layers()
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    settings = {"lr": 0.02, "weight_decay": weight_decay}
    steps(ours, Muon(ours.parameters(), **settings), 0, 6)
    steps(theirs, torch.optim.Muon(theirs.parameters(), **settings), 0, 6)
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b.weight - before.weight).norm()
        assert (a.weight - b.weight).norm() < 0.02 * moved  # bfloat16 keeps 8 bits: 0.4 % a rounding


def test_a_state_goes_from_one_to_the_other():
    """Three steps with torch's, its state loaded into ours, three more: six with torch's."""
    start = layers()
    whole, both = copy.deepcopy(start), copy.deepcopy(start)
    steps(whole, torch.optim.Muon(whole.parameters(), lr=0.02), 0, 6)
    first, second = torch.optim.Muon(both.parameters(), lr=0.02), Muon(both.parameters(), lr=1.0)
    steps(both, first, 0, 3)
    second.load_state_dict(first.state_dict())
    steps(both, second, 3, 6)
    for a, b, before in zip(both, whole, start, strict=True):
        assert (a.weight - b.weight).norm() < 0.02 * (b.weight - before.weight).norm()
    torch.optim.Muon(both.parameters(), lr=0.02).load_state_dict(second.state_dict())


def test_saved_and_loaded_is_uninterrupted():
    whole, broken = layers(), layers()
    steps(whole, Muon(whole.parameters(), lr=0.02), 0, 4)
    first = Muon(broken.parameters(), lr=0.02)
    steps(broken, first, 0, 2)
    second = Muon(broken.parameters())
    second.load_state_dict(first.state_dict())
    steps(broken, second, 2, 4)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(whole, broken, strict=True))


def test_it_is_for_matrices_only_and_leaves_alone_what_has_no_gradient():
    with pytest.raises(ValueError, match=r"shape \[7\], expected a matrix"):
        Muon([nn.Parameter(torch.zeros(7))])
    one, two = nn.Parameter(randn(4, 4)), nn.Parameter(randn(4, 4))
    before = two.detach().clone()
    one.grad = randn(4, 4, seed=1)
    Muon([one, two], lr=0.1).step()
    assert torch.equal(two, before)
