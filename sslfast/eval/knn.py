"""Weighted k-nearest-neighbour classification of frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import PositiveFloat, PositiveInt, checked
from sslfast.eval.features import Features, check_same_width, check_usable, labels_of

# Elements of the largest temporary, float32: 128 MiB.
_CHUNK_ELEMENTS = 1 << 25


@checked
def knn_accuracy(
    train: Features,
    test: Features,
    k: PositiveInt = 20,
    temperature: PositiveFloat = 0.07,
    *,
    device: torch.device | str = "cpu",
) -> float:
    """Top-1 accuracy, in [0, 1], of knn_predict() on labelled test features.

    Args:
        train: the labelled neighbours.
        test: the labelled samples to classify.
        k: neighbours that vote; more than there are train samples means all of them.
        temperature: tau of the votes.
        device: where to compute.

    Raises:
        ValueError: as knn_predict(), or the test set has no labels.
    """
    labels = labels_of(test, "test", "kNN accuracy")
    predictions = knn_predict(train, test, k, temperature, device=device)
    return float((predictions == labels).double().mean())


@checked
def knn_predict(
    train: Features,
    test: Features,
    k: PositiveInt = 20,
    temperature: PositiveFloat = 0.07,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Classify by a weighted vote of the k train samples with the largest cosine similarity.

    Sample x gives class c the score sum_{i in N_k(x), y_i = c} exp(cos(x, x_i) / tau)
    (Wu et al. 2018, arXiv:1805.01978, section 3.4). Classes with equal scores: the one with the
    nearer sample wins. The test samples go in chunks, so that similarities take 128 MiB (or one row
    of N) whatever the sizes.

    Args:
        train: the labelled neighbours, N samples.
        test: the samples to classify; labels are not looked at.
        k: neighbours that vote; more than N means all N.
        temperature: tau of the votes.
        device: where to compute.

    Returns:
        The predicted labels, int64 [len(test)], on the CPU.

    Raises:
        ValueError: k < 1, temperature <= 0, no train labels, or features that are empty, not
            finite, or of different widths.
    """
    train_labels = labels_of(train, "train", "kNN")
    check_usable(test.features, "test")
    check_same_width(train, test)
    k = min(k, len(train))

    bank = F.normalize(train.features.to(device), dim=1)
    classes, class_index = train_labels.to(device).unique(return_inverse=True)
    winners = []
    for chunk in test.features.split(max(1, _CHUNK_ELEMENTS // len(train))):
        nearest, index = (F.normalize(chunk.to(device), dim=1) @ bank.T).topk(k, dim=1)
        # Only ratios of votes count: relative to the nearest one, no temperature overflows.
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        winners.append(_most_votes(class_index[index], votes, len(classes)))
    return classes[torch.cat(winners)].cpu()


def _most_votes(voters: Tensor, votes: Tensor, num_classes: int) -> Tensor:
    """The class [B] with the largest sum of ``votes`` [B, k] from ``voters`` (class indices)."""
    scores = votes.new_zeros(len(votes), num_classes)
    # One neighbour a time: each addition has one writer a row, so the order of sums is fixed.
    for voter, vote in zip(voters.split(1, dim=1), votes.split(1, dim=1), strict=True):
        scores.scatter_(1, voter, scores.gather(1, voter) + vote)
    # Looked up in order of the neighbours, argmax gives ties to the nearest.
    best = scores.gather(1, voters).argmax(dim=1, keepdim=True)
    return voters.gather(1, best)[:, 0]
