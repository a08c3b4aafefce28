"""A training loop of one's own: a loss, an EMA teacher and DDP, on patches of ten photographs.

    python examples/own_loop.py
    torchrun --nproc-per-node 2 examples/own_loop.py

As in MoCo and BYOL, a student sees one view of each image, and learns what its moving average, the
teacher, makes of the other view. The photographs are in packages of ``sslfast[train,dali]``.
"""

import argparse
import itertools
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslfast import EMATeacher
from sslfast.data import make_loader, open_dataset, recipe
from sslfast.losses import NTXentLoss
from sslfast.models import ProjectionHead, convnet_small
from sslfast.optim import AdamW, param_groups


def main() -> None:
    """Train an encoder and save its weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:photos", help="this, or a folder of images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64, help="images a step on each rank")
    parser.add_argument("--out", default="encoder.pt", help="the encoder's weights")
    options = parser.parse_args()

    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if ranks > 1:  # under torchrun
        dist.init_process_group()  # gloo on CPUs, NCCL on GPUs

    loader = make_loader(
        open_dataset(options.data),
        recipe("simclr_small"),  # two views [B, 3, 32, 32] of each image
        batch_size=options.batch_size,
        rank=rank,
        world_size=ranks,
        device=device,
    )

    torch.manual_seed(0)  # the same weights on every rank
    encoder = convnet_small()
    student = nn.Sequential(encoder, ProjectionHead(encoder.num_features, [128], 64)).to(device)
    teacher = EMATeacher(student, momentum=0.99)
    teacher.train()  # batch norm by its own batches, as in both papers
    # AdamW moves the teacher too, in the same pass over the parameters.
    optimizer = AdamW(param_groups(student), lr=2e-3, weight_decay=1e-4, ema=teacher)
    model = DistributedDataParallel(student) if ranks > 1 else student
    criterion = NTXentLoss(temperature=0.2, gather_distributed=True)  # the batches of all ranks

    batches = (batch for _ in itertools.count() for batch in loader)  # epoch after epoch
    for step, batch in enumerate(itertools.islice(batches, options.steps), start=1):
        first, second = batch.views
        loss = criterion(model(first), teacher(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step % 10 == 0 or step == options.steps):
            print(f"step {step}  loss {loss.item():.3f}", flush=True)

    if rank == 0:
        torch.save(encoder.state_dict(), options.out)
    if ranks > 1:
        time.sleep(0.2)  # gloo, ended right after its last work, may wait for itself for ever
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
