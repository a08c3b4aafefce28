"""Philox 4x32-10: the known answers, and the same bits from every backend and batch split."""

import pytest
import torch

import sslfast
from sslfast.kernels import registry
from sslfast.kernels.philox.op import random_bits
from sslfast.kernels.philox.reference import philox

RUNNABLE = [b.name for b in registry.candidates("philox") if b.unavailable() is None]
# Known answers published with Random123 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], result: str) -> None:
    words = philox(torch.tensor(counter), key[0] | key[1] << 32)
    assert " ".join(f"{w:08x}" for w in words.tolist()) == result


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("count", [0, 1, 4, 7, 196])
def test_backends_give_the_same_bits(name: str, count: int) -> None:
    ids = torch.randint(-(2**62), 2**62, (33,))
    for seed in (0, -5, 2**40 + 3):
        for step in (0, 2**33 + 1):
            arguments = (ids, torch.tensor(step), seed, 9, count)
            with sslfast.use_backend("reference"):
                truth = random_bits(*arguments)
            with sslfast.use_backend(name):
                assert torch.equal(random_bits(*arguments), truth)
            assert truth.shape == (33, count)
            if count:
                assert truth.min() >= 0
                assert truth.max() < 2**32


def test_bits_depend_on_sample_step_stream_and_seed_alone() -> None:
    ids = torch.arange(100)
    whole = random_bits(ids, torch.tensor(3), 1, 2, 50)
    order = torch.randperm(100)
    assert torch.equal(random_bits(ids[order], torch.tensor(3), 1, 2, 50), whole[order])
    assert torch.equal(random_bits(ids[60:], torch.tensor(3), 1, 2, 20), whole[60:, :20])
    for other in ((ids, torch.tensor(4), 1, 2), (ids, torch.tensor(3), 2, 2)):
        assert (random_bits(*other, 50) == whole).float().mean() < 0.01
    assert (random_bits(ids, torch.tensor(3), 1, 3, 50) == whole).float().mean() < 0.01


def test_op() -> None:
    torch.library.opcheck(random_bits, (torch.arange(5), torch.tensor(2), 7, 1, 9))
