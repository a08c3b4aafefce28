"""The version of the ops' schemas, which is part of their names.

torch.compile keeps compiled graphs on disk, and finds them by the names of the ops that are called.
Under the same name a graph of an earlier schema would be found too, and fail, or worse.
"""

# Raise it, as tests/test_op_schemas.py says, whenever the arguments or results of an op change:
# their types, or what they mean.
VERSION = 2
NAMESPACE = f"sslfast_{VERSION}"
