"""The command line, one file per group of commands. A face: it holds no logic of its own."""

from delfsearch.cli.app import main

__all__ = ["main"]
