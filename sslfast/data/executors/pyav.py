"""PyAV as the executor of videos: frames are decoded in background threads, on the CPU.

Decoding, colour conversion and resizing all release Python's lock, so threads are enough. A clip is
decoded for each view, crops are cut on whole pixels, and all frames of a clip are cropped, flipped
and recoloured alike.
"""

import logging
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.data.executors.drawing import Drawer, recolored
from sslfast.data.executors.executor import EXECUTORS, Options, Planned
from sslfast.data.executors.frames import read_frames
from sslfast.data.executors.threads import ThreadedExecutor
from sslfast.data.sources.source import Source
from sslfast.data.sources.videos import VideoDataset
from sslfast.data.views.draws import Draw
from sslfast.data.views.view import Recipe, View

logger = logging.getLogger("sslfast")


class VideoExecutor(ThreadedExecutor):
    """Clips of videos, for any device."""

    def __init__(self, source: Source, recipe: Recipe, options: Options) -> None:
        super().__init__(source, recipe, options)
        if not isinstance(source, VideoDataset) or source.sizes is None:
            raise ValueError(
                f"PyAV reads video files of known sizes, and {source.manifest.given} has none"
            )
        self._paths, self._frames = source.paths, source.frames
        self._drawer = Drawer(recipe.views, source.sizes, options.batch_size, options.seed)
        self._draws: deque[list[Draw]] = deque()  # of the batches in work
        _warn_of_short_videos(source, recipe)

    def prepare(self, batch: Planned) -> list[list[Draw]]:
        """The draws of each sample."""
        draws = self._drawer.draws(batch)
        self._draws.append(draws)
        return [[one.rows(slice(i, i + 1)) for one in draws] for i in range(len(batch.ids))]

    def make(self, sample: int, place: int, epoch: int, extra: list[Draw]) -> list[Tensor]:
        """A clip for each view, before its colours."""
        del place, epoch
        path, frames = self._paths[sample], self._frames[sample]
        pairs = zip(self.recipe.views, extra, strict=True)
        return [read_clip(path, frames, view, draw) for view, draw in pairs]

    def join(self, batch: Planned, samples: list[list[Tensor]]) -> tuple[Tensor, ...]:
        """Views float32 [B, 3, num_frames, size, size], normalised."""
        del batch
        draws, device = self._draws.popleft(), self.options.device
        views = []
        for v, view in enumerate(self.recipe.views):
            clips = torch.stack([sample[v] for sample in samples]).to(device)
            views.append(recolored(normalize(clips, view), view, draws[v]))
        return tuple(views)

    def stop(self) -> None:
        """End the threads."""
        super().stop()
        self._draws.clear()
        self._drawer.forget()


EXECUTORS.add("video", VideoExecutor)


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
