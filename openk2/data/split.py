"""The split between training and validation, by a hash of each document's text.

Invariants: a document is wholly on one side; adding documents never moves one
from training to validation (at worst the held-out one of highest hash goes
back); file names and order do not matter. At most a tenth of a domain is held
out. The last held-out document is cut to make the byte count exact, and its
remainder belongs to neither side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from openk2.data.sources import Document

MAX_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    training: list[Document]
    validation: list[Document]
    unused_bytes: int  # of the last held-out document, beyond the cut


def order_key(text: str, purpose: str, seed: int) -> bytes:
    """A document's place in the order drawn for a purpose: depends on its text, not on its neighbours."""
    return hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode()).digest()


def num_bytes(text: str) -> int:
    return len(text.encode())


def clip_bytes(text: str, limit: int) -> str:
    """The longest beginning of `text` of at most `limit` bytes, whole characters only."""
    return text.encode()[:limit].decode(errors="ignore")


def split_domain(documents: Sequence[Document], val_bytes: int, seed: int) -> Split:
    """Hold out `val_bytes` of one domain (or a tenth of it, if that is less) as whole documents.

    A domain of one document has nothing to hold out: its validation is empty.
    """
    total = sum(num_bytes(document.text) for document in documents)
    wanted = min(val_bytes, int(total * MAX_HELD_OUT_SHARE)) if len(documents) > 1 else 0
    ordered = sorted(range(len(documents)), key=lambda i: order_key(documents[i].text, "validation", seed))
    held: dict[int, Document] = {}
    unused = 0
    for index in ordered:
        if wanted <= 0:
            break
        document = documents[index]
        text = clip_bytes(document.text, wanted)
        unused = num_bytes(document.text) - num_bytes(text)
        held[index] = Document(text, document.domain, document.source_id)
        wanted -= num_bytes(text) if not unused else wanted
    training = [document for index, document in enumerate(documents) if index not in held]
    return Split(training, [document for document in held.values() if document.text], unused)
