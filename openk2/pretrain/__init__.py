"""Pre-training on text with MuonClip."""

from openk2.pretrain.loop import pretrain

__all__ = ["pretrain"]
