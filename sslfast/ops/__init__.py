"""torch.library ops: schema, fake implementation and autograd; backends come from the registry."""

from sslfast.ops.info_nce import weighted_info_nce
from sslfast.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from sslfast.ops.philox import random_bits
from sslfast.ops.sigmoid_contrast import sigmoid_contrast, weighted_sigmoid_contrast
from sslfast.ops.similarity_softmax import similarity_softmax

__all__ = [
    "linear_cross_entropy",
    "random_bits",
    "sigmoid_contrast",
    "similarity_softmax",
    "weighted_info_nce",
    "weighted_linear_cross_entropy",
    "weighted_sigmoid_contrast",
]
