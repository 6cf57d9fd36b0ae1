"""Where each token stands: its document, its position, whether it counts.

Packed rows hold several documents; attention, rotary positions and the
balance loss all follow this one record, so that packed equals separate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Integer tensors [B, T]: `starts` is the first position of each token's document in its row,
    `positions` counts from it, `documents` numbers the documents of the batch from 0 (padding: -1)."""

    starts: Tensor
    positions: Tensor
    documents: Tensor
    num_documents: int

    @classmethod
    def whole_rows(cls, batch: int, length: int, device: torch.device | None = None) -> Layout:
        """Each row is one document."""
        positions = torch.arange(length, device=device).expand(batch, length)
        documents = torch.arange(batch, device=device)[:, None].expand(batch, length)
        return cls(torch.zeros_like(positions), positions, documents, batch)

    @classmethod
    def from_positions(cls, positions: Tensor, padding: Tensor | None = None) -> Layout:
        """From positions [B, T] that restart at 0 with each document; `padding` bool [B, T] marks unused places."""
        index = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        begins = positions == 0
        documents = begins.flatten().cumsum(0).view_as(positions) - 1
        num_documents = int(documents.max()) + 1
        if padding is not None:
            documents = documents.masked_fill(padding, -1)
        return cls(index - positions, positions, documents, num_documents)
