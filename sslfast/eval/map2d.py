"""A map of the embeddings in the plane."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import PositiveFloat, Range, checked
from sslfast._extras import require
from sslfast.eval.features import Features, check_usable

# Below this, t-SNE's neighbourhoods (three perplexities wide) would be the whole set.
_FEWEST_FOR_TSNE = 100
_PCA_DIMENSIONS = 50


@checked
def embed_2d(
    features: Features,
    *,
    perplexity: PositiveFloat = 30.0,
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
) -> Tensor:
    """Place every sample in the plane, near the samples with similar features.

    Features are scaled to unit length, since the evaluations compare them by cosine, and reduced to
    at most 50 principal components; then t-SNE (van der Maaten and Hinton 2008) starts from the
    first two. Fewer than 100 samples get those two components themselves. If all features are
    equal, all points are the origin. The map depends on the seed and not on the number of threads.
    Time grows as N log N, seconds for 1,000 samples: take ``features.select(...)`` of a large set.

    Args:
        features: N samples; labels are not looked at.
        perplexity: t-SNE's number of effective neighbours; at most N / 3 is used.
        seed: of t-SNE.

    Returns:
        float32 [N, 2]; the axes have no unit.

    Raises:
        ValueError: features that are empty or not finite.
        MissingExtra: scikit-learn is not installed.
    """
    check_usable(features.features, "embedded")
    unit = F.normalize(features.features.double(), dim=1)
    centered = unit - unit.mean(dim=0)
    if float(centered.abs().max()) < 1e-7:
        return torch.zeros(len(features), 2)
    components = _principal_components(centered, _PCA_DIMENSIONS)
    if len(features) < _FEWEST_FOR_TSNE:
        return components[:, :2].float()
    manifold = require("sklearn.manifold", extra="train", purpose="the map of the embeddings")
    threads = require("threadpoolctl", extra="train", purpose="the map of the embeddings")
    tsne = manifold.TSNE(
        perplexity=min(perplexity, len(features) / 3), init="pca", random_state=seed
    )
    # Its parallel sums depend on the number of threads, and its small steps gain little from them.
    with threads.threadpool_limits(1):
        return torch.from_numpy(tsne.fit_transform(components.numpy())).float()


def _principal_components(centered: Tensor, count: int) -> Tensor:
    """Scores [N, count or fewer], the largest component first; padded with 0 to two columns."""
    wide = centered.shape[0] < centered.shape[1]
    squares, vectors = torch.linalg.eigh(centered @ centered.T if wide else centered.T @ centered)
    squares, vectors = squares.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]
    # Eigenvectors have no sign of their own: let the largest score of each be positive.
    scores = vectors * squares.sqrt() if wide else centered @ vectors
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    scores = torch.where(largest < 0, -scores, scores)
    return F.pad(scores, (0, max(0, 2 - scores.shape[1])))
