"""Measurements. Run on a quiet machine; quote ratios of one run rather than seconds of two."""
