"""Some samples of a source: files stay files, other samples are asked for one by one."""

from pathlib import Path

import pytest
from byte_tokens import SPEC, register

from sslfast import data
from sslfast.data.sources.subset import Subset, subset
from sslfast.data.sources.videos import VideoDataset


def test_files_stay_files() -> None:
    whole = data.open_dataset("builtin:mnist", "test")
    part = subset(whole, [500, 3, 3])
    assert isinstance(part, data.ImageDataset)
    assert len(part) == 3
    assert part.classes == whole.classes
    for i, number in enumerate([500, 3, 3]):
        assert part.sample_name(i) == whole.sample_name(number)
        assert part.label(i) == whole.label(number)
        assert part.read(i) == whole.read(number)
    assert part.sizes == [(28, 28)] * 3
    assert part.manifest.lengths[1] == whole.manifest.lengths[3]
    assert part.manifest.fingerprint != whole.manifest.fingerprint


def test_videos_keep_their_lengths() -> None:
    whole = VideoDataset("x", ["a", "b", "c"], sizes=[(1, 2), (3, 4), (5, 6)], frames=[7, 8, 9])
    part = subset(whole, [2, 0])
    assert isinstance(part, VideoDataset)
    assert (part.frames, part.sizes, part.labels) == ([9, 7], [(5, 6), (1, 2)], None)


def test_samples_of_any_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    whole = data.open_dataset(SPEC, modality="tokens")
    part = subset(whole, [5, 1])
    assert isinstance(part, Subset)
    assert isinstance(part, data.Source)
    assert (part.modality, len(part), part.label(0)) == ("tokens", 2, None)
    assert [part.read(i) for i in range(2)] == [whole.read(5), whole.read(1)]
    assert part.sample_name(1) == whole.sample_name(1)
    prints = {s.manifest.fingerprint for s in (whole, part, subset(whole, [1, 5]))}
    assert len(prints) == 3
    loader = data.make_loader(part, data.recipe("noisy_text"), batch_size=2)
    (batch,) = loader
    loader.close()
    assert sorted(batch.sample_ids.tolist()) == [0, 1]
