"""A variant: one folder in Hugging Face layout holding weights, tokenizer, template and card.

`load` reads ours and any `deepseek_v3` folder that transformers saved;
`export_variant` writes what both read. Left out: the Hub; pass a local folder.
"""

from __future__ import annotations

from pathlib import Path

import torch

from openk2.chat.codec import Codec
from openk2.checkpoint.hf import export_hf, load_hf
from openk2.model.model import Model
from openk2.version import __version__

TOKENIZER_FILES = ("tokenizer.json", "tiktoken.model")
LICENSE_TEXT = """These weights were made with openk2 and are released by whoever made them under the MIT licence,
as openk2 itself is (https://opensource.org/license/mit). They were trained from a random start;
no released Kimi K2 weight is in them. The text they were trained on keeps its own licences,
listed in the run's data manifest.
"""


def load(folder: Path | str, *, dtype: torch.dtype | None = None) -> tuple[Model, Codec | None]:
    """Model and codec of a checkpoint folder; the codec is None where there is no tokenizer.

    `dtype` is that of weights and products (default: the stored one). Raises
    `ValueError` in one line for a folder that cannot be read.
    """
    folder = Path(folder)
    model = load_hf(folder, dtype=dtype).eval()
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return model, Codec.load(folder) if has_tokenizer else None


def export_variant(model: Model, codec: Codec, folder: Path, *, kind: str, made_by: str) -> Path:
    """Write `model` (in bf16) and `codec` to `folder`; `kind` is "base" or "instruct", `made_by` the command."""
    tokenizer = codec.tokenizer
    instruct = kind == "instruct"
    return export_hf(
        model,
        folder,
        dtype=torch.bfloat16,
        model_card=_card(model, kind, made_by),
        license_text=LICENSE_TEXT,
        generation_config={"do_sample": instruct, "max_length": model.config.max_position_embeddings}
        | ({"temperature": 0.6} if instruct else {}),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.im_end_id if instruct else tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        save_tokenizer=codec.save,
    )


def _card(model: Model, kind: str, made_by: str) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    use = (
        f"Talk to it with `openk2 chat {kind}`; its chat template and tool calls are Kimi K2's."
        if kind == "instruct"
        else "It continues text; it has not been taught to answer."
    )
    return (
        f"---\nlicense: mit\nlibrary_name: transformers\ntags: [openk2, deepseek_v3]\n---\n"
        f"# openk2 {kind}\n\nA small model of Kimi K2's architecture ({total:,} parameters: multi-head latent "
        f"attention, mixture of experts), made with openk2 {__version__} by\n\n    {made_by}\n\n{use}\n\n"
        "It is a demonstration of a training recipe and knows very little. Not affiliated with Moonshot AI.\n"
    )
