"""Configurations: the defaults plus a delta each, and variants by an argument (`configs/fine.py:VARIANT`)."""
