"""An encoder as files that other programs read."""
