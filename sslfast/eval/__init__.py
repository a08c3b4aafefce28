"""Evaluation of frozen encoders: features, kNN, linear probe, a map of the embeddings, plots."""

from sslfast.eval.features import Features, extract, raw_pixels
from sslfast.eval.health import feature_health
from sslfast.eval.knn import knn_accuracy, knn_predict
from sslfast.eval.linear import ProbeResult, linear_probe
from sslfast.eval.map2d import embed_2d
from sslfast.eval.preprocess import Preprocess
from sslfast.eval.protocols import evaluate, features_of, score

__all__ = [
    "Features",
    "Preprocess",
    "ProbeResult",
    "embed_2d",
    "evaluate",
    "extract",
    "feature_health",
    "features_of",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "raw_pixels",
    "score",
]
