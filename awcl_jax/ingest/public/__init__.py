"""Public datasets in their publishers' layouts."""
