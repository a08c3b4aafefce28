import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokens import toy_tokenizer
from torch import Tensor

from sslfast import models
from sslfast.models.patches import patchify
from sslfast.tokenizers import PatchTokenizer, TokenizerSpec, load_tokenizer, tokenizer_bytes

MICRO = {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


def tiles(generator: torch.Generator, count: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 16 pixels made of 8 different tiles of 4, which tile is where, and the tiles."""
    patches = torch.randn(8, 48, generator=generator)
    which = torch.randint(8, (count, 16), generator=generator)
    cut = patches[which].unflatten(2, (3, 4, 4)).unflatten(1, (4, 4))
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 16, 16), which, patches


@pytest.mark.parametrize("norm_pix", [False, True])
def test_tokens_name_tiles_and_give_them_back(norm_pix: bool, generator: torch.Generator) -> None:
    images, which, patches = tiles(generator)
    tokenizer = PatchTokenizer(TokenizerSpec(8, 4, 16, norm_pix=norm_pix))
    fit = tokenizer.fit(images.split(7), 16)
    tokens = tokenizer(images)
    assert tokens.shape == (30, 16)
    assert tokens.dtype == torch.int64
    name = {int(w): int(t) for w, t in zip(which.flatten(), tokens.flatten(), strict=True)}
    assert len(set(name.values())) == 8
    assert torch.equal(tokens, torch.tensor([name[int(w)] for w in which.flatten()]).view(30, 16))
    decoded = tokenizer.decode(tokens, patchify(images, (4, 4)))
    torch.testing.assert_close(decoded, patches[which], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.restore(images), images, rtol=1e-4, atol=1e-5)

    assert (fit.images, fit.patches, fit.used) == (30, 480, 8)
    shares = which.flatten().bincount().double() / 480
    assert math.isclose(fit.perplexity, math.exp(-(shares * shares.log()).sum()), rel_tol=1e-6)
    assert fit.psnr > 80


def test_norm_pix_looks_past_brightness_and_contrast(generator: torch.Generator) -> None:
    images, _, _ = tiles(generator)
    agreement = []
    for norm_pix in (True, False):
        tokenizer = PatchTokenizer(TokenizerSpec(8, 4, 16, norm_pix=norm_pix))
        tokenizer.fit([images], 16)
        same = tokenizer(images) == tokenizer(images / 2 + 20)
        agreement.append(same.double().mean())
    assert agreement[0] == 1.0
    assert agreement[1] < 0.5


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_quality_of_a_fit_is_that_of_its_patches(
    norm_pix: bool, generator: torch.Generator
) -> None:
    std = (0.2, 0.3, 0.4)
    images = torch.randn(50, 3, 16, 16, generator=generator)
    tokenizer = PatchTokenizer(TokenizerSpec(32, 4, 16, norm_pix=norm_pix, std=std))
    fit = tokenizer.fit([images], 16)
    tokens = tokenizer(images)
    patches = patchify(images, (4, 4))
    if norm_pix:
        spread = (patches.var(-1, keepdim=True) + 1e-2).sqrt()
        patches = (patches - patches.mean(-1, keepdim=True)) / spread
    for code in (0, 7, 31):
        torch.testing.assert_close(tokenizer.pixels[code], patches[tokens == code].mean(0))
    error = (tokenizer.restore(images) - images) * torch.tensor(std)[:, None, None]
    assert math.isclose(fit.psnr, -10 * math.log10(error.square().mean()), rel_tol=1e-4)
    assert fit.used == 32
    few = tokenizer.fit([images], 3)
    assert (few.images, few.patches) == (50, 150)


def test_features_of_an_encoder(generator: torch.Generator) -> None:
    """The same pixels are another token in another place: features see beyond the patch."""
    torch.manual_seed(0)
    spec = TokenizerSpec(16, 4, 16, norm_pix=False, model="vit_micro", model_args=MICRO)
    tokenizer = PatchTokenizer(spec)
    tokenizer.fit([torch.randn(60, 3, 16, 16, generator=generator)], 16)
    images, _, _ = tiles(generator)
    encoded = tokenizer.encoder.forward_features(images)
    normed = torch.nn.functional.layer_norm(encoded, (32,))
    distances = torch.cdist(normed.double(), tokenizer.codebook.double())
    chosen = distances.gather(2, tokenizer(images)[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.min(-1).values, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer(images), whole := tokenizer(images))
    assert torch.equal(tokenizer(images), whole)
    tokenizer.train()
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


@pytest.mark.parametrize("model", [None, "vit_micro"])
def test_a_file_holds_all_of_it(
    model: str | None, tmp_path: Path, generator: torch.Generator
) -> None:
    changes = {"model": model, "model_args": MICRO} if model else {"norm_pix": False}
    tokenizer = toy_tokenizer(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), **changes)
    path = tmp_path / "tokens.safetensors"
    path.write_bytes(tokenizer_bytes(tokenizer))
    again = load_tokenizer(path)
    assert again.spec == tokenizer.spec
    images = torch.randn(5, 3, 16, 16, generator=generator)
    assert torch.equal(again(images), tokenizer(images))
    assert torch.equal(again.restore(images), tokenizer.restore(images))
    assert tokenizer_bytes(again) == path.read_bytes()


def test_files_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no tokenizer .* make one with sslfast tokenizer"):
        load_tokenizer(path)
    for other in ("/dev/null", tmp_path):
        with pytest.raises(
            ValueError, match=rf"{other} is no ordinary file, .*: copy the tokenizer"
        ):
            load_tokenizer(other)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"is damaged or no .safetensors file"):
        load_tokenizer(path)
    save_file({"weight": torch.zeros(3)}, path, {"sslfast": "{}"})
    with pytest.raises(ValueError, match=r"is no tokenizer: .* \(it holds an encoder\)"):
        load_tokenizer(path)

    tokenizer = toy_tokenizer()
    spec = {"schema_version": 1, **asdict(tokenizer.spec)}

    def write(**changes: object) -> None:
        tensors = tokenizer.state_dict()
        save_file(tensors, path, {"sslfast_tokenizer": json.dumps({**spec, **changes})})

    write()
    assert set(load_file(path)) == {"codebook", "pixels"}
    load_tokenizer(path)
    write(schema_version=7)
    with pytest.raises(ValueError, match=r"schema_version 7, but this sslfast reads 2 at most"):
        load_tokenizer(path)
    write(vocab_size=31)
    with pytest.raises(
        ValueError, match="its codebook, pixels are not those of a vocabulary of 31"
    ):
        load_tokenizer(path)
    write(patch_size=8)
    with pytest.raises(ValueError, match=r"contradicts itself: .* and patches of 8. Fit the token"):
        load_tokenizer(path)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    whole = tokenizer_bytes(toy_tokenizer())
    weights = 8 + int.from_bytes(whole[:8], "little")  # where they begin
    drawn = torch.randint(weights, len(whole), (3,)).tolist()
    known = [whole.index(text) for text in (b"norm_pix", b"sha256", b"0.0")]
    for place in [*known, *drawn]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"tokens.safetensors is damaged: its checksum differs"
        ):
            load_tokenizer(path)


def test_wrong_sizes_are_explained(generator: torch.Generator) -> None:
    spec = TokenizerSpec(32, 4, 16)
    with pytest.raises(ValueError, match="images of 18 pixels are no whole number of patches of 4"):
        replace(spec, image_size=18)
    with pytest.raises(ValueError, match="vocab_size must be at least 2, got 1"):
        replace(spec, vocab_size=1)
    with pytest.raises(ValueError, match="30 patches are fewer than 32 codes: give more images"):
        PatchTokenizer(spec).fit([torch.randn(10, 3, 16, 16, generator=generator)], 3)
    with pytest.raises(ValueError, match="need a Vision Transformer with patches of 8 pixels"):
        PatchTokenizer(replace(spec, patch_size=8, model="vit_micro", model_args=MICRO))
    with pytest.raises(ValueError, match="need a Vision Transformer with patches of 4 pixels"):
        PatchTokenizer(replace(spec, model="convnet_small"))
    with pytest.raises(ValueError, match="there are no images to fit a tokenizer on"):
        PatchTokenizer(spec).fit([], 16)
    toy_tokenizer().check_fits(models.create("vit_micro"))
    of_features = PatchTokenizer(replace(spec, model="vit_micro", model_args=MICRO))
    of_features.check_fits(models.create("vit_micro", **MICRO))
    with pytest.raises(
        ValueError, match=r"images of \(16, 16\) pixels, the encoder takes \(32, 32"
    ):
        of_features.check_fits(models.create("vit_micro"))
