"""Old names of public keywords still work for one version, and say what they are called now."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from toys import ToyLoader, toy_config, toy_fit, toy_method

from sslfast._renamed import OldName
from sslfast.data import View, recipe
from sslfast.eval import ProbeResult
from sslfast.training import TrainConfig, checkpoint
from sslfast.training.run_folder import RunFolder


def test_views_are_made_and_changed_with_old_names() -> None:
    wanted = View(gray_prob=0.2, solarize_prob=0.1)
    with pytest.warns(OldName) as told:
        assert View(grey_prob=0.2, solarise_prob=0.1) == wanted
    assert {str(warning.message).partition(";")[0] for warning in told} == {
        "grey_prob is now gray_prob",
        "solarise_prob is now solarize_prob",
    }
    assert {warning.filename for warning in told} == {__file__}
    with pytest.warns(OldName, match="grey_prob is now gray_prob"):
        assert replace(View(gray_prob=0.9), grey_prob=0.2) == View(gray_prob=0.2)
    with pytest.warns(OldName) as told:
        assert wanted.solarise_prob == 0.1
    assert told[0].filename == __file__
    with pytest.warns(OldName, match="recolours is now recolors"):
        assert wanted.recolours


def test_recipes_are_changed_with_old_names() -> None:
    with pytest.warns(OldName, match="grey_prob is now gray_prob") as told:
        found = recipe("simclr", grey_prob=0.0)
    assert found == recipe("simclr", gray_prob=0.0)
    assert told[0].filename == __file__
    with pytest.raises(ValueError, match="no field 'gre_prob'"):
        recipe("simclr", gre_prob=0.0)


def test_results_of_a_probe_have_their_old_names() -> None:
    result = ProbeResult(1.0, 1.0, None, regularization=0.5, n_labels=2, n_classes=2, n_test=2)
    with pytest.warns(OldName, match="regularisation is now regularization"):
        assert result.regularisation == 0.5
    with pytest.warns(OldName):
        assert replace(result, regularisation=0.5) == result


def test_the_file_of_an_old_run_is_read(tmp_path: Path) -> None:
    new = TrainConfig(data="x", out="y", epochs=1, recipe_args={"gray_prob": 0.0, "flip": 0.5})
    path = tmp_path / "config.yaml"
    new.write(path)
    path.write_text(path.read_text().replace("gray_prob", "grey_prob"))
    with pytest.warns(OldName, match="grey_prob"):
        assert TrainConfig.read(path) == new


@pytest.mark.parametrize("name", ["grey_prob", "gray_prob"])
def test_an_old_run_goes_on(tmp_path: Path, name: str) -> None:
    config = toy_config(tmp_path, recipe_args={"gray_prob": 0.0})
    toy_fit(config, toy_method(), ToyLoader())
    run = RunFolder(tmp_path)
    last = run.last_good()
    assert last is not None
    state = checkpoint.load(last)
    state["config"]["recipe_args"] = {"grey_prob": 0.0}  # as an earlier sslfast wrote it
    checkpoint.save(run.checkpoints, state["step"], state, keep=1)
    with warnings.catch_warnings(record=True), run.locked():
        warnings.simplefilter("always")
        again = toy_config(tmp_path, recipe_args={name: 0.0})
        found = run.resume_state(again, ToyLoader().manifest)
    assert found is not None
    assert found["step"] == state["step"]
