"""The page of a run, or of two side by side: what is read from the folder, and how it is laid out."""
