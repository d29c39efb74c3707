"""Evaluation: encoding, nearest neighbours, linear probe, overlap of masks, and the tables of scores."""
