import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslfast.cli import _print_table, _Printable, main
from sslfast.training.config import TrainConfig
from sslfast.training.report import Report, _page


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of two classes with a train and a test split, and a broken one."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 8)):
        for name, color in (("blue", [60, 90, 200]), ("red", [200, 90, 60])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(color, 40, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
    (root / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    return root


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, from the command line: a file of settings, and flags over it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(
        f"method: simclr\ndata: {images}\nrecipe: simclr_small\nimage_size: 16\n"
        "model_args: {width: 8, depth: 2}\nsteps: 6\nbatch_size: 12\nlr: 1e-2\nthreads: 1\n"
    )
    words = ["train", "--config", str(folder / "run.yaml"), "--out", str(folder / "x")]
    words += ["--batch-size", "16", "--log-every=2", "--method-args.temperature", "0.3"]
    assert main([*words, "--device", "cpu"]) == 0
    return folder / "x"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def test_train_takes_file_and_flags(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    for line in ("batch_size: 16", "lr: 0.01", "log_every: 2", "  temperature: 0.3", "steps: 6"):
        assert line in text.splitlines()
    assert (run / "encoder.safetensors").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_command_to_run_next_is_quoted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sslfast.training.train", lambda config: Path(config.out))
    with caplog.at_level("INFO", "sslfast"):
        assert main(["train", "--data", "x", "--out", "my runs/a & b"]) == 0
    assert "sslfast report --run 'my runs/a & b'" in caplog.text


@pytest.mark.parametrize(
    ("file", "flags", "epochs", "steps"),
    [
        ("epochs: 3", "--config {file} --steps 5", None, 5),
        ("epochs: 3", "--steps=5 --config {file}", None, 5),
        ("steps: 7", "--config {file} --epochs 2", 2, None),
        ("steps: 7", "--steps 2 --config {file}", None, 2),  # flags win wherever they stand
        ("steps: 7", "--steps 2 --config={file}", None, 2),
        ("{epochs: 3, steps: null}", "--config {file} --epochs null --steps 5", None, 5),
        ("{epochs: 3, steps: 7}", "--config {file} --steps null", 3, None),
        ("epochs: 3", "--config {file} --seed 1", 3, None),
    ],
)
def test_a_length_on_the_command_line_wins(
    file: str,
    flags: str,
    epochs: int | None,
    steps: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("sslfast.training.train", lambda c: seen.append(c) or Path(c.out))
    (tmp_path / "run.yaml").write_text(file)
    words = flags.format(file=tmp_path / "run.yaml").split()
    assert main(["train", "--data", "x", "--out", "y", *words]) == 0
    assert (seen[0].epochs, seen[0].steps) == (epochs, steps)


def test_a_written_config_runs_again(run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "y")]
    assert main(words) == 0
    first, second = (path / "encoder.safetensors" for path in (run, tmp_path / "y"))
    assert first.read_bytes() == second.read_bytes()


def test_eval_knn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn", "--run", str(run), "--k", "5", "--threads", "1"]) == 0
    found = json.loads((run / "eval_knn.json").read_text())
    assert found["k"] == 5
    assert (found["n_train"], found["n_test"]) == (60, 16)
    assert found["accuracy"] > 0.9  # blue or red
    assert f"{found['accuracy']:.4f}" in capsys.readouterr().out


def test_eval_linear(run: Path, images: Path) -> None:
    words = ["eval", "linear", "--run", str(run), "--data", str(images), "--threads", "1"]
    assert main([*words, "--labels-per-class", "10"]) == 0
    found = json.loads((run / "eval_linear.json").read_text())
    assert found["n_labels"] == 20
    assert found["accuracy"] > 0.9
    assert main([*words, "--label-fraction", "0.5"]) == 0
    assert json.loads((run / "eval_linear.json").read_text())["n_labels"] == 30


def test_eval_finetune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "finetune", "--run", str(run), "--labels-per-class", "3", "--threads", "1"]
    assert main([*words, "--steps", "2", "--batch-size=4", "--lr", "1e-4", "--from-scratch"]) == 0
    found = json.loads((run / "eval_finetune.json").read_text())
    assert (found["n_labels"], found["steps"], found["lr"]) == (6, 2, 1e-4)
    assert found["accuracy"] > 0.8
    printed = capsys.readouterr().out
    assert f"{found['accuracy']:.4f}" in printed
    assert "scratch_accuracy" in printed


def test_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(run), "--threads", "1"]) == 0
    found = json.loads((run / "report.json").read_text())
    names = [score["features"] for score in found["scores"]]
    assert names == ["random initialisation", "pre-trained", "raw pixels"]
    assert found["labels_per_class"] == 30  # as many as there are
    printed = capsys.readouterr().out
    for score in found["scores"]:
        assert re.search(
            rf"{score['features']}.*{score['knn']:.1%}.*{score['linear']:.1%}", printed
        )
    for name in ("loss.png", "views.png", "map.png"):
        with Image.open(run / name) as figure:
            assert min(figure.size) > 100
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "raw pixels" in page
    assert "http" not in page  # nothing is loaded from elsewhere


def test_report_without_labels(run: Path, tmp_path: Path, images: Path) -> None:
    words = ["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "y")]
    assert main([*words, "--data", str(images / "train" / "blue")]) == 0
    assert main(["report", "--run", str(tmp_path / "y"), "--threads", "1"]) == 0
    assert json.loads((tmp_path / "y" / "report.json").read_text())["scores"] == []
    assert (tmp_path / "y" / "report.html").is_file()


def test_embed(run: Path) -> None:
    assert main(["embed", "--run", str(run), "--split", "test", "--threads", "1"]) == 0
    with np.load(run / "features_test.npz") as found:
        assert found["features"].shape == (16, 16)
        assert found["features"].dtype == np.float32
        assert found["labels"].tolist() == [0] * 8 + [1] * 8
        assert found["classes"].tolist() == ["blue", "red"]
        assert found["paths"][0].endswith("test/blue/000.jpg")


def test_preview(images: Path, tmp_path: Path) -> None:
    png = tmp_path / "views.png"
    words = ["preview", "--data", str(images), "--recipe", "simclr_small", "--samples", "4"]
    assert main([*words, "--png", str(png)]) == 0
    with Image.open(png) as figure:
        assert min(figure.size) > 100


def test_old_names_are_told(
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once each, without a line of this package; under both names it is refused."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back
    warnings.simplefilter("ignore", DeprecationWarning)  # as Python starts
    words = ["preview", "--data", str(images), "--samples", "2", "--png", str(tmp_path / "a.png")]
    assert main([*words, "--image-size", "16", "--recipe-args.grey_prob", "0.5"]) == 0
    told = [r.getMessage() for r in caplog.records if "grey_prob" in r.getMessage()]
    assert told == ["grey_prob is now gray_prob; the old name works until sslfast 0.2"]
    both = [*words, "--recipe-args.grey_prob", "0.5", "--recipe-args.gray_prob", "0.1"]
    assert main(both) == 2
    assert "grey_prob is the old name of gray_prob: give one of them" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for expected in ("similarity_softmax", "reference", "torch", "DALI", "cores", "GPU", "simclr"):
        assert expected in printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("trian", 2, "unknown command 'trian'. Did you mean 'train'?"),
        ("train --batchsize 3", 2, "unknown option --batchsize of 'sslfast train'. Did you mean "),
        ("train --method-arg.x 3", 2, "Did you mean '--method_args'?"),
        ("train --batch-size 3.5", 2, "batch_size must be an integer, got 3.5"),
        ("train --epochs x", 2, "epochs must be an integer, or null, got x"),
        ("train --lr x", 2, "lr must be a number, got x"),
        ("train --precision fp8", 2, "precision must be one of 'fp32', 'bf16', 'fp16', got fp8"),
        ("train --lr", 2, "--lr"),
        ("train --steps 3", 2, "'data' is missing"),
        ("train --data x --out {tmp}/y", 2, "exactly one of epochs and steps: neither is given"),
        ("train --data x --out {tmp}/y --epochs 1 --steps 1", 2, "and steps: both are given"),
        ("train --config {tmp}/none.yaml", 2, "cannot read the configuration"),
        ("train --config {tmp}/typo.yaml", 2, "unknown setting 'epoch' in {tmp}/typo.yaml. Did"),
        ("train --config={tmp}/newer.yaml", 2, "was written by a newer one"),
        ("train --data {tmp}/none --out {tmp}/y --steps 1", 1, "no such folder"),
        ("train --data {tmp} --out {tmp}/y --steps 1", 1, "no images in"),
        ("train --data x --out {tmp}/y --steps 1 --method simcrl", 2, "Did you mean 'simclr'?"),
        ("train --config /dev/zero", 2, "it is no ordinary file"),
        ("train --data x --out {tmp}/y --steps 0", 2, "steps must be at least 1, or null, got 0"),
        ("train --data x --out {tmp}/y --steps 1 --seed -1", 2, "seed must be at least 0, got -1"),
        ("preview --data x --samples 0", 2, "samples must be at least 1, or None, got 0"),
        ("preview --data x --threads -1", 2, "threads must be at least 1, or null, got -1"),
        ("tokenizer fit --data x --out y.safetensors --vocab-size 0", 2, "vocab_size must be at l"),
        ("eval knn --run x --threads 0", 2, "threads must be at least 1, or None, got 0"),
        ("eval knm --run x", 2, "protocol"),
        ("eval finetune --run x --steps 3 --epochs 2", 2, "steps and epochs are both given"),
        ("eval finetune --run x --lr 0", 2, "lr must be more than 0"),
        ("eval knn --run {tmp}", 1, "holds no finished run"),
        ("report", 2, "run"),
        ("train --data x --out {tmp}/y --steps 1 --model vit_micro --method beit", 2, "make one w"),
        ("tokenizer make --data x --out y", 2, "action"),
        ("tokenizer fit --data {tmp}", 2, "out"),
        ("tokenizer fit --data {tmp} --out {tmp}/t.safetensors", 1, "no images in {tmp}"),
        ("tokenizer fit --data x --out t4.txt", 2, "a .safetensors file, got 't4.txt'"),
        (
            "tokenizer fit --data x --out y.safetensors --image-size 50",
            1,
            "choose an image_size that patch_",
        ),
        (
            "tokenizer fit --data x --out y --images 0",
            2,
            "images must be at least 1, or null, got 0",
        ),
        ("tokenizer fit --data x --out y --vocab 50", 2, "Did you mean '--vocab_size'?"),
        (
            "tokenizer fit --data x --out y.safetensors --run {tmp}",
            1,
            "there is no encoder at {tmp}",
        ),
    ],
)
def test_errors_are_one_line(
    words: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "typo.yaml").write_text("epoch: 3\n")
    (tmp_path / "newer.yaml").write_text("schema_version: 7\nwarp: 1\n")
    assert main(words.format(tmp=tmp_path).split()) == code
    printed = capsys.readouterr().err
    assert printed.startswith("sslfast: ")
    assert printed.count("\n") == 1
    assert message.format(tmp=tmp_path) in printed


def test_names_cannot_write_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{tmp_path}/\x1b[31m\x07\udcff"  # red, a bell, a byte that is no UTF-8
    assert main(["train", "--data", name, "--out", str(tmp_path / "y"), "--steps", "1"]) == 1
    assert rf"no such folder: {tmp_path}/\x1b[31m\x07\udcff." in capsys.readouterr().err
    record = logging.LogRecord("", 0, "", 0, "%s", (name,), None)
    assert _Printable("%(message)s").format(record) == rf"{tmp_path}/\x1b[31m\x07\udcff"


def test_a_page_takes_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = "photos\udcff\x1b[31m"
    page = _page(Report(name, [], 1, 1, []), {"method": "simclr", "data": name}, tmp_path)
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert r"<h1>simclr on photos\udcff\x1b[31m</h1>" in page


def test_names_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table("eval of [red]x[/nothing]", ["", ""], [["the data was", "[bold]photos"]])
    printed = capsys.readouterr().out
    assert "eval of [red]x[/nothing]" in printed
    assert "[bold]photos" in printed


def test_a_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLFAST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["trian"])


def sslfast(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sslfast.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_help_answers_without_importing_torch() -> None:
    script = "import sys, sslfast.cli; sslfast.cli._parsers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    done = sslfast("--help")
    assert done.returncode == 0
    for command in ("train", "eval", "report", "embed", "preview", "tokenizer", "doctor"):
        assert re.search(rf"^ +{command} ", done.stdout, re.M)


FULL = """
import resource, sys
from sslfast.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_too(run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "y")]
    done = subprocess.run([sys.executable, "-c", FULL, *words], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sslfast: ")
    assert "Make room" in last
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "y" / "checkpoints").iterdir())
    assert main(words) == 0  # the same command goes on once there is room
    assert (tmp_path / "y" / "encoder.safetensors").is_file()


def test_a_rank_other_than_the_first_tells_of_bad_files_and_of_nothing_else():
    code = (
        "import logging; from sslfast import cli; cli._set_up_logging()\n"
        "logging.getLogger('sslfast').warning('every rank knows')\n"
        "logging.getLogger('sslfast.data.steps').warning('a bad file')"
    )
    ranked = {**os.environ, "RANK": "3"}
    line = [sys.executable, "-c", code]
    result = subprocess.run(line, env=ranked, capture_output=True, text=True, check=True)
    assert result.stderr == "rank 3: a bad file\n"
