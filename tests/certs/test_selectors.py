# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import Selector, SelectorError


@pytest.mark.parametrize(
    ("text", "kind", "value", "key"),
    [
        ("unix:uid:1000", "unix", "uid:1000", "uid"),
        ("a:b", "a", "b", ""),
        ("a::", "a", ":", ""),
        ("spire_agent:id:spiffe://td/x", "spire_agent", "id:spiffe://td/x", "id"),
        ("unix:path:/opt/a b/é", "unix", "path:/opt/a b/é", "path"),
    ],
)
def test_parse(text: str, kind: str, value: str, key: str) -> None:
    selector = Selector.parse(text)
    assert (selector.type, selector.value, selector.key, str(selector)) == (kind, value, key, text)
    assert Selector.of(kind, value) == selector


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("", "b", "missing_type"),
        ("a", "", "missing_value"),
        ("a:b", "c", "colon_in_type"),
        ("a" * 256, "b", "type_too_long"),
        ("a", "b" * 4097, "value_too_long"),
        ("a", "é" * 2049, "value_too_long"),
        ("a", "b\n", "bad_char"),
        ("a\0", "b", "bad_char"),
        ("a", "\ud800", "bad_char"),
    ],
)
def test_bad(kind: str, value: str, code: str) -> None:
    with pytest.raises(SelectorError) as caught:
        Selector.of(kind, value)
    assert caught.value.code == code


@pytest.mark.parametrize(("kind", "value"), [("a" * 255, "b"), ("a", "b" * 4096), ("a", "é" * 2048)])
def test_longest(kind: str, value: str) -> None:
    assert Selector.of(kind, value).value == value


def test_no_colon() -> None:
    with pytest.raises(SelectorError) as caught:
        Selector.parse("unix")
    assert caught.value.code == "missing_colon"


def test_repr_hides_the_value() -> None:
    assert "hunter2" not in repr(Selector.parse("docker:env:PASSWORD=hunter2"))


@given(st.text())
def test_any_text_is_a_selector_or_a_known_error(text: str) -> None:
    with contextlib.suppress(SelectorError):
        assert str(Selector.parse(text)) == text
