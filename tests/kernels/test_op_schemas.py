"""Ops carry the version of their schemas in their names: no compiled graph on disk is stale.

After a change of a schema: raise VERSION in kernels/library.py (once between two releases is
enough for users, once between two commits for those who work on both), then
python tests/kernels/test_op_schemas.py > tests/op_schemas.txt
"""

from pathlib import Path

import torch

from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE

SNAPSHOT = Path(__file__).parents[1] / "op_schemas.txt"


def schemas(namespace: str) -> list[str]:
    registry.load()
    found = (str(schema) for schema in torch._C._jit_get_all_schemas())
    return sorted(schema for schema in found if schema.startswith(f"{namespace}::"))


def test_a_changed_schema_has_another_version() -> None:
    assert schemas(NAMESPACE) == SNAPSHOT.read_text().splitlines()


def test_no_op_goes_without_a_version() -> None:
    assert schemas("sslfast") == []


if __name__ == "__main__":
    print("\n".join(schemas(NAMESPACE)))
