"""torch.library ops: schema, fake implementation and autograd; backends come from the registry."""

from sslfast.ops.ema import ema_update_
from sslfast.ops.philox import random_bits
from sslfast.ops.similarity_softmax import similarity_softmax

__all__ = ["ema_update_", "random_bits", "similarity_softmax"]
