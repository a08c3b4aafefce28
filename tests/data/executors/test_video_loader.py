"""The video loader: what it yields, and that nothing but seed, epoch and sample decides on it."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from videos import BIKES, CARPHONE, decode, folder_of, write

from sslfast._extras import MissingExtra
from sslfast.data import (
    Batch,
    Loader,
    Recipe,
    VideoDataset,
    View,
    builtin,
    make_loader,
    open_dataset,
    recipe,
)
from sslfast.data.executors.frames import read_frames
from sslfast.data.sources import builtin as module

CLIPS = recipe("videomae", size=16, num_frames=4, sampling_rate=2)
MIDDLE = recipe(
    "eval", size=24, num_frames=4, sampling_rate=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (6 + 6) and test (3 + 3) videos of 12 frames of 24 x 24 pixels."""
    return folder_of(tmp_path_factory.mktemp("videos"), {"train": 6, "test": 3})


@pytest.fixture
def dataset(folder: Path) -> VideoDataset:
    opened = open_dataset(str(folder), modality="video")
    assert isinstance(opened, VideoDataset)
    return opened


@pytest.fixture
def loader(dataset: VideoDataset) -> Iterator[Callable[..., Loader]]:
    """Makes loaders and closes them."""
    made = []

    def make(recipe: Recipe = CLIPS, **options: Any) -> Loader:
        options = {"batch_size": 4, "threads": 2} | options
        made.append(make_loader(options.pop("dataset", dataset), recipe, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def flat(batches: list[Batch]) -> list[Tensor]:
    """Everything in some batches, as a list of tensors."""
    return [t for b in batches for t in (*b.views, b.sample_ids, b.labels)]


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(flat(a), flat(b), strict=True)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in pairs)


def test_batches_are_what_the_contract_says(
    loader: Callable[..., Loader], dataset: VideoDataset
) -> None:
    assert dataset.classes == ["left", "right"]
    assert dataset.frames == [12] * 12
    assert dataset.sizes == [(24, 24)] * 12
    one = loader()
    assert isinstance(one, Loader)
    assert (one.num_samples, one.steps_per_epoch) == (12, 3)
    batches = list(one)
    for batch in batches:
        (clips,) = batch.views
        assert clips.shape == (4, 3, 4, 16, 16)
        assert clips.dtype == torch.float32
        assert clips.is_contiguous()
        assert batch.labels.tolist() == [dataset.labels[i] for i in batch.sample_ids]
    assert sorted(torch.cat([b.sample_ids for b in batches]).tolist()) == list(range(12))
    whole = torch.cat([b.views[0] for b in batches])
    assert 0.2 < whole.std() < 2  # normalised


def test_without_randomness_it_is_the_middle_of_each_video(
    loader: Callable[..., Loader], dataset: VideoDataset
) -> None:
    batches = list(loader(MIDDLE, train=False, batch_size=5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert torch.cat([b.sample_ids for b in batches]).tolist() == list(range(12))
    for path, clip in zip(dataset.paths, torch.cat([b.views[0] for b in batches]), strict=True):
        # 7 of 12 frames: places 0 to 5, of which the middle is 3.
        frames = read_frames(path, [3, 5, 7, 9])
        expected = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2) / 255
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6)


def test_all_frames_of_a_clip_are_treated_alike(
    tmp_path: Path, loader: Callable[..., Loader]
) -> None:
    for i, pixels in enumerate(decode(CARPHONE)[:40:10]):
        write(tmp_path / f"{i}.mkv", [pixels] * 9, "ffv1")
    still = open_dataset(str(tmp_path), modality="video")
    jitter = recipe(
        "videomae", size=32, num_frames=4, sampling_rate=2, jitter_prob=0.5, contrast=0.4, hue=0.2
    )
    for batch in loader(jitter, dataset=still):
        clips = batch.views[0]
        assert (clips.std((1, 3, 4)) > 0.1).all()
        torch.testing.assert_close(clips, clips[:, :, :1].expand_as(clips), rtol=0, atol=1e-6)


def test_clips_are_new_in_every_epoch_and_for_every_seed(loader: Callable[..., Loader]) -> None:
    whole = recipe("videomae", size=24, num_frames=4, crop_scale=(1.0, 1.0), crop_ratio=(1, 1))
    moments = recipe("videomae", size=16, num_frames=2, sampling_rate=1, flip=0.0)
    for chosen in (whole, moments):
        one = loader(chosen)
        by_epoch = []
        for _ in range(2):
            batches = list(one)
            ids = torch.cat([b.sample_ids for b in batches])
            by_epoch.append(torch.cat([b.views[0] for b in batches])[ids.argsort()])
        assert not torch.equal(*by_epoch)
        other = list(loader(chosen, seed=1))
        ids = torch.cat([b.sample_ids for b in other])
        assert not torch.equal(by_epoch[0], torch.cat([b.views[0] for b in other])[ids.argsort()])


def test_threads_prefetching_and_ranks_change_nothing(loader: Callable[..., Loader]) -> None:
    expected = list(loader()) + list(loader())  # two loaders agree ...
    assert same(expected[:3], expected[3:])
    one = loader(threads=1, prefetch=1)
    assert same(list(one) + list(one), list(two := loader(threads=4, prefetch=5)) + list(two))
    ranks = [loader(batch_size=2, rank=r, world_size=2) for r in range(2)]
    for batch, first, second in zip(expected, *map(list, ranks), strict=False):
        assert torch.equal(batch.sample_ids, torch.cat([first.sample_ids, second.sample_ids]))
        assert torch.equal(batch.views[0], torch.cat([first.views[0], second.views[0]]))


def test_a_resumed_loader_goes_on_bit_for_bit(loader: Callable[..., Loader]) -> None:
    one = loader()
    batches = iter(one)
    next(batches), next(batches)
    state = one.state_dict()
    rest = [*batches, *one]
    assert len(rest) == 4
    resumed = loader(threads=1)
    resumed.load_state_dict(state)
    assert same(rest, [*resumed, *resumed])


def test_bad_videos_are_left_out_and_named(
    tmp_path: Path, loader: Callable[..., Loader], caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, {"train": 4}) / "train"
    content = bytearray(Path(BIKES).read_bytes())
    content[2_000:450_000] = bytes(448_000)
    (folder / "left" / "damaged.mp4").write_bytes(content)
    (folder / "left" / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unreadable video: .*empty.mp4: empty file"):
        open_dataset(str(folder), modality="video", on_bad_image="raise")
    dataset = open_dataset(str(folder), modality="video")
    assert "skipped 1 of 10 videos as unreadable" in caplog.text
    assert len(dataset) == 9
    bad = [i for i, path in enumerate(dataset.paths) if path.endswith("damaged.mp4")]
    one = loader(dataset=dataset, batch_size=3)
    batches = [*one, *one]
    assert [len(batch) for batch in batches] == [3] * 6
    assert bad[0] not in torch.cat([b.sample_ids for b in batches])
    assert one.skipped == [(dataset.paths[bad[0]], "Invalid data found when processing input")]
    assert "skipping unreadable video" in caplog.text
    assert one.state_dict()["excluded"] == bad
    again = loader(dataset=dataset, batch_size=3, prefetch=5)
    assert same(batches, [*again, *again])
    with pytest.raises(ValueError, match=r"unreadable video: .*damaged.mp4 \(Invalid data found"):
        list(loader(dataset=dataset, batch_size=3, on_bad_image="raise"))
    Path(dataset.paths[0]).unlink()
    gone = loader(MIDDLE, dataset=dataset, train=False, batch_size=4)
    assert sum(len(batch) for batch in gone) == 7
    assert "No such file" in dict(gone.skipped)[dataset.paths[0]]


def test_frames_of_varying_size_and_short_videos(
    tmp_path: Path, loader: Callable[..., Loader], caplog: pytest.LogCaptureFixture
) -> None:
    frames = decode(CARPHONE)[:5]
    write(tmp_path / "short.mp4", frames)
    # Motion JPEG says in each frame how large it is: five large ones, then five small.
    parts = [
        write(tmp_path / f"{n}.part.mkv", [p[:size, :size] for p in frames], "mjpeg")
        for n, size in enumerate((128, 64))
    ]
    with av.open(str(tmp_path / "varying.mkv"), "w") as target:
        sources = [av.open(str(part)) for part in parts]
        stream = target.add_stream_from_template(sources[0].streams.video[0])
        for n, source in enumerate(sources):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.pts = packet.dts = packet.pts + 200 * n
                    packet.stream = stream
                    target.mux(packet)
            source.close()
        for part in parts:
            part.unlink()
    dataset = open_dataset(str(tmp_path), modality="video")
    assert dataset.frames == [5, 10]
    caplog.set_level(logging.WARNING, "sslfast")
    view = View(size=32, crop_scale=None, num_frames=8, sampling_rate=1)
    (batch,) = loader(Recipe("all", (view,)), dataset=dataset, train=False)
    assert "1 of 2 videos are shorter than a clip of 8 frames" in caplog.text
    short, varying = batch.views[0]
    assert torch.equal(short[:, 4], short[:, 7])
    assert not torch.equal(short[:, 3], short[:, 4])
    sizes = [pixels.shape[0] for pixels in read_frames(dataset.paths[1], range(10))]
    assert sizes == [128] * 5 + [64] * 5
    assert varying.isfinite().all()


def test_the_built_in_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path))
    monkeypatch.setattr("sslfast.data.sources.builtin_clips.LIMIT", {"train": 12, "test": 4})
    monkeypatch.setattr(
        "sslfast.data.sources.builtin_clips.CLIPS", {"carphone": "carphone_pristine.mp4"}
    )
    monkeypatch.setitem(module._CLASSES, "clips", ["carphone"])
    sets = {split: builtin("clips", split) for split in ("train", "test")}
    assert sets["train"][0].shape == (12, 64, 48, 48, 3)
    assert sets["test"][0].shape == (4, 64, 48, 48, 3)
    whole = np.stack(decode(CARPHONE))  # 144 pixels high, as all are made; the border is at 123
    for videos, left, right in ((sets["train"][0], 0, 123), (sets["test"][0], 123, 176)):
        first, last = videos[0].numpy(), videos[-1].numpy()
        assert np.array_equal(first, whole[:64, :48, left : left + 48])
        places = [
            (t, y, x)
            for t in range(0, 57, 8)
            for y in range(0, 97, 24)
            for x in range(left, right - 47, 24)
            if np.array_equal(last[0], whole[t, y : y + 48, x : x + 48])
        ]
        t, y, x = places[-1]
        assert np.array_equal(last, whole[t : t + 64, y : y + 48, x : x + 48])
    dataset = open_dataset("builtin:clips", modality="video")
    assert len(dataset) == 12
    assert set(dataset.frames) == {64}
    for path, video in zip(dataset.paths[:3], sets["train"][0], strict=False):
        assert np.abs(np.stack(decode(path)).astype(float) - video.numpy()).mean() < 5


def test_wrong_kinds_of_data_are_explained(
    folder: Path, loader: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"no images in .* It holds 12 videos: for these, choose"):
        open_dataset(str(folder))
    with pytest.raises(ValueError, match=r"no videos in .* It holds \d+ images"):
        open_dataset("builtin:mnist", modality="video")
    with pytest.raises(ValueError, match=r"modality must be one of image, video, got 'sound'"):
        open_dataset(str(folder), modality="sound")
    digits = open_dataset("builtin:mnist")
    with pytest.raises(ValueError, match="'videomae' makes views of videos, and builtin:mnist was"):
        loader(dataset=digits)
    with pytest.raises(ValueError, match=r"makes views of images, and .* was opened as videos"):
        loader(recipe("mae"))
    with pytest.raises(ValueError, match="all of images, or all of clips"):
        Recipe("both", (View(), View(num_frames=4)))
    for wrong in ({"num_frames": 0}, {"sampling_rate": 0}, {"num_frames": 2, "blur_prob": 0.5}):
        with pytest.raises(ValueError, match=r"at least 1|cannot be blurred"):
            View(**wrong)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingExtra, match=r"Reading videos needs the package 'av'.*sslfast\[video"
    ):
        open_dataset(str(folder), modality="video")
