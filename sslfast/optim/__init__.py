"""Optimisers of our own go here; the trainer uses those of torch until there is one."""
