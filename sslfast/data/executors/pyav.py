"""The video loader: order and random draws from Philox, frames from PyAV in background threads.

Decoding, colour conversion and resizing all release Python's lock, so threads are enough. A clip is
decoded for each view, crops are cut on whole pixels, and all frames of a clip are cropped, flipped
and recoloured alike.
"""

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.data.executors.frames import BadVideoError, read_frames
from sslfast.data.sources.folder import ImageDataset, VideoDataset
from sslfast.data.steps import Options, Planned, StepLoader
from sslfast.data.views.draws import Draw
from sslfast.data.views.recipes import Recipe, View

logger = logging.getLogger("sslfast")

Work = list[tuple[int, Future[Tensor]]]  # sample and clip, view after view


class VideoLoader(StepLoader):
    """PyAV as the executor: clips of videos, decoded on the CPU, for any device."""

    def __init__(self, dataset: ImageDataset, recipe: Recipe, options: Options) -> None:
        if not isinstance(dataset, VideoDataset) or dataset.sizes is None:
            raise ValueError(
                f"recipe '{recipe.name}' makes clips of videos, and {dataset.name} was opened as "
                'images: open it with modality="video"'
            )
        super().__init__(dataset, dataset.sizes, recipe, options)
        self._frames = dataset.frames
        self._pool: ThreadPoolExecutor | None = None
        self._work: deque[Work] = deque()
        self._bad: dict[int, str] = {}
        _warn_of_short_videos(dataset, recipe)

    def _start(self, depth: int) -> None:
        self._pool = ThreadPoolExecutor(self._threads, "sslfast-video")

    def _submit(self, batch: Planned) -> None:
        assert self._pool is not None
        work = []
        for view, draws in zip(self._recipe.views, batch.draws, strict=True):
            for row, sample in enumerate(batch.ids.tolist()):
                draw = draws.rows(slice(row, row + 1))
                path, frames = self._dataset.paths[sample], self._frames[sample]
                work.append((sample, self._pool.submit(read_clip, path, frames, view, draw)))
        self._work.append(work)

    def _collect(self) -> list[Tensor]:
        clips = []
        for sample, future in self._work[0]:
            try:
                clips.append(future.result())
            except BadVideoError as error:
                self._bad[sample] = str(error)
        if self._bad:
            raise BadVideoError(f"{len(self._bad)} videos of a batch cannot be decoded")
        self._work.popleft()
        size = self._order.batch_size
        return [
            normalize(torch.stack(clips[v * size : (v + 1) * size]).to(self._device), view)
            for v, view in enumerate(self._recipe.views)
        ]

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._work.clear()

    def _find_bad(self, batches: list[Planned]) -> dict[int, str] | None:
        # Only those of the oldest batch: what is bad in a later one may depend on its clips, and
        # nothing may depend on how many batches were in work.
        bad, self._bad = self._bad, {}
        return bad or None


def read_clip(path: str, frames: int, view: View, draw: Draw) -> Tensor:
    """One view of one video, before its colours: uint8 [3, num_frames, size, size].

    Args:
        path: a video file.
        frames: that it has; a clip that needs more repeats the last.
        view: of clips.
        draw: of one sample.

    Raises:
        BadVideoError: it cannot be decoded.
    """
    numbers = clip_frames(frames, view, float(draw.moment[0]))
    clip = torch.empty(len(numbers), 3, view.size, view.size, dtype=torch.uint8)
    done: dict[int, int] = {}  # frame -> where it is in the clip
    for place, pixels in enumerate(read_frames(path, numbers)):
        same = done.setdefault(id(pixels), place)
        clip[place] = clip[same] if same < place else resize_frame(pixels, view.size, draw)
    return clip.transpose(0, 1).contiguous()


def clip_frames(frames: int, view: View, moment: float) -> list[int]:
    """The frames of a clip, by number.

    Args:
        frames: of the video.
        view: of clips.
        moment: in [0, 1): where among all possible places.
    """
    assert view.num_frames is not None
    span = _span(view)
    start = int(moment * max(frames - span + 1, 1))
    return list(range(start, start + span, view.sampling_rate))


def _span(view: View) -> int:
    """Frames from the first to the last of a clip."""
    return ((view.num_frames or 1) - 1) * view.sampling_rate + 1


def resize_frame(pixels: np.ndarray, size: int, draw: Draw) -> Tensor:
    """Crop a frame uint8 [H, W, 3], flip and resize it: uint8 [3, size, size]."""
    sides = pixels.shape[:2]
    top, left = (round(float(x) * side) for x, side in zip(draw.start[0], sides, strict=True))
    bottom, right = (round(float(x) * side) for x, side in zip(draw.end[0], sides, strict=True))
    crop = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    if draw.flip[0]:
        crop = crop[:, ::-1]
    # On bytes and channels-last, this runs on the calling thread alone.
    image = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)[0]


def normalize(clips: Tensor, view: View) -> Tensor:
    """Bytes [B, 3, T, H, W] -> normalised, or in [0, 1] where colours are still to change."""
    mean, std = ((0.0,) * 3, (1.0,) * 3) if view.recolors else (view.mean, view.std)
    scale = np.array([1 / (255 * s) for s in std], np.float32)[:, None, None, None]
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    shift = shift[:, None, None, None]
    if clips.device.type == "cpu":
        # NumPy, on this one thread, as in color.py: the cores are busy with decoding.
        out = np.multiply(clips.numpy(), scale, dtype=np.float32)
        out += shift
        return torch.from_numpy(out)
    scales, shifts = (
        torch.from_numpy(x).to(clips.device, non_blocking=True) for x in (scale, shift)
    )
    return clips.float().mul_(scales).add_(shifts)


def _warn_of_short_videos(dataset: VideoDataset, recipe: Recipe) -> None:
    span = max(_span(view) for view in recipe.views)
    short = sum(frames < span for frames in dataset.frames)
    if short:
        logger.warning(
            "%d of %d videos are shorter than a clip of %d frames, so their last frame is "
            "repeated: lower num_frames or sampling_rate to avoid it",
            short,
            len(dataset.frames),
            span,
        )
