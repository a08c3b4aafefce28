"""cached: gradients, random numbers, buffers and memory against the same calls kept whole."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast.functional import clip
from sslfast.losses import NTXentLoss, cached
from sslfast.masking import PatchMask, random_mask


class LearnedClip(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return clip(F.normalize(x, dim=1), F.normalize(y, dim=1), self.scale.exp())


def encoder(*extra: nn.Module) -> nn.Sequential:
    layers = [nn.Linear(6, 16), *extra, nn.GELU(), nn.Linear(16, 5)]
    return nn.Sequential(*layers).double()


def in_chunks(module: nn.Module, x: Tensor, size: int) -> Tensor:
    return torch.cat([module(chunk) for chunk in x.split(size)])


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True))


def same(ours: list[Tensor], truth: list[Tensor]) -> None:
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 50])
def test_one_encoder(chunk_size: int) -> None:
    model, loss = encoder(), NTXentLoss(0.1)
    a, b = torch.randn(2, 11, 6, dtype=torch.float64)
    plain = loss(model(a), model(b))
    value = cached(loss, model, a, b, chunk_size=chunk_size)
    torch.testing.assert_close(value, plain)
    same(gradients(value, model), gradients(plain, model))
    same(gradients(value, model), gradients(plain, model))  # the graph was retained


def test_two_towers_of_different_lengths_and_a_learned_scale() -> None:
    image, text, loss = encoder(), encoder(), LearnedClip()
    a, b = torch.randn(2, 9, 6, dtype=torch.float64)
    plain = loss(image(a), text(b))
    value = cached(loss, [image, text], a, b, chunk_size=4)
    same(gradients(value, image, text, loss), gradients(plain, image, text, loss))
    # Inputs need not have the same number of rows.
    short = cached(lambda x, y: (x @ y.T).square().mean(), (image, text), a, b[:2], chunk_size=4)
    same(
        gradients(short, image, text),
        gradients((image(a) @ text(b[:2]).T).square().mean(), image, text),
    )


def test_inputs_get_their_gradient() -> None:
    model, a = encoder(), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cached(Tensor.norm, model, a, chunk_size=3), a)
    torch.testing.assert_close(gradient, torch.autograd.grad(model(a).norm(), a)[0])


def test_nests_in_and_out() -> None:
    model = encoder()

    def both(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(batch["views"][0]), model(batch["views"][1])

    views = tuple(torch.randn(2, 7, 6, dtype=torch.float64))
    batch = {"views": views, "name": "a batch"}

    def metrics(outputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": NTXentLoss(0.2)(*outputs), "size": outputs[0].detach().norm()}

    value, plain = cached(metrics, both, batch, chunk_size=3), metrics(both(batch))
    torch.testing.assert_close(value, plain)
    same(gradients(value["loss"], model), gradients(plain["loss"], model))


class Captioned(NamedTuple):
    """As a data set may hand out, with a mask of this package's."""

    image: Tensor
    text: list[str]
    mask: PatchMask


def test_named_tuples_dicts_of_other_classes_and_captions() -> None:
    model, captions = encoder(), ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg"]
    mask = random_mask(7, 6, 0.5, seed=1)
    given = Captioned(torch.randn(7, 6, dtype=torch.float64), captions, mask)

    def encode(chunk: Captioned) -> OrderedDict[str, Any]:
        lengths = torch.tensor([float(len(text)) for text in chunk.text], dtype=torch.float64)
        outputs = model(chunk.image * chunk.mask.mask) * lengths[:, None]
        return OrderedDict(out=Captioned(outputs, chunk.text, chunk.mask))

    def loss(outputs: OrderedDict[str, Any]) -> tuple[Tensor, Any]:
        assert isinstance(outputs, OrderedDict)
        return outputs["out"].image.norm(), outputs["out"]

    value, outputs = cached(loss, encode, given, chunk_size=3)
    plain, expected = loss(encode(given))
    same(gradients(value, model), gradients(plain, model))
    assert outputs.text == captions
    torch.testing.assert_close((outputs.image, *outputs.mask), (expected.image, *expected.mask))
    counted = cached(Tensor.sum, lambda texts: torch.ones(len(texts)), captions, chunk_size=3)
    assert counted == 7
    with pytest.raises(ValueError, match=r"one first dimension above 0, got .*\(6,\)"):
        cached(loss, encode, given._replace(text=captions[:6]), chunk_size=3)


def test_dropout_draws_the_same_numbers_twice() -> None:
    model = encoder(nn.Dropout(0.5))
    a, b = torch.randn(2, 11, 6, dtype=torch.float64)
    torch.manual_seed(3)
    plain = NTXentLoss(0.1)(in_chunks(model, a, 4), in_chunks(model, b, 4))
    expected, state = gradients(plain, model), torch.get_rng_state()
    torch.manual_seed(3)
    value = cached(NTXentLoss(0.1), model, a, b, chunk_size=4)
    ours = gradients(value, model)
    assert torch.equal(value, plain)
    same(ours, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_updated_once(momentum: float | None, training: bool) -> None:
    model = encoder(nn.BatchNorm1d(16, momentum=momentum)).train(training)
    other = encoder(nn.BatchNorm1d(16, momentum=momentum)).train(training)
    other.load_state_dict(model.state_dict())
    a, b = torch.randn(2, 11, 6, dtype=torch.float64)
    plain = NTXentLoss(0.1)(in_chunks(other, a, 4), in_chunks(other, b, 4))
    # A bound method is an encoder too, as in model.encode_image.
    for encode in (model, model.forward):
        model.load_state_dict(other.state_dict() if not training else model.state_dict())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        buffers = list(model.buffers())
        value = cached(NTXentLoss(0.1), encode, a, b, chunk_size=4)
        after = {name: value.clone() for name, value in model.state_dict().items()}
        same(gradients(value, model), gradients(plain, other))
        assert all(torch.equal(after[k], v) for k, v in model.state_dict().items())
        assert all(x is y for x, y in zip(buffers, model.buffers(), strict=True))
        if encode is model:
            assert all(torch.equal(after[k], v) for k, v in other.state_dict().items())
        else:
            moved = not torch.equal(after["1.running_mean"], before["1.running_mean"])
            assert moved == training


def test_autocast_is_that_of_the_first_pass() -> None:
    model = encoder().float()
    a, b = torch.randn(2, 11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        plain = NTXentLoss(0.1)(in_chunks(model, a, 4), in_chunks(model, b, 4))
        value = cached(NTXentLoss(0.1), model, a, b, chunk_size=4)
    assert torch.equal(value, plain)
    same(gradients(value, model), gradients(plain, model))


def test_scaled_and_accumulated_gradients() -> None:
    model, a = encoder(), torch.randn(8, 6, dtype=torch.float64)
    plain = gradients(model(a).norm(), model)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(2):
        scaler.scale(cached(Tensor.norm, model, a, chunk_size=3)).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), 0.1))
    same([p.grad / 2 for p in model.parameters() if p.grad is not None], plain)


def test_without_gradients() -> None:
    model, a = encoder(), torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        value = cached(Tensor.norm, model, a, chunk_size=3)
    assert value.grad_fn is None
    torch.testing.assert_close(value, model(a).norm().detach())


class LiveMemory(TorchDispatchMode):
    """The largest number of bytes that tensors made by operations took up at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def test_activations_of_one_chunk_at_a_time() -> None:
    """Peak memory is that of a step on one chunk, and of the embeddings of all."""
    rows, chunk, width = 64, 4, 1000
    model = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, 3))
    x = torch.randn(rows, 3)

    def peak(batch: Tensor, size: int) -> int:
        with LiveMemory() as memory:
            cached(lambda z: z.square().sum(), model, batch, chunk_size=size).backward()
        model.zero_grad()
        return memory.peak

    peak(x, rows)  # gradients and workspaces once
    one, all_chunks, whole = peak(x[:chunk], chunk), peak(x, chunk), peak(x, rows)
    activations = 4 * width * chunk  # bytes of one of a chunk's hidden layers
    assert all_chunks - one < activations + 20 * rows * 3 * 4
    assert whole - one > 15 * activations


def test_bad_arguments() -> None:
    model, x = encoder(), torch.randn(4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="chunk_size must be at least 1 row, got 0"):
        cached(NTXentLoss(), model, x, x, chunk_size=0)
    with pytest.raises(ValueError, match="at least one input"):
        cached(NTXentLoss(), model, chunk_size=2)
    with pytest.raises(ValueError, match="2 inputs need one encoder or as many, got 3"):
        cached(NTXentLoss(), [model] * 3, x, x, chunk_size=2)
    for bad in ({"a": x, "b": x[1:]}, x[:0], "text", torch.tensor(1.0)):
        with pytest.raises(ValueError, match="of one first dimension above 0"):
            cached(Tensor.norm, model, bad, chunk_size=2)
    with pytest.raises(ValueError, match="returned 1 rows for a chunk of 2"):
        cached(Tensor.norm, lambda x: model(x).mean(0, keepdim=True), x, chunk_size=2)
