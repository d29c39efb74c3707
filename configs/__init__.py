"""Configurations: the defaults plus a few changes each, and variants by an argument (`configs/fine.py:VARIANT`)."""
