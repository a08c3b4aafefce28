"""DALI executes the geometry of a recipe: read, decode, crop, resize, blur, flip, lay out as CHW.

Random parameters are fed in (see views/draws.py), so the graph holds no random state. An image is
decoded once for all its views (measured about as fast as a cropped decode for each view). Colours
follow outside (see views/color.py): DALI's color_twist takes ten times as long on a CPU, and knows
contrast only about mid-grey, not about the image's mean. The blur therefore comes before the
colours; both are linear, so but for the clipping of colours they commute.

What DALI cannot be given, Pillow decodes, and DALI gets it uncompressed, as a file in memory. No
path reaches DALI that is no regular file: it would wait for a pipe without end.

The same graph runs on a GPU: decoder "mixed", later steps "gpu", parameters still from the CPU.
"""

import os
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast._extras import require
from sslfast.data.executors.image_files import (
    allow_open_files,
    close_files,
    path_of,
    write_in_memory,
)
from sslfast.data.executors.pillow import decode
from sslfast.data.sources.walk import why_not_a_file
from sslfast.data.views.draws import Draw
from sslfast.data.views.view import View


def _dali() -> tuple[Any, Any, Any]:
    """(pipeline_def, fn, types) of DALI."""
    dali = require("nvidia.dali", extra="dali", purpose="Loading images from files")
    fn = require("nvidia.dali.fn", extra="dali", purpose="Loading images from files")
    return dali.pipeline_def, fn, dali.types


class ViewPipeline:
    """A DALI pipeline for some views; what is submitted is collected in the same order.

    Args:
        views: the views to produce; none: images are decoded, and nothing comes out of it.
        batch_size: images a batch, always full.
        device: "cpu", or a CUDA device with its index.
        threads: DALI's CPU threads, and Pillow's.
        depth: batches in work at a time; so many must be submitted before the first is collected.
    """

    def __init__(
        self,
        views: tuple[View, ...],
        batch_size: int,
        device: torch.device,
        *,
        threads: int = 1,
        depth: int = 2,
    ) -> None:
        pipeline_def, fn, types = _dali()
        cpu = device.type == "cpu"

        @pipeline_def(
            batch_size=batch_size,
            num_threads=threads,
            device_id=None if cpu else device.index,
            prefetch_queue_depth=depth,
        )
        def graph() -> tuple[Any, ...]:
            names = fn.external_source(name="names", device="cpu")
            images = fn.decoders.image(
                # Plain reads: for the small files of most data sets a mapping costs more.
                fn.io.file.read(names, dont_use_mmap=True),
                device="cpu" if cpu else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,
                # A GPU's hardware decoder and the one in CUDA share a batch, and differ by a level
                # or so: who decodes an image would depend on the rest of its batch.
                hw_decoder_load=0.0,
            )
            outputs = [_view(fn, types, images, v, view) for v, view in enumerate(views)]
            return tuple(outputs) or (images.shape(),)

        self._views, self._device, self.depth = views, device, depth
        self._submitted = 0
        self._pool, self._threads = ThreadPoolExecutor(threads, "sslfast-files"), threads
        self._in_memory: deque[list[int]] = deque()  # of each batch in work, its files in memory
        self.pipeline = graph()

    def submit(
        self, paths: list[str], draws: list[Draw], by_pillow: Collection[str] = frozenset()
    ) -> None:
        """Queue one batch: as many files as the batch size, and one Draw for each view.

        Args:
            paths: image files.
            draws: see there.
            by_pillow: those that Pillow decodes.

        Raises:
            RuntimeError: one of them is no regular file, or Pillow cannot decode it.
        """
        feed = self.pipeline.feed_input
        # One padded table, not an array a file: half the cost. A file name ends at its first zero.
        names = [os.fsencode(path) for path in self._readable(paths, by_pillow)]
        width = max(map(len, names)) + 1
        table = b"".join(name.ljust(width, b"\0") for name in names)
        feed("names", np.frombuffer(table, np.uint8).reshape(len(names), -1))
        for v, (view, draw) in enumerate(zip(self._views, draws, strict=True)):
            feed(f"start{v}", draw.start)
            feed(f"end{v}", draw.end)
            feed(f"flip{v}", draw.flip)
            if view.blur_prob > 0:
                # The window follows sigma, 3 sigma each way: twice as fast as a fixed wide one.
                # A window of 1 leaves an image as it is, to the bit.
                radius = np.ceil(3 * draw.sigma).astype(np.int32)
                feed(f"sigma{v}", np.maximum(draw.sigma, np.float32(1e-3)))
                feed(f"window{v}", 2 * radius + 1)
        self._submitted += 1
        if self._submitted >= self.depth:  # DALI's first run starts all of the first ``depth``
            self.pipeline.schedule_run()

    def collect(self) -> list[Tensor]:
        """Wait for the oldest batch: float32 [B, 3, size, size] a view, on the device.

        The tensors share DALI's memory, which stays theirs as long as they live.

        Raises:
            RuntimeError: a file of a submitted batch could not be read or decoded; the pipeline
                cannot be used any more.
        """
        stream = None if self._device.type == "cpu" else torch.cuda.current_stream(self._device)
        outputs = self.pipeline.share_outputs(cuda_stream=stream)
        tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        self.pipeline.release_outputs()
        close_files(self._in_memory.popleft())
        return tensors

    def close(self) -> None:
        """Free threads and memory, but for that of tensors handed out."""
        self._pool.shutdown(cancel_futures=True)
        del self.pipeline  # before what it may still be reading
        while self._in_memory:
            close_files(self._in_memory.popleft())

    def _readable(self, paths: list[str], by_pillow: Collection[str]) -> list[str]:
        """The paths, but of files in memory where Pillow decodes."""
        step = -(-len(paths) // self._threads)
        parts = [paths[i : i + step] for i in range(0, len(paths), step)]
        for reason in self._pool.map(_first_reason, parts):
            if reason is not None:
                raise RuntimeError(reason)
        chosen = [i for i, path in enumerate(paths) if path in by_pillow]
        if chosen:
            allow_open_files(self.depth * len(paths))
        self._in_memory.append([])
        paths = list(paths)
        work = [self._pool.submit(decode, paths[i]) for i in chosen]
        for i, future in zip(chosen, work, strict=True):
            handle = write_in_memory(future.result())
            self._in_memory[-1].append(handle)
            paths[i] = path_of(handle)
        return paths


def _first_reason(paths: list[str]) -> str | None:
    for path in paths:
        reason = why_not_a_file(path)
        if reason is not None:
            return f"{path}: {reason}"
    return None


def _view(fn: Any, types: Any, images: Any, v: int, view: View) -> Any:
    """The graph of one view, of decoded images uint8 HWC."""

    def parameter(name: str) -> Any:
        return fn.external_source(name=f"{name}{v}", device="cpu")

    images = fn.resize(
        images,
        size=[view.size, view.size],
        roi_start=parameter("start"),
        roi_end=parameter("end"),
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    if view.blur_prob > 0:
        images = fn.gaussian_blur(images, sigma=parameter("sigma"), window_size=parameter("window"))
    # Where colours are still to change, values stay in [0, 1]; else this is the normalisation.
    mean, std = ((0.0,) * 3, (1.0,) * 3) if view.recolors else (view.mean, view.std)
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mirror=parameter("flip"),
        mean=[255 * m for m in mean],
        std=[255 * s for s in std],
    )
