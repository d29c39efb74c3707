"""Exports an encoder as files for other programs."""
