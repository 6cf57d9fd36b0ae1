"""Supervised fine-tuning on dialogues, with MuonClip and the codec's mask."""

from openk2.posttrain.sft.loop import sft

__all__ = ["sft"]
