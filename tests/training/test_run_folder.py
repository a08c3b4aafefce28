import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toys import ToyLoader, entries, toy_config, toy_fit, toy_method

from sslfast.training import checkpoint, storage
from sslfast.training.checkpoint import CheckpointError
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.run_folder import RunFolder, RunFolderError
from sslfast.training.run_log import RunLog, read_metrics

HOLDER = """
import sys
from sslfast.training.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(RunFolderError, match=r"another process is training in .*another --out"),
            RunFolder(out).locked(),
        ):
            pass
        holder.kill()
        holder.wait()
    with RunFolder(out).locked():  # a killed process holds nothing
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for out in (path, path / "below"):
        with pytest.raises(RunFolderError, match="is not a folder"), RunFolder(out).locked():
            pass


def trained(out: Path, **changes: Any) -> RunFolder:
    return toy_fit(toy_config(out, **changes), toy_method(), ToyLoader())


def resume(out: Path, **changes: Any) -> dict[str, Any] | None:
    config = toy_config(out, **changes)
    run = RunFolder(out)
    with run.locked():
        return run.resume_state(config, ToyLoader().manifest)


def test_an_empty_folder_starts_anew(tmp_path: Path) -> None:
    assert resume(tmp_path / "run") is None
    assert resume(tmp_path / "run", resume="never") is None


KILLED = """
import os, runpy, sys
from pathlib import Path
write = runpy.run_path(sys.argv[1])["write_atomically"]
write(Path(sys.argv[2]), lambda file: os.kill(os.getpid(), 9))
"""


@pytest.mark.parametrize("file", ["config.yaml", "checkpoints/step_00000004.pt", "files/tokenizer"])
def test_what_a_kill_leaves_half_written_is_removed(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, storage.__file__, str(path)])
    assert killed.returncode == -9
    if path.parent != tmp_path:  # whose first file is config.yaml
        (tmp_path / "config.yaml").touch()
        (path.parent / ".mine.tmp").touch()
    [half] = path.parent.glob(".*-tmp")
    assert resume(tmp_path) is None
    assert not half.exists()
    if path.parent != tmp_path:
        assert [other.name for other in path.parent.iterdir()] == [".mine.tmp"]


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not of a run"):
        resume(tmp_path)


def test_never_refuses_a_run(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(RunFolderError, match="is not empty, and resume is 'never'"):
        resume(tmp_path, resume="never")


def test_auto_goes_on_with_the_newest(tmp_path: Path) -> None:
    trained(tmp_path)
    state = resume(tmp_path)
    assert state is not None
    assert state["step"] == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "resnet18"}, "model was 'convnet_small', now 'resnet18'"),
        ({"batch_size": 16}, "batch_size was 8, now 16"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"method_args": {"dropout": 0.1}}, "method_args was {}, now"),
    ],
)
def test_other_settings_do_not_continue_a_run(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    trained(tmp_path)
    with pytest.raises(ConfigError, match=named):
        resume(tmp_path, **changes)


def test_before_the_first_checkpoint_all_settings_may_change(tmp_path: Path) -> None:
    run = trained(tmp_path)
    for path in checkpoint.listed(run.checkpoints):
        path.unlink()
    assert resume(tmp_path, seed=3) is None
    trained(tmp_path, seed=3)
    assert [entry["step"] for entry in entries(run)] == [3, 6, 9, 12]
    assert TrainConfig.read(run.config).seed == 3


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    trained(tmp_path)
    config = toy_config(tmp_path, steps=20, lr=0.02)
    run = toy_fit(config, toy_method(), ToyLoader(), resume(tmp_path, steps=20, lr=0.02))
    assert entries(run)[-1]["step"] == 20
    assert TrainConfig.read(run.config).steps == 20


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run = trained(tmp_path)
    before = run.metrics.read_text(), run.config.read_text()
    method = toy_method()
    toy_fit(toy_config(tmp_path), method, ToyLoader(), resume(tmp_path))
    assert method.calls == 0
    assert (run.metrics.read_text(), run.config.read_text()) == before


def test_an_explicit_checkpoint_branches_into_a_new_folder(tmp_path: Path) -> None:
    run = trained(tmp_path / "a")
    first = checkpoint.listed(run.checkpoints)[0]
    state = resume(tmp_path / "b", resume=str(first))
    assert state is not None
    assert state["step"] == 4
    newest = resume(tmp_path / "c", resume=str(run.path))
    assert newest is not None
    assert newest["step"] == 12
    with pytest.raises(RunFolderError, match=r"later checkpoints .*step_00000012.pt.*--out"):
        resume(tmp_path / "a", resume=str(first))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        resume(tmp_path / "d", resume=str(tmp_path / "nothing.pt"))


def test_damaged_lines_of_the_metrics_are_named_and_cost_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path)
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    spoilt = [
        b"[" * 100_000,
        b"\xff" + lines[0][1:],
        b"[1]",
        b"3",
        b'{"loss": 1}',
        b'{"step": "3"}',
    ]
    cut = b'{"step": 15, "loss": 0.'
    run.metrics.write_bytes(
        b"".join([*lines[:2], *(s.strip() + b"\n" for s in spoilt), *lines[2:]]) + cut
    )

    state = resume(tmp_path, steps=15)
    with monkeypatch.context() as killed:  # before the cleaned file took the place of the old one
        killed.setattr("os.replace", power_cut)
        before = run.metrics.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            RunLog(run.metrics, 12, 15, 4)
        assert run.metrics.read_bytes() == before
    caplog.clear()
    toy_fit(toy_config(tmp_path, steps=15), toy_method(), ToyLoader(), state)
    assert f"{run.metrics}: 7 of its lines cannot be read" in caplog.text
    assert "left out: 3, 4, 5, 6, 7, 8, 11" in caplog.text
    assert run.metrics.read_bytes().splitlines(keepends=True)[:4] == lines
    assert [entry["step"] for entry in read_metrics(run.metrics)] == [3, 6, 9, 12, 15]


def power_cut(*paths: Any) -> None:
    raise KeyboardInterrupt


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    run = trained(tmp_path, steps=12)
    whole = entries(run)
    with open(run.metrics, "a") as file:
        file.write('{"step": 15, "loss": 0.')
    toy_fit(toy_config(tmp_path, steps=15), toy_method(), ToyLoader(), resume(tmp_path, steps=15))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15]
    assert entries(run)[:4] == whole


def test_other_data_does_not_continue_a_run(tmp_path: Path) -> None:
    trained(tmp_path)
    config, larger = toy_config(tmp_path, steps=20), ToyLoader(num_samples=40)
    with pytest.raises(CheckpointError, match=r"had 32 samples .* has 40 now"):
        toy_fit(config, toy_method(), larger, resume(tmp_path, steps=20))
