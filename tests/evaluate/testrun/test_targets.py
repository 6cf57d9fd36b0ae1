"""Targets as text, and keys that go where they belong."""

from __future__ import annotations

import pytest

from openk2.evaluate.testrun import Price, Target, parse_extra, parse_price, with_options

BASE = "https://api.example.com/v1"


def test_the_text_form() -> None:
    target = Target.parse(f"{BASE}/,model=org/k2,key=K2_KEY,name=provider")
    assert target == Target(url=BASE, name="provider", model="org/k2", key_env="K2_KEY")
    assert Target.parse(f"{BASE},model=org/k2").name == "k2"
    assert Target.parse("http://127.0.0.1:8000/v1").name == "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder/step-5", "expected a URL like https://api.example.com/v1, or a checkpoint folder"),
        ("ftp://x/v1", "expected a URL"),
        ("http://127.0.0.1:8000", "did you mean http://127.0.0.1:8000/v1?"),
        (f"{BASE}/chat/completions", "expected the base URL"),
        ("https://me:secret@x.example/v1", "saw a password"),
        ("https://x.example/v1?key=1", "saw a password, \\? or #"),
        ("http://x.example:port/v1", "expected a URL"),
        (f"{BASE},modle=x", "saw 'modle=x', .*did you mean model?"),
        (f"{BASE},model=", "saw 'model='"),
        (f"{BASE},name=a,name=b", "saw 'name=b'"),
    ],
)
def test_other_texts_are_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as raised:
        Target.parse(text)
    assert "secret" not in str(raised.value)


def test_keys_go_to_their_own_host_only() -> None:
    environment = {"OPENAI_API_KEY": "sk-own", "OTHER": " sk-other\n", "EMPTY": "", "BROKEN": "a\nb"}
    assert Target.parse("https://api.openai.com/v1").key(environment) == "sk-own"
    for url in (BASE, "http://api.openai.com/v1", "https://api.openai.com.evil.example/v1", "http://localhost:1/v1",
                "https://api.openai.com:8443/v1"):  # fmt: skip
        assert Target.parse(url).key(environment) == ""
    assert Target.parse(f"{BASE},key=OTHER").key(environment) == "sk-other"
    for name in ("EMPTY", "ABSENT", "BROKEN"):
        with pytest.raises(ValueError, match=f"in the environment variable {name}, expected one"):
            Target.parse(f"{BASE},key={name}").key(environment)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Target.parse("https://api.openai.com/v1").key({})


def test_a_key_in_clear_is_noticed() -> None:
    assert Target.parse("http://x.example/v1,key=K").sends_key_in_clear()
    for harmless in (f"{BASE},key=K", "http://127.0.0.1:1/v1,key=K", "http://x.example/v1"):
        assert not Target.parse(harmless).sends_key_in_clear()


def test_prices_and_extras_by_name() -> None:
    assert parse_price("k2=0.6,2.5") == ("k2", Price(0.6, 2.5))
    assert Price(0.6, 2.5).of(1_000_000, 100_000) == pytest.approx(0.85)
    assert parse_extra('k2={"top_p": 0.9}') == ("k2", {"top_p": 0.9})
    targets = [Target(BASE, "k2"), Target(BASE, "other")]
    found = with_options(targets, {"k2": Price(1, 2)}, {"other": {"top_k": 5}})
    assert (found[0].price, found[0].extra, found[1].price, found[1].extra) == (Price(1, 2), {}, None, {"top_k": 5})
    with pytest.raises(ValueError, match="--price: saw 'k3', expected one of k2, other; did you mean k2?"):
        with_options(targets, {"k3": Price(1, 2)}, {})
    with pytest.raises(ValueError, match="saw the name 'k2' twice"):
        with_options([targets[0], targets[0]], {}, {})


@pytest.mark.parametrize("text", ["k2", "k2=1", "=1,2", "k2=-1,2", "k2=a,b", "k2=1,2,3", "k2=nan,1", "k2=1,inf"])
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--price: saw"):
        parse_price(text)


@pytest.mark.parametrize("text", ["k2", "k2={", "k2=[]", 'k2={"messages": []}', 'k2={"model": "x"}', "={}"])
def test_other_extras_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--extra"):
        parse_extra(text)
