"""Frames of video files by number, decoded by PyAV.

Frames are numbered by time: number n is the one shown n / rate seconds after the start, with the
file's average rate. In a file of constant rate that is the n-th; in others clips stay even in time.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from sslfast.data.executors.executor import BadSampleError
from sslfast.data.sources.videos import NO_DECODER, av, opened, reason


class BadVideoError(BadSampleError):
    """A file is no video, or a part of it cannot be decoded; the message says why."""


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
    with opened(library, path) as container:
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
