"""Kernels of sslfast: one folder an op, one file a backend (installed as ``sslfast.kernels``)."""
