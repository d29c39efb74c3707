"""Code that every kind of run shares: the loop, its state, its checkpoints and the files in its folder."""
