"""Images a second through SimCLR's recipes: the DALI loader, and Pillow in DataLoader workers.

    python -m benchmarks.data --out results.json

The peer does what most scripts do: Pillow and a torch DataLoader with two workers, the same steps
and parameters (with torchvision's meaning of each). Two sets of real files: the 32 x 32 patches of
builtin:photos, and the ten photographs (0.14 to 2 megapixels) they are cut from. Every run is timed
from a cold start of the loader to its last batch, so nobody is given a full queue.
"""

import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness.arguments import arguments
from benchmarks.harness.rows import Row, write_rows
from benchmarks.harness.timing import Run, interleave
from sslfast.data import ImageDataset, Recipe, View, make_loader, open_dataset, recipe
from sslfast.data.sources.builtin import PHOTOS, read_photo

PEER = "Pillow, 2 workers"


class PillowViews(Dataset[tuple[Tensor, ...]]):
    """The views of a recipe, image by image, as torchvision's transforms on Pillow images do it."""

    def __init__(self, paths: list[str], recipe: Recipe) -> None:
        self.paths, self.recipe = paths, recipe

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        return tuple(_augment(image, view) for view in self.recipe.views)


def _augment(image: Image.Image, view: View) -> Tensor:
    image = image.crop(_crop_box(image, view)).resize((view.size,) * 2, Image.Resampling.BILINEAR)
    if random.random() < view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < view.jitter_prob:
        image = _jitter(image, view)
    if random.random() < view.gray_prob:
        image = image.convert("L").convert("RGB")
    if random.random() < view.blur_prob:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*view.blur_sigma)))
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.array(view.mean, np.float32)) / np.array(view.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _crop_box(image: Image.Image, view: View) -> tuple[int, int, int, int]:
    assert view.crop_scale is not None
    low, high = np.log(view.crop_ratio)
    for _ in range(10):
        area = image.width * image.height * random.uniform(*view.crop_scale)
        ratio = float(np.exp(random.uniform(low, high)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            left = random.randint(0, image.width - width)
            top = random.randint(0, image.height - height)
            return left, top, left + width, top + height
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def _jitter(image: Image.Image, view: View) -> Image.Image:
    steps = [
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
        (None, view.hue),
    ]
    random.shuffle(steps)
    for enhance, strength in steps:
        if enhance is None:
            hue, saturation, value = image.convert("HSV").split()
            shift = round(random.uniform(-strength, strength) * 255)
            turned = np.asarray(hue) + np.uint8(shift % 256)
            hue = Image.fromarray(turned, "L")
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        else:
            factor = random.uniform(max(0.0, 1 - strength), 1 + strength)
            image = enhance(image).enhance(factor)
    return image


def photographs(folder: Path, count: int) -> ImageDataset:
    """The ten photographs as JPEG files, repeated up to ``count`` samples."""
    for name in PHOTOS:
        Image.fromarray(read_photo(name)).save(folder / f"{name}.jpg", quality=90)
    ten = open_dataset(str(folder), cache_dir=str(folder / "cache"))
    assert ten.sizes is not None
    repeats = count // len(ten)
    return ImageDataset("photographs", ten.paths * repeats, sizes=ten.sizes * repeats)


def providers(dataset: ImageDataset, recipe: Recipe, batch_size: int) -> dict[str, Run]:
    """One epoch of each loader; ``turn`` is the seed."""

    def dali(threads: int) -> Run:
        def run(turn: int) -> None:
            loader = make_loader(dataset, recipe, batch_size=batch_size, seed=turn, threads=threads)
            for batch in loader:
                assert len(batch) == batch_size
            loader.close()

        return run

    # Its workers persist: starting processes is not what is compared.
    pillow_loader = DataLoader(
        PillowViews(dataset.paths, recipe),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )

    def pillow(turn: int) -> None:
        torch.manual_seed(turn)
        for views in pillow_loader:
            assert len(views[0]) == batch_size

    return {PEER: pillow, "DALI, 1 thread": dali(1), "DALI, 2 threads": dali(2)}


def main() -> None:
    """Run, print and write."""
    parser = arguments(__doc__)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device("cpu")
    seconds = 10.0 if args.quick else 60.0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        problems = {
            "simclr_small, 32 x 32 patches, batch 256": (
                open_dataset("builtin:photos"),
                recipe("simclr_small"),
                256,
            ),
            "simclr, photographs to 224 x 224, batch 32": (
                photographs(Path(folder), 160 if args.quick else 320),
                recipe("simclr"),
                32,
            ),
        }
        for problem, (dataset, steps, batch_size) in problems.items():
            runs = providers(dataset, steps, batch_size)
            samples = interleave(runs, device, seconds, least=3)
            images = len(dataset) // batch_size * batch_size
            print(f"\n{problem} ({len(steps.views)} views)")
            print(f"{'provider':20}{'images/s':>10}{'ms/batch':>10}{'against Pillow':>16}")
            for name, times in samples.items():
                median = statistics.median(times)
                batch_ms = median * 1e3 * batch_size / images
                ratio = statistics.median(samples[PEER]) / median
                print(f"{name:20}{images / median:>10.0f}{batch_ms:>10.1f}{ratio:>15.2f}x")
                extra = {"images_per_second": images / median, "batch_ms": batch_ms}
                rows.append(Row("data", problem, name, median, samples=times, extra=extra))
    if args.out:
        write_rows(args.out, rows, device)


if __name__ == "__main__":
    main()
