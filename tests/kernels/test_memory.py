"""Peak memory grows with M and not with M^2, and large problems are right: measured."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from sslfast.functional import clip, info_nce, linear_cross_entropy, ntxent, siglip
from sslfast.kernels.extension import loaded

# A process of its own for every loss and size: what one has freed would hide what the next takes.
# They are forked from one that has imported everything, and computed nothing.
PROGRAM = """
import json, os, sys
import torch, torch.nn.functional as F
from sslfast import functional

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

losses = {
    "ntxent": lambda x, y: functional.ntxent(x, y, 0.1),
    "clip": lambda x, y: functional.clip(x, y, 10.0),
    "siglip": lambda x, y: functional.siglip(x, y, 10.0, -10.0),
    "info_nce": lambda x, y: functional.info_nce(x, y),
    "supcon": lambda x, y: functional.supcon(x, torch.arange(len(x)) % 50),
}

def peak(loss, n):
    x, y = (F.normalize(torch.randn(n, 16), dim=1).requires_grad_() for _ in "xy")
    loss(x[:64], y[:64]).backward()  # what is taken once
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    loss(x, y).backward()
    return status("VmHWM") - before

for name in losses:
    for n in map(int, sys.argv[1:]):
        child = os.fork()
        if not child:
            print(json.dumps([name, n, peak(losses[name], n)]), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
"""
NAMES = ("ntxent", "clip", "siglip", "info_nce", "supcon")


@pytest.fixture(scope="module")
def peaks() -> dict[str, dict[int, int]]:
    """Bytes by loss and number of rows."""
    command = [sys.executable, "-c", PROGRAM, "2048", "8192"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd="/")
    found: dict[str, dict[int, int]] = {name: {} for name in NAMES}
    for line in done.stdout.splitlines():
        name, n, taken = json.loads(line)
        found[name][n] = taken
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", NAMES)
def test_peak_memory_is_linear_in_the_batch(name: str, peaks: dict[str, dict[int, int]]) -> None:
    few, many = peaks[name][2048], peaks[name][8192]
    # Four times the rows: four times the memory (a half more for noise); the matrix would take 16.
    assert many <= 6 * max(few, 4 << 20)
    assert many < 8192 * 8192 * 4 / 4, "a quarter of the matrix of logits"


@pytest.mark.slow
def test_sampled_rows_of_a_large_cold_problem() -> None:
    """65,536 rows at temperature 0.01: losses and gradients of sampled rows, in float64."""
    m, d, tau = 65536, 8, 0.01
    generator = torch.Generator().manual_seed(0)
    centre = F.normalize(torch.randn(m // 2, d, generator=generator), dim=1)
    views = [
        F.normalize(centre + 0.05 * torch.randn(m // 2, d, generator=generator), dim=1)
        for _ in "ab"
    ]
    a, b = (view.requires_grad_() for view in views)
    losses = ntxent(a, b, tau, normalize=False, reduction="none")
    losses.sum().backward()
    z = torch.cat((a, b)).detach().double()
    rows = torch.randint(m, (24,), generator=generator)
    positive = (rows + m // 2) % m
    logits = z[rows] @ z.T / tau
    logits[torch.arange(24), rows] = -torch.inf
    lse = logits.logsumexp(1)
    truth = lse - logits[torch.arange(24), positive]
    torch.testing.assert_close(losses[rows].double(), truth, rtol=1e-4, atol=1e-5)
    # dL/dz_i = (1/tau) sum_j (p_ij + p_ji) z_j - 2 z_pos / tau; p_ji needs the lse of row j.
    full = losses.detach().double() + (z * z.roll(m // 2, 0)).sum(1) / tau
    weight = (logits - lse[:, None]).exp() + (logits - full).exp()
    expected = (weight @ z - 2 * z[positive]) / tau
    assert a.grad is not None
    assert b.grad is not None
    found = torch.cat((a.grad, b.grad))[rows].double()
    # What eager would make of these rows in float32, even if it knew all log-sum-exps.
    z, lse, full, logits = (t.float() for t in (z, lse, full, logits))
    logits = (z[rows] @ z.T / tau).masked_fill(logits == -torch.inf, -torch.inf)
    weight = (logits - lse[:, None]).exp() + (logits - full).exp()
    eager = ((weight @ z - 2 * z[positive]) / tau).double()
    assert (found - expected).norm() <= (eager - expected).norm()


def test_a_large_vocabulary_and_a_wide_layer() -> None:
    """V = 256k and D = 4096, few rows: against float64 with the logits in memory."""
    for v, d, n in ((256_000, 8, 6), (300, 4096, 70)):
        x = torch.randn(n, d).requires_grad_()
        w = (torch.randn(v, d) / d**0.5).requires_grad_()
        targets = torch.randint(v, (n,))
        loss = linear_cross_entropy(x, w, targets)
        truth = F.cross_entropy(x.double() @ w.double().T, targets)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
        for value, exact in zip(
            torch.autograd.grad(loss, (x, w)), torch.autograd.grad(truth, (x, w)), strict=True
        ):
            assert (value - exact).norm() <= 1e-5 * exact.norm()


def test_large_batches_of_the_other_losses_against_rows_in_float64() -> None:
    n, d = 3000, 24
    x, y = (F.normalize(torch.randn(n, d), dim=1) for _ in "xy")
    t = 100 * x.double() @ y.double().T
    diagonal = t.diagonal()
    rows = t.logsumexp(1) - diagonal
    columns = t.logsumexp(0) - diagonal
    torch.testing.assert_close(
        clip(x, y, 100.0, reduction="none").double(), (rows + columns) / 2, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        info_nce(x, y, temperature=0.01, reduction="none").double(), rows, rtol=1e-5, atol=1e-5
    )
    z = torch.full_like(t, -1).fill_diagonal_(1)
    truth = -F.logsigmoid(z * (t - 10)).sum(1)
    found = siglip(x, y, 100.0, -10.0, reduction="none").double()
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_buffers_come_back_and_are_given_back() -> None:
    """What a call frees serves the next; release_buffers returns it to the system."""
    module = loaded()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    module.release_buffers()
    first = torch.frombuffer(module.Floats(5 * 2**20), dtype=torch.float32)  # 20 MiB
    assert first.data_ptr() % 64 == 0
    first.fill_(7)
    place, before = first.data_ptr(), resident()
    del first
    again = torch.frombuffer(module.Floats(5 * 2**20 - 100), dtype=torch.float32)
    assert again.data_ptr() == place
    assert again[0] == 7
    del again
    small = [torch.frombuffer(module.Floats(n), dtype=torch.float32) for n in (1, 3, 1000)]
    assert place not in [x.data_ptr() for x in small]
    assert resident() > before - 2**22
    module.release_buffers()
    assert resident() < before - 2**24
    # No more than 64 MiB wait.
    many = [torch.frombuffer(module.Floats(8 * 2**20), dtype=torch.float32) for _ in range(4)]
    for x in many:
        x.fill_(1)
    before = resident()
    del x
    many.clear()
    assert resident() < before - 3 * 2**24
    module.release_buffers()
