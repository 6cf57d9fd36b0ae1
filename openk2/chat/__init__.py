"""Tokenizer, codec (messages <-> tokens) and tool-call grammar of Kimi K2: nowhere else."""

from openk2.chat.codec import Codec
from openk2.chat.parser import StreamParser
from openk2.chat.tokenizer import Tokenizer
from openk2.chat.validate import validate_chat

__all__ = ["Codec", "StreamParser", "Tokenizer", "validate_chat"]
