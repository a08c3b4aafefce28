import pytest
import torch

from sslfast.data.order import EpochOrder


def ids(order, epoch=0):
    return order.epoch(epoch)[0]


def test_every_sample_once_an_epoch_in_a_new_order():
    order = EpochOrder(48, 8, seed=3)
    first, second = ids(order, 0), ids(order, 1)
    assert order.steps == 6
    for epoch in (first, second):
        assert epoch.flatten().sort().values.tolist() == list(range(48))
    assert not torch.equal(first, second)
    assert not torch.equal(first, ids(EpochOrder(48, 8, seed=4)))
    assert torch.equal(first, ids(EpochOrder(48, 8, seed=3)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_global_batch(world_size):
    alone = EpochOrder(50, 4 * world_size, seed=1)
    ranks = [
        EpochOrder(50, 4, rank=rank, world_size=world_size, seed=1) for rank in range(world_size)
    ]
    assert {rank.steps for rank in ranks} == {alone.steps}
    assert torch.equal(torch.cat([ids(rank, 5) for rank in ranks], 1), ids(alone, 5))


def test_file_order_keeps_the_last_partial_batch():
    order = EpochOrder(10, 4, shuffle=False)
    samples, places = order.epoch(0)
    planned = samples == places
    assert samples[planned].tolist() == list(range(10))
    assert planned.sum(1).tolist() == [4, 4, 2]
    assert torch.equal(samples, ids(order, 7))


def test_file_order_over_ranks_covers_all_once():
    # 9 samples, 2 ranks of 4: the second rank has nothing in the last step.
    seen = []
    for rank in range(2):
        samples, places = EpochOrder(9, 4, rank=rank, world_size=2, shuffle=False).epoch(0)
        seen += samples[samples == places].tolist()
    assert sorted(seen) == list(range(9))


def test_the_place_of_an_excluded_sample_is_filled_from_another_step():
    order = EpochOrder(24, 8, seed=0)
    before = ids(order, 2).flatten().tolist()
    order.exclude([before[5], before[6], before[23]])
    after, places = order.epoch(2)
    expected = list(before)
    expected[5], expected[6] = before[21], before[22]  # two steps on
    expected[23] = before[15]  # two steps on, around the end
    assert after.flatten().tolist() == expected
    assert places.flatten().tolist() == before


@pytest.mark.parametrize("bad", [1, 5, 30])
def test_no_batch_holds_a_sample_twice_while_most_are_good(bad):
    order = EpochOrder(640, 16, seed=1)
    order.exclude(torch.randperm(640)[:bad].tolist())
    for epoch in range(3):
        twice = [16 - len(batch.unique()) for batch in ids(order, epoch)]
        # Only where the filler of a place is itself excluded can two places get one filler.
        assert sum(twice) <= bad // 10


def test_refusals():
    with pytest.raises(ValueError, match=r"10 images, fewer than one global batch of 16 \(8 on"):
        EpochOrder(10, 8, world_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        EpochOrder(10, 0)
    with pytest.raises(ValueError, match="rank"):
        EpochOrder(10, 2, rank=2, world_size=2)
    order = EpochOrder(4, 2)
    order.exclude([0, 1, 2, 3])
    with pytest.raises(ValueError, match="no readable image"):
        order.epoch(0)
