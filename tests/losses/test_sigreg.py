"""SIGReg and LeJEPA: values and gradients of lightly's classes, directions, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peers
from sslfast.functional import sigreg
from sslfast.losses import LeJEPALoss, SIGReg
from sslfast.losses.sigreg import random_directions

theirs = peers.load("lightly.loss.lejepa_loss")


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (0.5 + 1.5 * torch.randn(*shape)).to(dtype).requires_grad_()


def with_directions(module: nn.Module, directions: Tensor) -> nn.Module:
    """lightly's class, which is to take these and not to draw its own."""
    inner: Any = getattr(module, "sigreg", module)
    inner._generate_unit_vectors = lambda device, dtype, dim: directions.T.to(dtype)
    return module


def results(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (64, 16), (3, 20, 7), (2, 3, 9, 4)])
@pytest.mark.parametrize("options", [{}, {"knots": 9, "t_max": 5.0}], ids=str)
def test_sigreg_has_lightlys_values_and_gradients(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    z = features(*shape)
    directions = random_directions(40, shape[-1], seed=1, step=2, dtype=torch.float64)
    other = with_directions(theirs.SIGReg(num_vectors=40, **options), directions).double()
    truth = results(other(z.unsqueeze(0) if z.dim() == 2 else z), z)
    for value in (sigreg(z, directions, **options), SIGReg(**options)(z, directions)):
        for found, expected in zip(results(value, z), truth, strict=True):
            # Its nodes are float32 numbers.
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_lejepa_has_lightlys_values_and_gradients(weight: float) -> None:
    local, whole = features(3, 12, 5), features(2, 12, 5)
    directions = random_directions(30, 5, seed=1, step=2, dtype=torch.float64)
    other = with_directions(theirs.LeJEPALoss(weight), directions).double()
    ours = LeJEPALoss(weight)(local_proj=local, global_proj=whole, directions=directions)
    truth = results(other(local_proj=local, global_proj=whole), local, whole)
    for found, expected in zip(results(ours, local, whole), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)


def test_views_that_are_all_global_are_the_published_minimal_example() -> None:
    z = features(4, 20, 6)
    directions = random_directions(30, 6, seed=1, step=2, dtype=torch.float64)
    parts = LeJEPALoss(0.02).parts(global_proj=z, directions=directions)
    assert set(parts) == {"loss", "invariance", "sigreg"}
    torch.testing.assert_close(parts["invariance"], (z.mean(0) - z).square().mean().detach())
    torch.testing.assert_close(parts["sigreg"], sigreg(z, directions).detach())
    torch.testing.assert_close(
        parts["loss"].detach(), 0.02 * parts["sigreg"] + 0.98 * parts["invariance"]
    )


def expected_of_a_normal_sample(knots: int = 17, t_max: float = 3.0) -> float:
    """N E|mean exp(i t p) - phi|^2 = 1 - phi^2 for N independent standard normal p."""
    step = t_max / (knots - 1)
    terms = []
    for k in range(knots):
        phi = math.exp(-((k * step) ** 2) / 2)
        terms.append((1 if k in (0, knots - 1) else 2) * step * phi * (1 - phi * phi))
    return sum(terms)


def test_a_normal_sample_is_near_its_expectation_and_others_are_above() -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(1000, 50, 16, generator=generator)  # 1,000 samples
    loss, expected = SIGReg(num_vectors=64), expected_of_a_normal_sample()
    assert float(loss(z)) == pytest.approx(expected, rel=0.05)
    for other in (torch.zeros_like(z), 0.5 * z, z + 1, z[..., :1].expand(-1, -1, 16)):
        assert float(loss(other)) > 5 * expected


def test_directions_are_uniform_on_the_sphere_and_the_same_wherever_they_are_drawn() -> None:
    first = random_directions(4000, 5, seed=3, step=7)
    assert first.shape == (4000, 5)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4000))
    # Means of 0 and second moments I / 5, within five standard errors.
    assert first.mean(0).abs().max() < 5 * math.sqrt(1 / 5 / 4000)
    assert (first.T @ first / 4000 - torch.eye(5) / 5).abs().max() < 5 * math.sqrt(0.06 / 4000)
    # In five dimensions a coordinate's fourth moment is 3 / 35.
    assert float((first**4).mean()) == pytest.approx(3 / 35, rel=0.05)
    again = random_directions(4000, 5, seed=3, step=torch.tensor(7))
    assert torch.equal(first, again)
    for other in ({"seed": 4, "step": 7}, {"seed": 3, "step": 8}):
        assert (first - random_directions(4000, 5, **other)).norm(dim=1).min() > 1e-4
    wide = random_directions(4000, 5, seed=3, step=7, dtype=torch.float64)
    torch.testing.assert_close(first, wide.float(), rtol=1e-4, atol=1e-5)


def test_every_call_draws_anew_and_goes_on_where_it_was_saved() -> None:
    z = features(30, 6, dtype=torch.float32).detach()
    loss = SIGReg(num_vectors=8)
    values = [float(loss(z)) for _ in range(3)]
    assert len(set(values)) == 3
    resumed, fresh = SIGReg(num_vectors=8), SIGReg(num_vectors=8)
    resumed.load_state_dict(loss.state_dict())
    assert float(resumed(z)) == float(loss(z))
    assert float(fresh(z)) == values[0]
    assert float(SIGReg(num_vectors=8, seed=1)(z)) != values[0]
    loss(z, random_directions(8, 6, seed=0, step=0))  # which draws nothing
    assert int(loss.draws) == 4


def test_errors_are_no_larger_than_lightlys() -> None:
    for dtype, slack in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        z = features(2, 60, 32, dtype=dtype)
        wide = z.detach().double().requires_grad_()
        directions = random_directions(50, 32, seed=1, step=2)
        exact = results(sigreg(wide, directions.double()), wide)
        other = with_directions(theirs.SIGReg(), directions)
        eager, ours = results(other.to(dtype)(z), z), results(sigreg(z, directions), z)
        for truth, base, found in zip(exact, eager, ours, strict=True):
            error, allowed = ((x.double() - truth).norm() for x in (found, base))
            assert error <= allowed + slack * truth.norm()


def test_half_precision_and_autocast_give_a_loss_in_float32() -> None:
    z = features(2, 6, 5, dtype=torch.bfloat16)
    assert LeJEPALoss()(global_proj=z).dtype == SIGReg()(z).dtype == torch.float32
    z = features(2, 6, 5, dtype=torch.float32)
    plain = LeJEPALoss()(global_proj=z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LeJEPALoss()(global_proj=z), plain)


def test_gradcheck() -> None:
    directions = random_directions(7, 3, seed=1, step=2, dtype=torch.float64)
    local, whole = features(1, 4, 3), features(2, 4, 3)

    def loss(local: Tensor, whole: Tensor) -> Tensor:
        return LeJEPALoss(0.3)(local_proj=local, global_proj=whole, directions=directions)

    assert torch.autograd.gradcheck(loss, (local, whole))


def test_torch_compile_takes_it_whole() -> None:
    loss = LeJEPALoss(0.3, sigreg_num_vectors=12)
    z = features(2, 9, 6, dtype=torch.float32)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = results(compiled(global_proj=z), z)
    truth = results(LeJEPALoss(0.3, sigreg_num_vectors=12)(global_proj=z), z)
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value, expected)
    assert int(loss.sigreg.draws) == 1


def test_gathering_without_a_process_group_is_one_rank() -> None:
    z = features(2, 6, 4)
    alone = LeJEPALoss(gather_distributed=True)(global_proj=z)
    assert torch.equal(alone, LeJEPALoss()(global_proj=z))


def test_bad_input_is_refused_in_words() -> None:
    z, directions = torch.randn(4, 3), random_directions(5, 3, seed=0, step=0)
    for call, message in (
        (lambda: SIGReg(knots=1), "knots must be at least 2, got 1"),
        (lambda: SIGReg(t_max=0.0), "t_max must be more than 0"),
        (lambda: SIGReg(num_vectors=0), "num_vectors must be at least 1"),
        (lambda: LeJEPALoss(1.5), "lambda_param must be at most 1"),
        (lambda: LeJEPALoss(-0.1), "lambda_param must be at least 0"),
        (lambda: LeJEPALoss(sigreg_knots=0), "sigreg_knots must be at least 2"),
        (lambda: SIGReg()(z[:0]), r"proj is empty: shape \[0, 3\]"),
        (lambda: SIGReg()(z[0]), r"proj must have shape \[..., N, D\], got \[3\]"),
        (lambda: sigreg(z, directions[:, :2]), r"directions must have shape \[M, 3\]"),
        (lambda: sigreg(z, directions[:0]), "directions is empty"),
        (lambda: sigreg(z, directions, knots=1), "knots must be at least 2"),
        (lambda: LeJEPALoss()(global_proj=z), r"global_proj must have shape \[V, N, D\]"),
        (
            lambda: LeJEPALoss()(global_proj=z[None], local_proj=z[None, :3]),
            r"local_proj must have shape .* got \[1, 3, 3\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for bad in (z.long(), [1.0]):
        with pytest.raises(TypeError, match="proj must"):
            SIGReg()(bad)  # type: ignore[arg-type]


def test_settings_are_shown() -> None:
    assert "t_max=2.0" in repr(SIGReg(t_max=2.0))
    assert "lambda_param=0.3" in repr(LeJEPALoss(0.3))
