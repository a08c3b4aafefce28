"""Frames of video files: those of a straight decode, whatever is asked for, or a clear refusal."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from videos import BIKES, CARPHONE, CLIPS, decode, write

from sslfast.data import View
from sslfast.data.executors import frames
from sslfast.data.executors.frames import BadVideoError, read_frames
from sslfast.data.executors.pyav import clip_frames
from sslfast.data.sources import videos
from sslfast.data.sources.check import Verdict
from sslfast.data.sources.videos import check_video


@pytest.fixture(scope="module")
def carphone() -> list[np.ndarray]:
    return decode(CARPHONE)


def assert_straight(path: str | Path, whole: list[np.ndarray], starts: range) -> None:
    for start in starts:
        numbers = [start, start + 1, start + 1, start + 4, start + 9]
        for number, got in zip(numbers, read_frames(str(path), numbers), strict=True):
            expected = whole[min(number, len(whole) - 1)]
            assert np.array_equal(got, expected), (start, number)


def test_frames_are_those_of_a_straight_decode(carphone: list[np.ndarray]) -> None:
    assert_straight(CARPHONE, carphone, range(0, 124, 31))
    # Six key frames, unevenly: 0, 30, 76, 137, 187, 242.
    assert_straight(BIKES, decode(BIKES), range(0, 252, 23))


@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        ("mp4", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("mkv", "ffv1"),
        ("mov", "mjpeg"),
    ],
)
def test_every_container(
    ending: str, codec: str, tmp_path: Path, carphone: list[np.ndarray]
) -> None:
    options = {} if codec in ("ffv1", "mjpeg") else {"g": "7"}
    frames = [pixels[40:88, 60:124] for pixels in carphone[:30]]
    # In Matroska, times are whole milliseconds: 0, 33, 67 ...
    path = write(tmp_path / f"clip.{ending}", frames, codec, rate=30, **options)
    assert check_video(str(path)) == Verdict(48, 64, None, 30)
    whole = decode(path)
    assert len(whole) == 30
    assert_straight(path, whole, range(0, 31, 4))


def test_a_seek_past_the_time_asked_for_starts_again(
    tmp_path: Path, carphone: list[np.ndarray]
) -> None:
    """MPEG transport streams have no index, and begin at another time than 0."""
    path = write(tmp_path / "clip.ts", [p[:48, :64] for p in carphone[:40]], "libx264")
    assert_straight(path, decode(path), range(0, 40, 7))


def test_only_what_follows_the_last_key_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    choose = frames._choose

    def counting(frames, *args, **keywords):
        return choose((decoded.append(f.pts) or f for f in frames), *args, **keywords)

    monkeypatch.setattr(frames, "_choose", counting)
    read_frames(BIKES, [200, 204])
    assert len(decoded) == 204 - 187 + 2  # the frame after tells that 204 is over
    assert decoded[0] == 187 * 512


def test_clips_of_uneven_videos_are_even_in_time(
    tmp_path: Path, carphone: list[np.ndarray]
) -> None:
    # Frames 0 to 9 at 25 a second, then one in 5/25 s: 20 frames in 60/25 s, so 8.33 a second.
    times = [*range(10), *range(14, 64, 5)]
    frames = [np.full((32, 32, 3), 12 * i, np.uint8) for i in range(20)]
    path = write(tmp_path / "uneven.mp4", frames, "libx264", times, crf="0")
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    assert check_video(str(path)).frames == 20
    shown = [int(got.mean() / 12 + 0.5) for got in read_frames(str(path), range(20))]
    seconds = [(n + 0.5) / rate for n in range(20)]
    assert shown == [sum(time / 25 < s for time in times) - 1 for s in seconds]
    assert shown[:4] != [0, 1, 2, 3]


def test_files_that_are_no_videos_are_explained(tmp_path: Path, carphone: list[np.ndarray]) -> None:
    bikes = Path(BIKES).read_bytes()
    bad = {
        "empty.mp4": (b"", "empty file"),
        "text.mp4": (b"not a video" * 100, "Invalid data found"),
        "no_index.mp4": (bikes[:250_000], "Invalid data found"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    index_first = write(
        tmp_path / "cut.mp4", carphone[:20], "libx264", layout={"movflags": "faststart"}
    )
    index_first.write_bytes(index_first.read_bytes()[:-500])
    write(tmp_path / "single.mp4", carphone[:1])
    with av.open(str(CLIPS / "bigbuckbunny.mp4")) as source:
        sound = source.streams.audio[0]
        with av.open(str(tmp_path / "sound.mp4"), "w") as target:
            copy = target.add_stream_from_template(sound)
            for packet in source.demux(sound):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
    reasons = {name: why for name, (_, why) in bad.items()}
    reasons |= {"cut.mp4": "truncated", "single.mp4": "1 frame", "sound.mp4": "no video in it"}
    for name, why in reasons.items():
        verdict = check_video(str(tmp_path / name))
        assert verdict.reason is not None, name
        assert why in verdict.reason, name
    for name in ("empty.mp4", "text.mp4", "sound.mp4", "absent.mp4"):
        with pytest.raises(BadVideoError):
            read_frames(str(tmp_path / name), [0])


def test_odd_files_neither_stop_nor_mislead(tmp_path: Path, carphone: list[np.ndarray]) -> None:
    whole = write(tmp_path / "a.avi", carphone[:40])
    title = tmp_path / "latin.avi"
    content = whole.read_bytes()
    assert b"Lavf" in content
    title.write_bytes(content.replace(b"Lavf", b"\xe9avf"))
    assert check_video(str(title)) == check_video(str(whole))
    assert np.array_equal(read_frames(str(title), [3])[0], read_frames(str(whole), [3])[0])
    # An AVI's index is at its end: what is there counts, not what the header promises.
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: len(content) * 7 // 10])
    verdict = check_video(str(cut))
    assert verdict.reason is None
    assert 10 < verdict.frames < 30
    unknown = write(tmp_path / "b.mkv", carphone[:3])
    assert b"V_MPEG4/ISO/ASP" in unknown.read_bytes()
    unknown.write_bytes(unknown.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_UNKNOWN/ONE/X"))
    assert check_video(str(unknown)).reason == "no decoder for its codec"
    with pytest.raises(BadVideoError, match="no decoder"):
        read_frames(str(unknown), [0])


def test_damage_shows_where_it_is(tmp_path: Path) -> None:
    content = bytearray(Path(BIKES).read_bytes())
    content[200_000:300_000] = bytes(100_000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    assert check_video(str(damaged)).reason is None
    assert len(read_frames(str(damaged), [3, 7])) == 2
    with pytest.raises(BadVideoError, match="Invalid data found"):
        read_frames(str(damaged), [100, 150])


def test_frames_asked_for_twice_are_one_array() -> None:
    last = read_frames(CARPHONE, [118, 119, 119, 500])
    assert last[1] is last[2] is last[3]
    assert last[0] is not last[1]


@given(
    frames=st.integers(2, 400),
    num_frames=st.integers(1, 32),
    rate=st.integers(1, 8),
    moment=st.floats(0, 1, exclude_max=True),
)
def test_clips_lie_within_their_videos(
    frames: int, num_frames: int, rate: int, moment: float
) -> None:
    view = View(num_frames=num_frames, sampling_rate=rate)
    numbers = clip_frames(frames, view, moment)
    assert numbers == list(range(numbers[0], numbers[0] + num_frames * rate, rate))
    span = (num_frames - 1) * rate + 1
    if frames >= span:
        assert numbers[-1] < frames
    else:
        assert numbers[0] == 0


def test_every_place_of_a_clip_is_reached() -> None:
    view = View(num_frames=4, sampling_rate=2)
    starts = [clip_frames(10, view, k / 40)[0] for k in range(40)]
    assert starts == sorted(starts)
    assert [starts.count(place) for place in range(5)] == [10, 10, 10, 10, 0]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="not a regular file"):
        videos.opened(av, str(tmp_path / "pipe.mp4"))
    with pytest.raises(BadVideoError, match="not a regular file"):
        read_frames(str(tmp_path / "pipe.mp4"), [0])
