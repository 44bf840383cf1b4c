"""The command line, and the local stack that `modelplane up` runs."""

from importlib.metadata import version

__version__ = version("modelplane")
