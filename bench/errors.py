"""What stops a benchmark: something the person at the keyboard can mend, or a figure that would not be true."""

from __future__ import annotations


class BenchError(Exception):
    """One message that names the thing and the mend; no figures are printed."""
