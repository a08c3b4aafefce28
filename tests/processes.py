"""Runs a function in several processes that form one gloo group."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank: int, size: int, port: int, function: Callable[..., None], args: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        function(rank, size, *args)
        # gloo aborts now and then where one process leaves while another still talks to it.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(size: int, function: Callable[..., None], *args: Any) -> None:
    """Call function(rank, size, *args) in ``size`` processes; an exception in one is raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (size, port, function, args), nprocs=size)
