"""The table of methods has a line for every method, with a configuration that there is."""

from pathlib import Path

import pytest

from benchmarks.harness import method_table
from sslfast import methods

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", methods.names())
def test_the_configuration_is_there(name: str) -> None:
    assert (ROOT / method_table.CONFIG.format(name)).is_file()


def test_every_method_has_one_line() -> None:
    lines = method_table.table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == methods.names()
    assert {line.count("|") for line in lines} == {6}
