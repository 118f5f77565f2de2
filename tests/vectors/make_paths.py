# SPDX-License-Identifier: Apache-2.0
"""The cases of tests/vectors/policy/paths.json and path_patterns.json; written by generate.py.

The expectations are stated here, never taken from the code under test.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def paths() -> Json:
    """Request targets with the decoded segments of their path, or the code of their refusal."""
    good: list[tuple[str, str, list[str]]] = [
        ("root", "/", [""]),
        ("one segment", "/models", ["models"]),
        ("trailing slash", "/models/", ["models", ""]),
        ("deep", "/a/b/c", ["a", "b", "c"]),
        ("query is cut off", "/a/b?list-type=2&prefix=../x", ["a", "b"]),
        ("query on the root", "/?delete", [""]),
        ("a second question mark", "/a?b?c/../d", ["a"]),
        ("escaped letter", "/%61dmin", ["admin"]),
        ("escape in lower case", "/%c3%a4", ["ä"]),
        ("escape in upper case", "/%C3%A4", ["ä"]),
        ("escaped slash is a character", "/a%2Fb/c", ["a/b", "c"]),
        ("escaped slash in lower case", "/a%2fb", ["a/b"]),
        ("only an escaped slash", "/%2F", ["/"]),
        ("escaped question mark", "/a%3Fb", ["a?b"]),
        ("escaped number sign", "/a%23b", ["a#b"]),
        ("escaped space", "/a%20b", ["a b"]),
        ("plus is no space", "/a+b", ["a+b"]),
        ("escaped percent", "/100%25", ["100%"]),
        ("escaped percent before letters", "/%25zz", ["%zz"]),
        ("three dots", "/...", ["..."]),
        ("dots inside", "/a..b/.c", ["a..b", ".c"]),
        ("parameters", "/a;v=1/b", ["a;v=1", "b"]),
        ("sub-delimiters", "/!$&'()*+,=:@~", ["!$&'()*+,=:@~"]),
        ("characters that RFC 3986 wants escaped", '/a"<>^`{|}', ['a"<>^`{|}']),
        ("S3 key", "/bucket/llama-3/model.safetensors", ["bucket", "llama-3", "model.safetensors"]),
    ]
    bad = [
        ("empty", "", "not_origin_form"),
        ("no slash", "models", "not_origin_form"),
        ("absolute form", "http://registry/models", "not_origin_form"),
        ("authority form", "registry:9000", "not_origin_form"),
        ("asterisk form", "*", "not_origin_form"),
        ("query alone", "?a=b", "not_origin_form"),
        ("two slashes first", "//models", "empty_segment"),
        ("two slashes inside", "/a//b", "empty_segment"),
        ("two slashes last", "/a//", "empty_segment"),
        ("dot", "/./a", "dot_segment"),
        ("dot last", "/a/.", "dot_segment"),
        ("dot dot", "/a/../b", "dot_segment"),
        ("dot dot last", "/a/..", "dot_segment"),
        ("escaped dot", "/%2e/a", "dot_segment"),
        ("escaped dot dot", "/a/%2e%2E/b", "dot_segment"),
        ("half escaped dot dot", "/a/.%2e/b", "dot_segment"),
        ("dot dot with parameters", "/a/..;x=1/b", "dot_segment"),
        ("dot with parameters", "/a/.;/b", "dot_segment"),
        ("dot dot before an escaped slash", "/a/..%2Fb", "dot_segment"),
        ("dot dot after an escaped slash", "/a%2F..", "dot_segment"),
        ("dot dot between escaped slashes", "/a%2f%2e%2e%2fb", "dot_segment"),
        ("backslash", "/a\\b", "backslash"),
        ("escaped backslash", "/a%5Cb", "backslash"),
        ("backslash dot dot", "/a\\..\\b", "backslash"),
        ("space", "/a b", "bad_character"),
        ("tab", "/a\tb", "bad_character"),
        ("line feed", "/a\nb", "bad_character"),
        ("NUL", "/a\0b", "bad_character"),
        ("DEL", "/a\x7fb", "bad_character"),
        ("not ASCII", "/ä", "bad_character"),
        ("fragment", "/a#b", "bad_character"),
        ("space in the query", "/a?b c", "bad_character"),
        ("fragment after the query", "/a?b#c", "bad_character"),
        ("escaped NUL", "/a%00", "bad_character"),
        ("escaped line feed", "/a%0Ab", "bad_character"),
        ("escaped DEL", "/a%7F", "bad_character"),
        ("escaped C1 control", "/a%C2%85", "bad_character"),
        ("percent alone", "/a%", "bad_encoding"),
        ("percent and one digit", "/a%2", "bad_encoding"),
        ("percent and no digits", "/a%zz", "bad_encoding"),
        ("percent, digit, letter", "/a%2g", "bad_encoding"),
        ("IIS unicode escape", "/a%u002e", "bad_encoding"),
        ("double encoding", "/%2561dmin", "double_encoding"),
        ("double encoded dot dot", "/%252e%252e/a", "double_encoding"),
        ("every character encoded, twice", "/%25%32%65", "double_encoding"),
        ("overlong slash", "/a%C0%AFb", "not_utf8"),
        ("overlong dot", "/%c0%ae%c0%ae/b", "not_utf8"),
        ("Latin-1", "/%E4", "not_utf8"),
        ("surrogate", "/%ED%A0%80", "not_utf8"),
        ("too long", "/" + "a" * 8192, "target_too_long"),
    ]
    cases: list[Json] = [{"name": name, "target": target, "segments": segments} for name, target, segments in good]
    cases += [{"name": "as long as can be", "target": "/" + "a" * 8191, "segments": ["a" * 8191]}]
    cases += [{"name": name, "target": target, "error": code} for name, target, code in bad]
    return {"cases": cases}


def path_patterns() -> Json:
    """Path patterns with request targets that match and that do not, or the code of their refusal."""
    good: list[tuple[str, list[str], list[str]]] = [
        ("/", ["/", "/?q"], ["/a", "/a/"]),
        ("/models", ["/models", "/models?x=/", "/%6dodels"], ["/", "/models/", "/Models", "/models/a", "/model"]),
        ("/models/", ["/models/"], ["/models", "/models/a"]),
        ("/*", ["/a", "/a%2Fb", "/*"], ["/", "/a/", "/a/b"]),
        ("/models/*", ["/models/a", "/models/a%2Fb"], ["/models", "/models/", "/models/a/", "/models/a/b"]),
        ("/*/config", ["/a/config"], ["/config", "/a/b/config", "/a/config/"]),
        ("/models/*/", ["/models/a/"], ["/models/a", "/models//"]),
        (
            "/models/**",
            ["/models/a", "/models/a/", "/models/a/b/c", "/models/a%2Fb"],
            ["/models", "/models/", "/", "/modelsx/a", "/models%2Fa", "/models/../a", "/models//a", "/x/models/a"],
        ),
        ("/**", ["/a", "/a/b", "/a/"], ["/", "//a", "*"]),
        ("/a b/ä", ["/a%20b/%C3%A4"], ["/a+b/%C3%A4"]),
        ("/100%", ["/100%25"], ["/100"]),
        ("/a;v=1", ["/a;v=1"], ["/a"]),
        ("/...", ["/..."], ["/.."]),
    ]
    bad = [
        ("", "not_absolute"),
        ("models", "not_absolute"),
        ("**", "not_absolute"),
        ("/a//b", "empty_segment"),
        ("//", "empty_segment"),
        ("/a/./b", "dot_segment"),
        ("/a/..", "dot_segment"),
        ("/a/..;x", "dot_segment"),
        ("/a*", "partial_wildcard"),
        ("/a/*.bin", "partial_wildcard"),
        ("/***", "partial_wildcard"),
        ("/**/a", "rest_not_last"),
        ("/**/", "rest_not_last"),
        ("/a?b", "bad_character"),
        ("/a#b", "bad_character"),
        ("/a\\b", "bad_character"),
        ("/a\nb", "bad_character"),
        ("/a%20b", "escape"),
        ("/a%2Fb", "escape"),
        ("/" + "a" * 2048, "pattern_too_long"),
    ]
    patterns: list[Json] = [{"pattern": text, "matches": yes, "differs": no} for text, yes, no in good]
    patterns += [{"pattern": text, "error": code} for text, code in bad]
    return {"patterns": patterns}
