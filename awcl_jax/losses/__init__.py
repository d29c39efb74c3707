"""The anatomy-aware contrastive loss."""

from awcl_jax.losses.awcl import LossOptions, awcl_loss, groups_from_label_sets, groups_from_labels

__all__ = ["LossOptions", "awcl_loss", "groups_from_label_sets", "groups_from_labels"]
