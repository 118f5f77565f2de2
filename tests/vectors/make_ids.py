# SPDX-License-Identifier: Apache-2.0
"""The cases of tests/vectors/spiffe_ids and tests/vectors/policy/id_patterns.json; written by generate.py.

The expectations are stated here case by case or by the alphabets of the standard, never taken from the code under test.
"""

from __future__ import annotations

from typing import TypedDict

_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_PUNCTUATION = ".-_"


class IdCase(TypedDict):
    name: str
    id: str
    expect: str


def spiffe_ids() -> dict[str, list[IdCase]]:
    """Every SPIFFE ID case by file; `expect` is "ok" or the error code."""
    return {"alphabets": _alphabets(), "lengths": _lengths(), "rules": _rules()}


def _case(name: str, text: str, expect: str = "ok") -> IdCase:
    return {"name": name, "id": text, "expect": expect}


def _alphabets() -> list[IdCase]:
    """Every code point of one byte, and some longer ones, in the middle of a trust domain and of a path segment."""
    cases = []
    for char in [*map(chr, range(256)), "\u0131", "\u212a", "\uff0f", "\u2024", "\U0001f511"]:
        name = f"{ord(char):02x}"
        ok = char in _LOWER + _PUNCTUATION or char == "/"
        cases.append(_case(f"trust domain {name}", f"spiffe://a{char}b", "ok" if ok else "bad_trust_domain_char"))
        ok = char in _LOWER + _LOWER.upper() + _PUNCTUATION or char == "/"
        cases.append(_case(f"path {name}", f"spiffe://td/a{char}b", "ok" if ok else "bad_path_char"))
    return cases


def _lengths() -> list[IdCase]:
    long_td = "spiffe://" + "a" * 255
    return [
        _case("trust domain of 1 byte", "spiffe://a"),
        _case("trust domain of 255 bytes", long_td),
        _case("trust domain of 256 bytes", long_td + "a", "trust_domain_too_long"),
        _case("trust domain of 256 bytes and a path", long_td + "a/b", "trust_domain_too_long"),
        _case("trust domain of 256 bytes, a wrong character", "spiffe://" + "A" * 256, "trust_domain_too_long"),
        _case("trust domain of 128 two-byte characters", "spiffe://" + "é" * 128, "trust_domain_too_long"),
        _case("trust domain of 127 two-byte characters", "spiffe://" + "é" * 127, "bad_trust_domain_char"),
        _case("ID of 2048 bytes in one segment", "spiffe://td/" + "a" * 2036),
        _case("ID of 2048 bytes in many segments", "spiffe://td" + "/a" * 1018 + "a"),
        _case("ID of 2049 bytes", "spiffe://td/" + "a" * 2037, "too_long"),
        _case("ID of 2049 bytes with another scheme", "x" * 2049, "too_long"),
        _case("ID of 2049 bytes, 1031 characters", "spiffe://td/a" + "é" * 1018, "too_long"),
        _case("ID of 2047 bytes, 1030 characters", "spiffe://td/a" + "é" * 1017, "bad_path_char"),
    ]


def _rules() -> list[IdCase]:
    return [
        _case("trust domain alone", "spiffe://example.org"),
        _case("workload", "spiffe://example.org/segment/registry/host/h1/svc/models"),
        _case("upper case in the path", "spiffe://example.org/Segment/A"),
        _case("trust domain like an address", "spiffe://10.0.0.1/a"),
        _case("trust domain of dots", "spiffe://../a"),
        _case("trust domain of one underscore", "spiffe://_"),
        _case("three dots", "spiffe://td/..."),
        _case("hidden file", "spiffe://td/.a/a./-/_"),
        _case("empty", "", "empty"),
        _case("one space", " ", "wrong_scheme"),
        _case("no scheme", "example.org/a", "wrong_scheme"),
        _case("scheme alone", "spiffe:", "wrong_scheme"),
        _case("scheme and one slash", "spiffe:/td/a", "wrong_scheme"),
        _case("upper-case scheme", "SPIFFE://td/a", "wrong_scheme"),
        _case("mixed-case scheme", "Spiffe://td/a", "wrong_scheme"),
        _case("https", "https://td/a", "wrong_scheme"),
        _case("leading space", " spiffe://td/a", "wrong_scheme"),
        _case("byte order mark", "\ufeffspiffe://td/a", "wrong_scheme"),
        _case("longer scheme", "xspiffe://td/a", "wrong_scheme"),
        _case("no authority", "spiffe://", "missing_trust_domain"),
        _case("empty authority and a path", "spiffe:///a", "missing_trust_domain"),
        _case("empty authority and a slash", "spiffe:////", "missing_trust_domain"),
        _case("port", "spiffe://td:8081/a", "bad_trust_domain_char"),
        _case("empty port", "spiffe://td:/a", "bad_trust_domain_char"),
        _case("user", "spiffe://user@td/a", "bad_trust_domain_char"),
        _case("user and password", "spiffe://user:pw@td/a", "bad_trust_domain_char"),
        _case("empty user", "spiffe://@td/a", "bad_trust_domain_char"),
        _case("IPv6 literal", "spiffe://[::1]/a", "bad_trust_domain_char"),
        _case("upper-case trust domain", "spiffe://TD/a", "bad_trust_domain_char"),
        _case("percent-encoded trust domain", "spiffe://%74d/a", "bad_trust_domain_char"),
        _case("query after the trust domain", "spiffe://td?q", "bad_trust_domain_char"),
        _case("fragment after the trust domain", "spiffe://td#f", "bad_trust_domain_char"),
        _case("query after the trust domain, slash in it", "spiffe://td?q=/a", "bad_trust_domain_char"),
        _case("trailing space after the trust domain", "spiffe://td ", "bad_trust_domain_char"),
        _case("trailing newline after the trust domain", "spiffe://td\n", "bad_trust_domain_char"),
        _case("slash alone", "spiffe://td/", "trailing_slash"),
        _case("trailing slash", "spiffe://td/a/", "trailing_slash"),
        _case("two slashes alone", "spiffe://td//", "empty_segment"),
        _case("two trailing slashes", "spiffe://td/a//", "empty_segment"),
        _case("empty first segment", "spiffe://td//a", "empty_segment"),
        _case("empty middle segment", "spiffe://td/a//b", "empty_segment"),
        _case("dot", "spiffe://td/.", "dot_segment"),
        _case("dot dot", "spiffe://td/..", "dot_segment"),
        _case("dot in the middle", "spiffe://td/a/./b", "dot_segment"),
        _case("dot dot in the middle", "spiffe://td/a/../b", "dot_segment"),
        _case("dot dot and a slash", "spiffe://td/../", "dot_segment"),
        _case("query after the path", "spiffe://td/a?q=1", "bad_path_char"),
        _case("empty query after the path", "spiffe://td/a?", "bad_path_char"),
        _case("fragment after the path", "spiffe://td/a#f", "bad_path_char"),
        _case("percent-encoding in the path", "spiffe://td/%61", "bad_path_char"),
        _case("encoded slash", "spiffe://td/a%2Fb", "bad_path_char"),
        _case("encoded dot segment", "spiffe://td/%2e%2e/a", "bad_path_char"),
        _case("backslash", "spiffe://td/a\\b", "bad_path_char"),
        _case("colon", "spiffe://td/a:b", "bad_path_char"),
        _case("trailing newline after the path", "spiffe://td/a\n", "bad_path_char"),
        _case("wrong character before an empty segment", "spiffe://td/a!//b", "bad_path_char"),
        _case("empty segment before a wrong character", "spiffe://td//a!", "empty_segment"),
        _case("dot segment before a trailing slash", "spiffe://td/./", "dot_segment"),
        _case("dots and a wrong character", "spiffe://td/..!", "bad_path_char"),
    ]


class PatternCase(TypedDict):
    name: str
    pattern: str
    expect: str
    matches: list[str]
    differs: list[str]


class PairCase(TypedDict):
    name: str
    left: str
    right: str
    covers: bool
    overlaps: bool


def id_patterns() -> dict[str, object]:
    """The cases of ID patterns; `{td}` is never written in them, `td` is the own trust domain."""
    return {"patterns": _patterns(), "pairs": _pairs()}


def _pattern(name: str, pattern: str, matches: list[str], differs: list[str], expect: str = "ok") -> PatternCase:
    return {"name": name, "pattern": pattern, "expect": expect, "matches": matches, "differs": differs}


def _bad(name: str, pattern: str, expect: str) -> PatternCase:
    return _pattern(name, pattern, [], [], expect)


def _patterns() -> list[PatternCase]:
    return [
        _pattern(
            "literal",
            "spiffe://td/segment/a/x",
            ["spiffe://td/segment/a/x"],
            [
                "spiffe://td",
                "spiffe://td/segment/a",
                "spiffe://td/segment/a/x/y",
                "spiffe://td/segment/a/X",
                "spiffe://td/segment/a/xx",
                "spiffe://other/segment/a/x",
            ],
        ),
        _pattern(
            "one segment at the end",
            "spiffe://td/segment/a/*",
            ["spiffe://td/segment/a/x", "spiffe://td/segment/a/..."],
            ["spiffe://td/segment/a", "spiffe://td/segment/a/x/y", "spiffe://td/segment/b/x", "spiffe://t/segment/a/x"],
        ),
        _pattern(
            "one segment in the middle",
            "spiffe://td/host/*/svc/models",
            ["spiffe://td/host/h1/svc/models"],
            ["spiffe://td/host/svc/models", "spiffe://td/host/h1/h2/svc/models", "spiffe://td/host/h1/svc/model"],
        ),
        _pattern(
            "the rest",
            "spiffe://td/segment/a/**",
            ["spiffe://td/segment/a/x", "spiffe://td/segment/a/x/y/z"],
            [
                "spiffe://td/segment/a",
                "spiffe://td/segment/ab/x",
                "spiffe://td/segment",
                "spiffe://td",
                "spiffe://td.x/segment/a/x",
            ],
        ),
        _pattern(
            "one and the rest",
            "spiffe://td/*/**",
            ["spiffe://td/a/b", "spiffe://td/a/b/c", "spiffe://td/a/spire"],
            ["spiffe://td/a", "spiffe://td", "spiffe://td/spire/server"],
        ),
        _pattern(
            "everything",
            "spiffe://td/**",
            ["spiffe://td/a", "spiffe://td/a/b", "spiffe://td/spirex", "spiffe://td/Spire/x"],
            [
                "spiffe://td",
                "spiffe://other/a",
                "spiffe://td/spire",
                "spiffe://td/spire/server",
                "spiffe://td/spire/agent/join_token/x",
            ],
        ),
        _pattern("one segment alone", "spiffe://td/*", ["spiffe://td/a"], ["spiffe://td", "spiffe://td/spire"]),
        _pattern(
            "another trust domain",
            "spiffe://other.org/**",
            ["spiffe://other.org/a"],
            ["spiffe://td/a", "spiffe://other.org", "spiffe://other.org/spire/server"],
        ),
        _pattern("longest", "spiffe://td/" + "a" * 2036, ["spiffe://td/" + "a" * 2036], ["spiffe://td/a"]),
        _pattern(
            "agents by name",
            "spiffe://td/spire/agent/**",
            ["spiffe://td/spire/agent/join_token/x"],
            ["spiffe://td/spire/agent", "spiffe://td/spire/server", "spiffe://td/a/agent/x"],
        ),
        _pattern(
            "one agent", "spiffe://td/spire/agent/x", ["spiffe://td/spire/agent/x"], ["spiffe://td/spire/agent/y"]
        ),
        _bad("empty", "", "empty"),
        _bad("too long", "spiffe://td/" + "a" * 2037, "too_long"),
        _bad("no scheme", "td/**", "wrong_scheme"),
        _bad("star alone", "*", "wrong_scheme"),
        _bad("no trust domain", "spiffe:///a", "missing_trust_domain"),
        _bad("long trust domain", "spiffe://" + "a" * 256 + "/**", "trust_domain_too_long"),
        _bad("wildcard trust domain", "spiffe://*/a", "bad_trust_domain_char"),
        _bad("partial wildcard trust domain", "spiffe://*.example.org/a", "bad_trust_domain_char"),
        _bad("upper-case trust domain", "spiffe://TD/a", "bad_trust_domain_char"),
        _bad("no path", "spiffe://td", "missing_path"),
        _bad("slash alone", "spiffe://td/", "trailing_slash"),
        _bad("trailing slash", "spiffe://td/a/", "trailing_slash"),
        _bad("slash after the rest", "spiffe://td/**/", "double_star_not_last"),
        _bad("empty segment", "spiffe://td//a", "empty_segment"),
        _bad("dot segment", "spiffe://td/a/../**", "dot_segment"),
        _bad("the rest in the middle", "spiffe://td/**/a", "double_star_not_last"),
        _bad("the rest twice", "spiffe://td/**/**", "double_star_not_last"),
        _bad("prefix", "spiffe://td/a*", "partial_wildcard"),
        _bad("suffix", "spiffe://td/*a", "partial_wildcard"),
        _bad("middle", "spiffe://td/a*b/c", "partial_wildcard"),
        _bad("three stars", "spiffe://td/***", "partial_wildcard"),
        _bad("wrong character", "spiffe://td/a?", "bad_path_char"),
        _bad("braces", "spiffe://td/{a,b}", "bad_path_char"),
        _bad("character class", "spiffe://td/[ab]", "bad_path_char"),
    ]


def _pair(name: str, left: str, right: str, *, covers: bool = False, overlaps: bool = False) -> PairCase:
    prefix = "spiffe://td/"
    return {"name": name, "left": prefix + left, "right": prefix + right, "covers": covers, "overlaps": overlaps}


def _pairs() -> list[PairCase]:
    return [
        _pair("same literal", "a/b", "a/b", covers=True, overlaps=True),
        _pair("other literal", "a/b", "a/c"),
        _pair("shorter literal", "a", "a/b"),
        _pair("star over literal", "a/*", "a/b", covers=True, overlaps=True),
        _pair("literal over star", "a/b", "a/*", overlaps=True),
        _pair("crossing stars", "*/b", "a/*", overlaps=True),
        _pair("same stars", "*/*", "*/*", covers=True, overlaps=True),
        _pair("rest over literal", "a/**", "a/b/c", covers=True, overlaps=True),
        _pair("rest over its own prefix", "a/**", "a"),
        _pair("rest over star", "a/**", "a/*", covers=True, overlaps=True),
        _pair("star over rest", "a/*", "a/**", overlaps=True),
        _pair("rest over longer rest", "a/**", "a/b/**", covers=True, overlaps=True),
        _pair("longer rest over rest", "a/b/**", "a/**", overlaps=True),
        _pair("same rest", "a/**", "a/**", covers=True, overlaps=True),
        _pair("star rest over literal rest", "*/**", "a/**", covers=True, overlaps=True),
        _pair("rest and star rest", "**", "*/**", covers=True, overlaps=True),
        _pair("star rest and rest", "*/**", "**", overlaps=True),
        _pair("different rests", "a/**", "b/**"),
        _pair("rest and shorter star", "a/b/**", "a/*"),
        _pair("reserved and everything", "spire/**", "**"),
        _pair("everything and reserved", "**", "spire/agent/x"),
        _pair("star and reserved", "*/agent/x", "spire/agent/x"),
        _pair("reserved and reserved", "spire/**", "spire/agent/*", covers=True, overlaps=True),
        _pair("rest and star of its length", "a/b/**", "a/*/*", overlaps=True),
    ]
