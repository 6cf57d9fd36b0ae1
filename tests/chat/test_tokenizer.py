"""The vocabulary: K2's own ids, the layout of a trained one, and text that survives both."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from openk2.chat import Tokenizer
from openk2.chat.bpe import limited_pieces
from openk2.chat.vocabulary import split_pattern

# Characters that stress the split rule: scripts, marks, digits, contractions, whitespace, private use.
WORDS = ["don't", "IT'LL", "中文", "々", "é", "e\u0301", "ß", "Ω", "ǅ", "ʰ", "ا", "ก็", "🙂"]
NUMBERS_AND_SPACE = ["12345", "１２３", "²", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\x85"]
SIGNS = ["_", "-", "<|", "|>", "[BOS]", "<|im_end|>", "\ue000", "\x00"]
PIECES = st.sampled_from([*WORDS, *NUMBERS_AND_SPACE, *SIGNS])
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


def test_k2_golden_ids(k2_tokenizer: Tokenizer, k2_folder: Path) -> None:
    cases = json.loads((k2_folder / "tokenizer_golden.json").read_text(encoding="utf-8"))
    assert cases
    for case in cases:
        assert k2_tokenizer.encode(case["text"], allow_special=case["allow_special"]) == case["ids"]
        assert k2_tokenizer.decode(case["ids"]) == case["text"]


def test_k2_rows_and_specials(k2_tokenizer: Tokenizer, k2_folder: Path) -> None:
    """163,840 rows, as the embedding has, and not the 163,842 that K2's own code names."""
    assert k2_tokenizer.vocab_size == 163_840
    assert max(k2_tokenizer.special.values()) == 163_839
    assert (k2_tokenizer.bos_id, k2_tokenizer.eos_id, k2_tokenizer.im_end_id) == (163_584, 163_585, 163_586)
    config = json.loads((k2_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for row, token in config["added_tokens_decoder"].items():
        assert k2_tokenizer.special[token["content"]] == int(row)
    assert k2_tokenizer.special["<|reserved_token_163589|>"] == 163_589
    with pytest.raises(ValueError, match="saw 163840, expected 0 to 163839"):
        k2_tokenizer.decode([163_840])


def test_k2_specials_need_no_config(k2_tokenizer: Tokenizer, k2_folder: Path, tmp_path: Path) -> None:
    """Our own table of names and flags is K2's."""
    (tmp_path / "tiktoken.model").write_bytes((k2_folder / "tiktoken.model").read_bytes())
    assert Tokenizer.load(tmp_path).digest() == k2_tokenizer.digest()


def test_k2_save_is_byte_for_byte(k2_tokenizer: Tokenizer, k2_folder: Path, tmp_path: Path) -> None:
    k2_tokenizer.save(tmp_path)
    saved = (tmp_path / "tiktoken.model").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == "b6c497a7469b33ced9c38afb1ad6e47f03f5e5dc05f15930799210ec050c5103"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    original = json.loads((k2_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config == {key: value for key, value in original.items() if key != "chat_template"}


def test_k2_cuts_long_runs_and_long_texts(k2_tokenizer: Tokenizer) -> None:
    run = "ab" * 30_001
    pieces = [run[:25_000], run[25_000:50_000], run[50_000:]]
    assert list(limited_pieces(run)) == pieces
    assert k2_tokenizer.encode(run) == [row for piece in pieces for row in k2_tokenizer.encode(piece)]
    words = "hello " * 70_000
    assert list(limited_pieces(words)) == [words[:400_000], words[400_000:]]
    ids = k2_tokenizer.encode(words)
    assert k2_tokenizer.decode(ids) == words
    assert k2_tokenizer.token_bytes(ids[66_666]) == b" hell"  # cut inside a word, as K2 does


@given(st.lists(st.sampled_from(["a" * 9_000, " " * 9_000, "b", "\n" * 26_000]), max_size=8))
def test_limited_pieces_join_to_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    assert "".join(limited_pieces(text)) == text


def test_trained_layout(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 1024
    first = 1024 - 256
    offsets = {"[BOS]": 0, "[EOS]": 1, "<|im_end|>": 2, "[UNK]": 254, "[PAD]": 255}
    assert {name: tokenizer.special[name] - first for name in offsets} == offsets
    assert sorted(tokenizer.special.values()) == list(range(first, 1024))
    assert tokenizer.special["<|reserved_token_773|>"] == 773
    assert tokenizer.encode("!") == [0]  # bytes come first, in K2's order
    assert not any(tokenizer.is_control(row) for row in range(first))


def test_same_offsets_as_k2(tokenizer: Tokenizer, k2_tokenizer: Tokenizer) -> None:
    shift = k2_tokenizer.bos_id - tokenizer.bos_id
    ours = {name: row + shift for name, row in tokenizer.special.items() if not name.startswith("<|reserved")}
    assert ours == {k: row for k, row in k2_tokenizer.special.items() if not k.startswith("<|reserved")}


@pytest.mark.parametrize(
    "pieces",
    [
        ["中文", "English", "混合"],
        ["A", "中", "B"],
        [" ", "中", "a"],
        ["DON'T", " stop", ",", " it's"],
        ["Hello", "World", "ABC", " déjà"],
        ["x", "123", "45", ".", "5"],
        ["_name", "(self", "):"],
        [" !?\n\n", "x"],
        ["a", " ", " b"],
        ["x", " \n", " y"],
        ["end", "  "],
    ],
)
def test_split_rule(pieces: list[str]) -> None:
    """K2's pre-split on cases worked out by hand: each alternative, and its rank among the others."""
    split = pre_tokenizers.Split(Regex(split_pattern()), behavior="isolated")
    assert [piece for piece, _ in split.pre_tokenize_str("".join(pieces))] == pieces


def test_digits_of_a_small_vocabulary_never_merge() -> None:
    tokenizer = Tokenizer.train(["1234 1234 2024 2024 x12 1,234 v1.5 " * 200], 600)
    for row in range(600 - 256):
        piece = tokenizer.token_bytes(row)
        assert len(piece) <= 1 or not any(chr(byte).isdigit() for byte in piece if byte < 128), piece
    assert [tokenizer.decode([row]) for row in tokenizer.encode("x1234567")][-7:] == list("1234567")


def test_a_vocabulary_with_room_has_a_row_for_every_number_up_to_999() -> None:
    """And whichever the text, cut as K2 cuts: three digits at a time from the left."""
    tokenizer = Tokenizer.train(["no number here, nor there; " * 50, "1 12 123 " * 3000], 4_096 + 256)
    numbers = [f"{number:0{digits}}" for digits in (1, 2, 3) for number in range(10**digits)]
    assert [number for number in numbers if len(tokenizer.encode(number)) != 1] == []
    assert [tokenizer.decode([row]) for row in tokenizer.encode("2026-11-22")] == ["202", "6", "-", "11", "-", "22"]


def test_a_rare_word_has_the_same_pieces_whatever_stands_before_it() -> None:
    """And a frequent one has a row of its own together with the character that mostly stands there."""
    words = [
        "".join(parts) for parts in itertools.product(("ba", "ko", "mi", "tu"), ("rel", "san", "vok"), ("do", "pi"))
    ]
    tokenizer = Tokenizer.train([" ".join(f"the {word} and the" for word in words)] * 40, 560)
    assert len(tokenizer.encode(" the")) == 1
    for word in ("korelsan", "mitudo", "vokpi"):  # words that no text has
        bare = tokenizer.encode(word)
        assert [tokenizer.encode(before + word) for before in (" ", '"', "(")] == [
            [*tokenizer.encode(before), *bare] for before in (" ", '"', "(")
        ]


def test_a_word_that_mostly_begins_longer_ones_gets_no_character_before_it() -> None:
    """A merge with the space would cut the longer words otherwise after a space than after a quote."""
    longer = [f"car{letter}" for letter in "bcdefghijklmnopqrstu"]  # each once, so that none becomes a row itself
    text = ["the car and the "] * 15
    tokenizer = Tokenizer.train([*text, *(f"the {word} and the " for word in longer)], 540)
    assert len(tokenizer.encode(" the")) == len(tokenizer.encode("car")) == 1
    assert tokenizer.encode(" car") == [*tokenizer.encode(" "), *tokenizer.encode("car")]
    tokenizer = Tokenizer.train([*text, *(f"the {word} and the " for word in longer[:9])], 540)
    assert len(tokenizer.encode(" car")) == 1


def test_at_most_a_third_of_the_learnt_rows_are_words_with_a_character_before_them() -> None:
    words = ["".join(pair) for pair in itertools.product("bcdfghklmnpr", "aeiou")]
    tokenizer = Tokenizer.train([" ".join(words) + "\n"] * 50, 600)
    pieces = [tokenizer.token_bytes(row).decode(errors="replace") for row in range(600 - 256)]
    assert sum(piece[1:].isalpha() and piece[0] == " " for piece in pieces if piece) == (600 - 256 - 256) // 3
    assert sum(piece in words for piece in pieces) >= (600 - 256 - 256) * 2 // 3


def test_training_is_deterministic() -> None:
    texts = [split_pattern(), "the cat sat on the mat " * 30, "def f(x): return x\n" * 30]
    digests = {Tokenizer.train(given, 700).digest() for given in (texts, iter(texts), list(texts))}
    assert len(digests) == 1
    assert Tokenizer.train(texts[:2], 700).digest() not in digests


def test_training_does_not_depend_on_threads() -> None:
    program = (
        "import json; from pathlib import Path; from openk2.chat import Tokenizer\n"
        "print(Tokenizer.train([Path(json.decoder.__file__).read_text(encoding='utf-8')] * 8, 900).digest())"
    )
    digests = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program]
        digests.add(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    assert len(digests) == 1


def test_small_text_leaves_named_rows_unused() -> None:
    tokenizer = Tokenizer.train(["aa aa aa"], 800)
    assert tokenizer.vocab_size == 800
    assert tokenizer.special["[BOS]"] == 544
    assert tokenizer.decode([543]) == "<|unused_token_543|>"
    assert tokenizer.token_bytes(543) == b""
    assert 543 not in tokenizer.encode("<|unused_token_543|>", allow_special=True)
    assert tokenizer.decode(tokenizer.encode("<|unused_token_543|>")) == "<|unused_token_543|>"


def test_too_few_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="saw 511, expected at least 512"):
        Tokenizer.train(["text"], 511)
    assert Tokenizer.train(["text"], 512).encode("text") == Tokenizer.train([], 512).encode("text")


@given(TEXTS)
@example("a" * 30_000 + " " * 30_000)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(len(tokenizer.token_bytes(row)) for row in ids) == len(text.encode())
    assert not any(tokenizer.is_control(row) for row in ids)
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


@given(TEXTS)
@settings(max_examples=50)
def test_text_survives_k2(k2_tokenizer: Tokenizer, text: str) -> None:
    ids = k2_tokenizer.encode(text)
    assert k2_tokenizer.decode(ids) == text
    assert all(row < 163_584 for row in ids)


@given(TEXTS)
def test_both_split_engines_agree(tokenizer: Tokenizer, text: str) -> None:
    """The trained vocabulary gives the same ids under tiktoken, the engine that K2's rule was written for."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {tokenizer.token_bytes(row): row for row in range(tokenizer.bos_id)}
    twin = tiktoken.Encoding("twin", pat_str=split_pattern(), mergeable_ranks=ranks, special_tokens={})
    assert tokenizer.encode(text) == twin.encode_ordinary(text)


@given(st.lists(TEXTS, max_size=5))
@settings(max_examples=30)
def test_batch_is_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_specials_only_on_request(tokenizer: Tokenizer) -> None:
    for name, row in tokenizer.special.items():
        assert row not in tokenizer.encode(f"a{name}b")
        expected = [*tokenizer.encode("a"), row, *tokenizer.encode("b")]
        assert tokenizer.encode(f"a{name}b", allow_special=True) == expected
        assert tokenizer.decode([row]) == name
        assert tokenizer.token_bytes(row) == b""


def test_skip_special_keeps_the_tool_markers(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("[BOS]hi<|tool_call_begin|>x<|im_end|><|reserved_token_773|>", allow_special=True)
    assert tokenizer.decode(ids, skip_special=True) == "hi<|tool_call_begin|>x"


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode_batch(["\ud83d\ude42"])[0]) == "🙂"


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest() == tokenizer.digest()
    assert loaded.special == tokenizer.special
    text = "class A:\n    x = 12 <|im_end|>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)


def test_unused_rows_survive_save(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["aa aa aa"], 800)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest() == tokenizer.digest()
    assert loaded.decode([543]) == "<|unused_token_543|>"


@pytest.mark.parametrize("text", [["aa aa aa"], None])
def test_autotokenizer_gives_the_same_ids(tokenizer: Tokenizer, text: list[str] | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if text is not None:
        tokenizer = Tokenizer.train(text, 800)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (tokenizer.pad_id, tokenizer.special["[UNK]"])
    for sample in ("", "don't  panic\n\n", "日本語 mixed 123456 ₂", "def f(x):\n\treturn {x: 1}", "🙂🙂 naïve"):
        assert theirs(sample)["input_ids"] == tokenizer.encode(sample)
        assert theirs.decode(tokenizer.encode(sample)) == sample
    for name, row in tokenizer.special.items():
        assert theirs.convert_tokens_to_ids(name) == row
    mixed = "[BOS]hi<|tool_call_begin|>x<|tool_call_end|><|im_end|>"
    ids = tokenizer.encode(mixed, allow_special=True)
    assert theirs(mixed)["input_ids"] == ids
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special=True)


def test_load_names_what_is_wrong(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saw neither tokenizer\.json nor tiktoken\.model"):
        Tokenizer.load(tmp_path)
    for content in ("{", "[]", "{}", '{"model": {"type": "WordPiece"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json: saw") as error:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(error.value)
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="saw 255 control tokens after 768 ordinary ones"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("broken", [b"IQ== zero\n", b"!!! 0\n", b"IQ==\n", b"IQ== 0\n", b"IQ== 1\n" * 300])
def test_load_refuses_broken_ranks(broken: bytes, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_bytes(broken)
    with pytest.raises(ValueError, match=r"tiktoken\.model.*saw .*expected .*; fetch the file again"):
        Tokenizer.load(tmp_path)


def test_unknown_template_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saw 'newest', expected one of first-release, revised"):
        tokenizer.save(tmp_path, template="newest")
