"""Video files as a source, and what PyAV sees in their headers."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sslfast._extras import require
from sslfast.data.sources.check import Verdict
from sslfast.data.sources.files import KINDS, FileKind
from sslfast.data.sources.images import ImageDataset
from sslfast.data.sources.walk import open_file

# Not MPEG program streams: after a seek, their times are off by a frame.
EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

NO_DECODER = "no decoder for its codec"


@dataclass(frozen=True)
class VideoDataset(ImageDataset):
    """The readable videos of a data set: as ImageDataset, and how long they are.

    Attributes:
        frames: of each file.
    """

    modality: ClassVar[str] = "video"
    per_file: ClassVar[tuple[str, ...]] = (*ImageDataset.per_file, "frames")

    frames: list[int] = field(default_factory=list)


def av() -> Any:
    """The module of PyAV, imported when it is first needed.

    Raises:
        MissingExtra: it is not installed.
    """
    return require("av", extra="video", purpose="Reading videos")


def check_video(path: str) -> Verdict:
    """What a video file holds, from its headers; nothing is decoded.

    Where the header does not count frames (Matroska, WebM), or the index that should list them is
    cut off (AVI), all packets are read, and those that are there count. Damage inside the
    compressed data is found when it is decoded.

    Raises:
        OSError: it cannot be opened.
    """
    library = av()
    if os.path.getsize(path) == 0:
        return Verdict(0, 0, "empty file")
    try:
        with opened(library, path) as container:
            if not container.streams.video:
                return Verdict(0, 0, "no video in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                return Verdict(0, 0, NO_DECODER)
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if end > os.path.getsize(path):
                return Verdict(0, 0, "truncated: shorter than its index says")
            if not stream.average_rate:
                return Verdict(0, 0, "no frame rate")
            height, width = stream.height, stream.width
            frames = stream.frames
            if len(stream.index_entries) < frames or not frames:
                frames = _count(container, stream)
    except library.FFmpegError as error:
        return Verdict(0, 0, reason(error))
    if frames < 2:
        return Verdict(0, 0, f"{frames} frame(s): no video")
    if height < 1 or width < 1:
        return Verdict(0, 0, "no image size in its header")
    return Verdict(height, width, frames=frames)


def opened(library: Any, path: str) -> Any:
    """The container; titles and the like may be in any encoding."""
    open_file(path).close()  # or raise: FFmpeg would wait for a pipe without end
    return library.open(path, metadata_errors="replace")


def _count(container: Any, stream: Any) -> int:
    """Frames of average length between the first and the last packet."""
    times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    if not times:
        return 0
    return round((max(times) - min(times)) * stream.time_base * stream.average_rate) + 1


def reason(error: Exception) -> str:
    """An error of PyAV or of the system, for people."""
    return getattr(error, "strerror", None) or str(error)


def _dataset(fields: dict[str, Any], verdicts: list[Verdict]) -> VideoDataset:
    return VideoDataset(**fields, frames=[one.frames for one in verdicts])


KINDS.add("video", FileKind(EXTENSIONS, _dataset, check_video, ready=av))
