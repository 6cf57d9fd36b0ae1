"""Text <-> token ids in K2's vocabulary layout, trained here or read from a K2 checkpoint.

Invariants: `encode` gives control ids only when asked to (`allow_special`), so
text from users, tools or files cannot forge a turn; `decode(encode(text))` is
`text`; the same texts give the same vocabulary. Left out: normalisation (K2
has none), padding and truncation (the data pipeline's concern), and any chat
layout (see `codec`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from openk2.chat import vocabulary as vocab
from openk2.chat.bpe import Core, TiktokenCore, TrainedCore, check_layout, whole_characters
from openk2.chat.template import JINJA, TEMPLATE_FILE
from openk2.chat.vocabulary import NUM_BYTES, NUM_SPECIAL, Special, specials_at
from openk2.observe.files import write_atomic

TOKENIZER_FILE = "tokenizer.json"
TIKTOKEN_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"


class Tokenizer:
    """Byte-level BPE plus 256 control tokens; `vocab_size` is the number of embedding rows."""

    def __init__(self, core: Core, specials: Sequence[Special], config: dict[str, Any] | None = None) -> None:
        """`config` is a checkpoint's own `tokenizer_config.json`, written back by `save`."""
        check_layout(core, specials, "tokenizer")
        self._core = core
        self._specials = tuple(specials)
        self._config = config
        self.special: dict[str, int] = {special.name: special.id for special in specials}
        missing = sorted(set(vocab.SPECIAL_OFFSETS.values()) - set(self.special))
        if missing or len(self.special) != NUM_SPECIAL:
            raise ValueError(
                f"tokenizer: saw {len(self.special)} distinct control tokens, missing {missing}; "
                f"expected K2's {NUM_SPECIAL}; use a tokenizer that openk2 wrote, or K2's own"
            )
        self.num_ordinary = len(core.pieces)  # rows of text; the control tokens follow them
        self.vocab_size = self.num_ordinary + NUM_SPECIAL
        self.bos_id = self.special[vocab.BOS]
        self.eos_id = self.special[vocab.EOS]
        self.pad_id = self.special[vocab.PAD]
        self.im_end_id = self.special[vocab.IM_END]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of exactly `vocab_size` rows from `texts`.

        Where the text is too small to fill it, the rows left over are never
        produced; decoding one shows its name, `<|unused_token_N|>`.
        """
        if vocab_size < NUM_BYTES + NUM_SPECIAL:
            raise ValueError(
                f"vocab_size: saw {vocab_size}, expected at least {NUM_BYTES + NUM_SPECIAL} "
                f"({NUM_BYTES} bytes and {NUM_SPECIAL} control tokens); raise it"
            )
        num_ranks = vocab_size - NUM_SPECIAL
        return cls(TrainedCore.train(texts, num_ranks), specials_at(num_ranks))

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read a folder that `save` wrote, or K2's own (`tiktoken.model`, with `tokenizer_config.json`)."""
        folder = Path(folder)
        if (folder / TOKENIZER_FILE).is_file():
            return cls._load_trained(folder / TOKENIZER_FILE)
        if (folder / TIKTOKEN_FILE).is_file():
            return cls._load_tiktoken(folder)
        raise ValueError(
            f"{folder}: saw neither {TOKENIZER_FILE} nor {TIKTOKEN_FILE}, expected one of them; "
            "give the folder of a checkpoint that holds its tokenizer"
        )

    @classmethod
    def _load_trained(cls, path: Path) -> Tokenizer:
        content = _read_json(path)
        try:
            core = TrainedCore.from_json(content)
            added = [Special(str(t["content"]), int(t["id"]), bool(t["special"])) for t in content["added_tokens"]]
        except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot use
            raise ValueError(
                f"{path}: saw {_one_line(error)}, expected a byte-level BPE in K2's layout; "
                "use a tokenizer that openk2 wrote, or K2's own"
            ) from None
        specials = sorted(added, key=lambda special: special.id)
        check_layout(core, specials, str(path))
        return cls(core, specials)

    @classmethod
    def _load_tiktoken(cls, folder: Path) -> Tokenizer:
        core = TiktokenCore.from_file(folder / TIKTOKEN_FILE)
        first = len(core.pieces)
        if not (folder / CONFIG_FILE).is_file():
            return cls(core, specials_at(first))
        config = _read_json(folder / CONFIG_FILE)
        declared = config.get("added_tokens_decoder", {})
        try:
            names = {int(row): (str(t["content"]), bool(t.get("special", True))) for row, t in declared.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / CONFIG_FILE}: saw {_one_line(error)} in added_tokens_decoder, "
                "expected row -> {content, special}; fetch the file again"
            ) from None
        return cls(core, specials_at(first, names or None), config)

    def save(self, folder: Path | str, *, template: str = "revised") -> None:
        """Write the files that `load` and transformers' `AutoTokenizer` read, the chat template among them."""
        if template not in JINJA:
            raise ValueError(f"template: saw {template!r}, expected one of {', '.join(sorted(JINJA))}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self._core, TrainedCore):
            write_atomic(folder / TOKENIZER_FILE, self._core.to_json(self._specials))
        if isinstance(self._core, TiktokenCore):
            write_atomic(folder / TIKTOKEN_FILE, self._core.to_file())
        config = {key: value for key, value in self._hf_config().items() if key != "chat_template"}
        write_atomic(folder / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        write_atomic(folder / TEMPLATE_FILE, JINJA[template])

    def _hf_config(self) -> dict[str, Any]:
        if self._config is not None:
            return self._config
        named = [special for special in self._specials if not special.name.startswith("<|reserved_token_")]
        roles = {vocab.BOS, vocab.EOS, vocab.UNK, vocab.PAD}
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": vocab.BOS,
            "eos_token": vocab.EOS,
            "unk_token": vocab.UNK,
            "pad_token": vocab.PAD,
            "additional_special_tokens": [s.name for s in named if s.special and s.name not in roles],
            "added_tokens_decoder": {
                str(s.id): {"content": s.name, **flags, "special": s.special} for s in self._specials
            },
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
        }

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`; with `allow_special`, spelt-out control tokens become control ids.

        Never pass text that you did not write yourself with `allow_special`.
        """
        text = whole_characters(text)
        if not allow_special:
            return self._core.encode(text)
        ids: list[int] = []
        for part in self._special_pattern.split(text):
            ids.extend([self.special[part]] if part in self.special else self._core.encode(part))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, plain; in parallel where the back end can."""
        return self._core.encode_batch([whole_characters(text) for text in texts])

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD. `skip_special` hides control tokens except the tool markers."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int], skip_special: bool = False) -> bytes:
        """Bytes of `ids`, control tokens as their names."""
        return b"".join(self._shown(row) for row in ids if not (skip_special and row in self._skipped))

    def token_bytes(self, token_id: int) -> bytes:
        """The text bytes that this id stands for: none for a control token or an unused row."""
        return b"" if self.is_control(token_id) else self._shown(token_id)

    def is_control(self, token_id: int) -> bool:
        """True for the 256 control tokens and for rows that training left unused."""
        self._check(token_id)
        return token_id >= len(self._core.pieces) or self._core.pieces[token_id] is None

    def digest(self) -> str:
        """sha256 over the split rule, the merges, and each row's bytes and flags; the same for equal tokenizers."""
        state = hashlib.sha256(vocab.split_pattern().encode() + b"\0" + self._core.fingerprint + b"\0")
        for piece in self._core.pieces:
            state.update(b"-" if piece is None else b"%d:" % len(piece) + piece)
        for special in self._specials:
            state.update(f"\0{special.id} {special.name} {special.special}".encode())
        return state.hexdigest()

    def _shown(self, row: int) -> bytes:
        self._check(row)
        if row >= len(self._core.pieces):
            return self._specials[row - len(self._core.pieces)].name.encode()
        piece = self._core.pieces[row]
        return f"<|unused_token_{row}|>".encode() if piece is None else piece

    def _check(self, row: int) -> None:
        if not 0 <= row < self.vocab_size:
            raise ValueError(
                f"token id: saw {row}, expected 0 to {self.vocab_size - 1}; "
                "these ids come from another vocabulary, load the tokenizer they were made with"
            )

    @cached_property
    def _skipped(self) -> frozenset[int]:
        return frozenset(special.id for special in self._specials if special.special)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: saw {_one_line(error)}, expected a JSON object; write or fetch the file again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: saw a JSON {type(content).__name__}, expected an object; fetch the file again")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
