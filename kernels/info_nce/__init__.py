"""InfoNCE of queries among shared negatives, as in MoCo: sums whose gradients cannot wait.

It has no kernels of its own: ``op`` runs those of linear_cross_entropy or of similarity_softmax,
and ``pairs`` makes the rows and the logits of the positives.
"""
