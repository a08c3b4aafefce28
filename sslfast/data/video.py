"""Frames of video files, by PyAV: what a file holds, and some frames of it by number.

Frames are numbered by time: number n is the one shown n / rate seconds after the start, with the
file's average rate. In a file of constant rate that is the n-th; in others clips stay even in time.
"""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from sslfast._extras import require
from sslfast.data.check import Verdict
from sslfast.data.walk import open_file

# Not MPEG program streams: after a seek, their times are off by a frame.
EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

NO_DECODER = "no decoder for its codec"


class BadVideoError(RuntimeError):
    """A file is no video, or a part of it cannot be decoded; the message says why."""


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
        with _opened(library, path) as container:
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


def _opened(library: Any, path: str) -> Any:
    """The container; titles and the like may be in any encoding."""
    open_file(path).close()  # or raise: FFmpeg would wait for a pipe without end
    return library.open(path, metadata_errors="replace")


def _count(container: Any, stream: Any) -> int:
    """Frames of average length between the first and the last packet."""
    times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    if not times:
        return 0
    return round((max(times) - min(times)) * stream.time_base * stream.average_rate) + 1


def read_frames(path: str, numbers: Sequence[int]) -> list[np.ndarray]:
    """Some frames of a video, decoded from the nearest key frame before the first of them.

    Args:
        path: a video file.
        numbers: which frames, ascending. Past the end of the video, its last frame is repeated.

    Returns:
        uint8 [height, width, 3] each, in RGB. Frames asked for twice are the same array.

    Raises:
        BadVideoError: they cannot be decoded, or the file cannot be opened.
    """
    library = av()
    try:
        # Without an index, a seek may lead past the time asked for: then from the start.
        return _decode(library, path, numbers, True) or _decode(library, path, numbers, False)
    except (OSError, library.FFmpegError) as error:
        raise BadVideoError(reason(error)) from error


def _decode(library: Any, path: str, numbers: Sequence[int], seek: bool) -> list[np.ndarray]:
    """The frames; none of them where seeking led past the first."""
    with _opened(library, path) as container:
        if not container.streams.video:
            raise BadVideoError("no video in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise BadVideoError(NO_DECODER)
        stream.codec_context.thread_count = 1  # clips are decoded in parallel, not parts of them
        tick = 1 / (stream.average_rate * stream.time_base)
        start = stream.start_time or 0
        if seek and numbers[0] > 0:
            container.seek(int(start + numbers[0] * tick), stream=stream)
        # Times are rounded in the file: the frame shown at n is the last to begin before n + 1/2.
        ends = [start + (number + Fraction(1, 2)) * tick for number in numbers]
        chosen = _choose(container.decode(stream), ends, may_be_late=not seek)
        arrays: dict[int, np.ndarray] = {}
        for frame in chosen:
            if id(frame) not in arrays:
                arrays[id(frame)] = frame.to_ndarray(format="rgb24")
        return [arrays[id(frame)] for frame in chosen]


def _choose(frames: Iterable[Any], ends: list[Fraction], may_be_late: bool) -> list[Any]:
    """For each time the last frame that begins before it; none at all if the first is late."""
    chosen: list[Any] = []
    last = None
    for frame in frames:
        begin = frame.dts if frame.pts is None else frame.pts
        if begin is None:
            raise BadVideoError("frames without times")
        if last is None and begin > ends[0] and not may_be_late:
            return []
        while last is not None and begin > ends[len(chosen)]:
            chosen.append(last)
            if len(chosen) == len(ends):
                return chosen
        last = frame
    if last is None:
        if may_be_late:
            raise BadVideoError("no frame could be decoded")
        return []
    return chosen + [last] * (len(ends) - len(chosen))


def reason(error: Exception) -> str:
    """An error of PyAV or of the system, for people."""
    return getattr(error, "strerror", None) or str(error)
