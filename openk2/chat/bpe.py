"""The two byte-level BPE back ends: one we train (`tokenizers`), K2's own ranks (`tiktoken`).

Invariants: a core knows nothing of control tokens, so whatever text it is
given can only become ordinary rows; `pieces[id]` is the bytes of an ordinary
row, or None for a row that training left unused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_letters
from typing import Any, Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from openk2.chat.vocabulary import NUM_BYTES, NUM_SPECIAL, Special, byte_of_char, split_pattern

# Limits of K2's own encoder, kept so that ids agree on very long input: text is cut every
# 400,000 characters, and wherever a run of (non-)whitespace exceeds 25,000.
MAX_PIECE_CHARS = 400_000
MAX_RUN_CHARS = 25_000

# A vocabulary of so many ordinary rows spends 1,100 of them on the numbers of two and three digits.
NUMBERS_FROM_RANKS = 4_096

# Of the rows that are learnt, the share that are a frequent word with the character before it.
LEAD_SHARE = 1 / 3


class Core(Protocol):
    """Plain text <-> ordinary rows."""

    @property
    def pieces(self) -> Sequence[bytes | None]: ...

    @property
    def fingerprint(self) -> bytes: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


class TrainedCore:
    """BPE of the `tokenizers` library in K2's layout, as `tokenizer.json` holds it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._json = tokenizer.to_str()
        model = json.loads(self._json)["model"]
        self.pieces = _pieces_of(model)
        self.fingerprint = json.dumps(model["merges"], ensure_ascii=False).encode()

    @classmethod
    def train(cls, texts: Iterable[str], num_ranks: int) -> TrainedCore:
        """Learn merges for at most `num_ranks - 256` rows; rows without a merge are named and never produced.

        Words are learnt bare, though K2's split leaves them the character before them; the last merges then put that
        character to the most frequent ones (`_lead_merges`). So a rare word has the same pieces after a space, a
        bracket or a quote, which is what copying it from one place to the other needs.

        Digits are split one by one while learning, and by K2's 1-3 when encoding. A vocabulary with room for it is
        then given a row for every run of two or three digits, as K2's has; in a smaller one a number is its digits.
        """
        texts = [whole_characters(text) for text in texts]
        number_merges = _number_merges() if num_ranks >= NUMBERS_FROM_RANKS else []
        num_numbers = len({"".join(pair) for pair in number_merges})
        learnt = _learn_merges(texts, num_ranks - num_numbers)
        room = num_ranks - num_numbers - NUM_BYTES
        leads = _lead_merges(texts, learnt[: room - int(LEAD_SHARE * room)], int(LEAD_SHARE * room))
        merges = learnt[: room - len(leads)] + leads + number_merges
        vocab = _vocabulary(merges)
        vocab.update({_unused_name(row): row for row in range(len(vocab), num_ranks)})
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        tokenizer.pre_tokenizer = _pre_tokenizer(split_pattern())
        tokenizer.decoder = decoders.ByteLevel()
        return cls(tokenizer)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainedCore:
        """The core of a parsed `tokenizer.json`, its control tokens set aside."""
        plain = json.dumps({**content, "added_tokens": []}, ensure_ascii=False)
        return cls(tokenizers.Tokenizer.from_str(plain))

    def to_json(self, specials: Sequence[Special]) -> str:
        """`tokenizer.json` with the control tokens as added tokens, each never normalised nor stripped."""
        added = [
            {
                "id": special.id,
                "content": special.name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special.special,
            }
            for special in specials
        ]
        return json.dumps({**json.loads(self._json), "added_tokens": added}, ensure_ascii=False, indent=1) + "\n"

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]


class TiktokenCore:
    """K2's own ranks: `tiktoken.model` holds one base64 token and its rank a line."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken  # only a K2 checkpoint needs it

        self._ranks = ranks
        self._encoding = tiktoken.Encoding(
            name="kimi_k2", pat_str=split_pattern(), mergeable_ranks=ranks, special_tokens={}
        )
        self.pieces = tuple(sorted(ranks, key=lambda token: ranks[token]))
        self.fingerprint = b"tiktoken"

    @classmethod
    def from_file(cls, path: Path) -> TiktokenCore:
        """Read `path` itself: tiktoken's own reader keeps a copy by path name, which may be stale."""
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise ValueError(
                    f"{path} line {number}: saw {line[:40]!r}, expected a base64 token and its rank; "
                    "fetch the file again"
                ) from None
        if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < NUM_BYTES:
            raise ValueError(
                f"{path}: saw {len(ranks)} tokens, expected ranks 0 to n-1 without gaps and at least "
                f"{NUM_BYTES}; fetch the file again"
            )
        return cls(ranks)

    def to_file(self) -> bytes:
        """`tiktoken.model`, byte for byte as published."""
        lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in self._ranks.items())
        return b"".join(lines)

    def encode(self, text: str) -> list[int]:
        return [row for piece in limited_pieces(text) for row in self._encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def limited_pieces(text: str) -> Iterator[str]:
    """`text` cut as K2's encoder cuts it; joined again it is `text`."""
    for start in range(0, len(text), MAX_PIECE_CHARS):
        yield from _cut_long_runs(text[start : start + MAX_PIECE_CHARS])


def _cut_long_runs(text: str) -> Iterator[str]:
    if len(text) <= MAX_RUN_CHARS:
        yield text
        return
    start, run, in_space = 0, 0, text[0].isspace()
    for at, char in enumerate(text):
        run = run + 1 if char.isspace() == in_space else 1
        in_space = char.isspace()
        if run > MAX_RUN_CHARS:
            yield text[start:at]
            start, run = at, 1
    yield text[start:]


def whole_characters(text: str) -> str:
    """`text` with lone surrogates (JSON may hold them, UTF-8 cannot) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _learn_merges(texts: Iterable[str], num_rows: int) -> list[tuple[str, str]]:
    """Merges of bare words, the earlier ones the same however many are asked for."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer(split_pattern(max_digits=1, lead=False))
    trainer = trainers.BpeTrainer(
        vocab_size=num_rows,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _lead_merges(texts: Iterable[str], bare_merges: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Pairs of a character and a whole word of the bare vocabulary, at most `count`, the most useful first.

    A pair is merged wherever a word begins so: words that merely begin with the piece count against it.
    """
    bare = models.BPE(vocab=_vocabulary(bare_merges), merges=list(bare_merges))
    pre_tokenizer = _pre_tokenizer(split_pattern())
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    gain: Counter[tuple[str, str]] = Counter()
    letters = set(ascii_letters)
    for word, times in words.items():
        if word[0] in letters or not letters & set(word) or bare.token_to_id(word) is not None:
            continue
        pieces = bare.tokenize(word[1:])
        gain[word[0], pieces[0].value] += times if len(pieces) == 1 else -times
    return [pair for pair, times in gain.most_common(count) if times > 1]


def _vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Rows in K2's layout: the bytes in their order, then what the merges make."""
    tokens = (*byte_of_char(), *("".join(pair) for pair in merges))
    return {token: row for row, token in enumerate(dict.fromkeys(tokens))}


def _number_merges() -> list[tuple[str, str]]:
    """Pairs that make every run of two digits, then, either way round, every run of three."""
    twos = [(f"{n // 10}", f"{n % 10}") for n in range(100)]
    threes = [f"{n:03}" for n in range(1000)]
    return twos + [(n[:2], n[2]) for n in threes] + [(n[0], n[1:]) for n in threes]


def _unused_name(row: int) -> str:
    return f"<|unused_token_{row}|>"


def _pieces_of(model: dict[str, Any]) -> tuple[bytes | None, ...]:
    """Bytes of each row: a row is in use when it is a byte or the result of a merge."""
    vocab: dict[str, int] = model["vocab"]
    chars = byte_of_char()
    pieces: list[bytes | None] = [None] * len(vocab)
    for token in (*chars, *("".join(pair) for pair in model["merges"])):
        pieces[vocab[token]] = bytes(chars[char] for char in token)
    return tuple(pieces)


def check_layout(core: Core, specials: Sequence[Special], source: str) -> None:
    """Raise unless the 256 control rows follow the ordinary rows directly."""
    first = len(core.pieces)
    if [special.id for special in specials] != list(range(first, first + NUM_SPECIAL)):
        raise ValueError(
            f"{source}: saw {len(specials)} control tokens after {first} ordinary ones, expected "
            f"{NUM_SPECIAL} directly after them (K2's layout); use a tokenizer that openk2 wrote, or K2's own"
        )
