"""Self-supervised methods, one file each: a new file in this folder is found with no other edit."""

from sslfast.methods.registry import create, get, names, register

__all__ = ["create", "get", "names", "register"]
