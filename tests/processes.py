"""Runs a function in several processes that form one gloo group."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank: int, size: int, port: int, function: Callable[..., None], args: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    function(rank, size, *args)
    dist.barrier()
    # Not by way of gloo's destructors, which now and then abort the process ("terminate called
    # without an active exception").
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def run(size: int, function: Callable[..., None], *args: Any) -> None:
    """Call function(rank, size, *args) in ``size`` processes; an exception in one is raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked from one process that has imported what takes seconds, and has run nothing.
    multiprocessing.set_forkserver_preload(["sslfast.losses", "torch._dynamo"])
    mp.start_processes(
        _worker, (size, port, function, args), nprocs=size, start_method="forkserver"
    )
