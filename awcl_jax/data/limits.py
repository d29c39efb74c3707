"""Limits on what is read; without slow imports."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused: a file of a few bytes can claim to be as large as memory."""
