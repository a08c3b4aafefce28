"""Evaluation of encoders: features, kNN, linear probe, fine-tuning, a map of embeddings, plots."""

from sslfast.eval.features import Features, extract, features_of, raw_pixels
from sslfast.eval.finetune import FineTuneResult, FineTuning, fine_tune
from sslfast.eval.health import feature_health
from sslfast.eval.knn import knn_accuracy, knn_predict
from sslfast.eval.linear import ProbeResult, linear_probe
from sslfast.eval.map2d import embed_2d
from sslfast.eval.preprocess import Preprocess
from sslfast.eval.protocols import evaluate, score

__all__ = [
    "Features",
    "FineTuneResult",
    "FineTuning",
    "Preprocess",
    "ProbeResult",
    "embed_2d",
    "evaluate",
    "extract",
    "feature_health",
    "features_of",
    "fine_tune",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "raw_pixels",
    "score",
]
