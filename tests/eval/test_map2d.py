"""The map of the embeddings."""

import torch

from sslfast.eval import Features, embed_2d


def clusters(n_per_cluster, width=20):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, width, generator=generator)
    labels = torch.arange(3).repeat(n_per_cluster)
    noise = 0.1 * torch.randn(len(labels), width, generator=generator)
    return Features(centers[labels] + noise, labels, torch.arange(len(labels)))


def nearest_shares_label(points, labels):
    distance = torch.cdist(points, points).fill_diagonal_(float("inf"))
    return float((labels[distance.argmin(dim=1)] == labels).float().mean())


def test_clusters_stay_together_and_the_seed_fixes_the_map():
    features = clusters(50)
    points = embed_2d(features)
    assert points.shape == (150, 2)
    assert points.dtype == torch.float32
    assert nearest_shares_label(points, features.labels) > 0.95
    assert torch.equal(embed_2d(features), points)


def test_few_samples_get_their_principal_components():
    features = clusters(10, width=50)
    points = embed_2d(features).double()
    unit = torch.nn.functional.normalize(features.features.double(), dim=1)
    centered = unit - unit.mean(0)
    left, values, _ = torch.linalg.svd(centered, full_matrices=False)
    expected = left[:, :2] * values[:2]
    torch.testing.assert_close(points.abs(), expected.abs(), rtol=1e-5, atol=1e-6)
    assert nearest_shares_label(points, features.labels) > 0.95


def test_tall_and_wide_components_agree():
    features = clusters(10, width=29)
    narrow = embed_2d(features)
    padded = torch.nn.functional.pad(features.features, (0, 20))
    wide = embed_2d(Features(padded, None, features.sample_ids))
    torch.testing.assert_close(wide, narrow, rtol=1e-4, atol=1e-5)


def test_degenerate_sets_have_a_map():
    one = clusters(1).select(torch.tensor([0]))
    assert embed_2d(one).tolist() == [[0.0, 0.0]]
    two = embed_2d(clusters(1).select(torch.tensor([0, 1])))
    assert two.isfinite().all()
    assert float((two[0] - two[1]).norm()) > 0.1
    collapsed = Features(torch.ones(200, 8), None, torch.arange(200))
    assert torch.equal(embed_2d(collapsed), torch.zeros(200, 2))
