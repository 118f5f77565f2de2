# SPDX-License-Identifier: Apache-2.0
"""The part of Go's text/template that ClusterSPIFFEIDs are written in."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.broker.kubernetes.go_templates import MAX_TEMPLATE, Fields, TemplateError, parse, render

VALUES = Fields(
    "a template",
    {
        "TrustDomain": "example.org",
        "PodMeta": Fields(".PodMeta", {"Namespace": "ns", "Labels": {"app": "a", "x/y": "z", "tier": "gold"}}),
        "PodSpec": Fields(".PodSpec", {"Hostname": "", "HostNetwork": False, "Port": 3}),
    },
)

# What Go's own package writes for the same.
WRITTEN = {
    "spiffe://{{.TrustDomain}}/ns/{{ .PodMeta.Namespace }}": "spiffe://example.org/ns/ns",
    '{{ index .PodMeta.Labels "x/y" }}': "z",
    '{{ index .PodMeta.Labels "none" }}|': "|",
    "{{ .PodMeta.Labels.none }}": "<no value>",
    '{{- if eq .PodMeta.Labels.tier "gold" }} a {{- else }}b{{ end -}} ': " a",
    '{{ if eq .PodMeta.Labels.tier "x" "gold" }}a{{ end }}': "a",
    "{{ if .PodSpec.Hostname }}a{{ else if .PodSpec.Port }}b{{ else }}c{{ end }}d": "bd",
    "{{ if not .PodSpec.HostNetwork }}a{{ end }}": "a",
    'a  {{- "x" -}}  b': "axb",
    "{{ with .PodMeta.Labels.app }}<{{ . }}>{{ end }}": "<a>",
    "{{ with .PodMeta.Labels.none }}{{ . }}{{ else }}e{{ end }}": "e",
    '{{ .PodMeta.Namespace | printf "n-%s" }}': "n-ns",
    '{{ printf "%s-%d-%v%%" .PodMeta.Namespace .PodSpec.Port true }}': "ns-3-true%",
    "x{{/* a }} comment */}}y": "xy",
    "x {{- /* c */ -}} y": "xy",
    '{{ (index .PodMeta.Labels "app") }}': "a",
    "{{ (.PodMeta).Namespace }}": "ns",
    '{{ "a}}b" }}{{ `c"d` }}': 'a}}bc"d',
    '{{ "a\\"b\\\\" }}': 'a"b\\',
    "{{if true}}{{if true}}x{{end}}y{{end}}z": "xyz",
    '{{ or .PodMeta.Labels.none "d" }}{{ and true "e" }}': "de",
    '{{ len "äb" }}{{ len .PodMeta.Labels }}': "33",
    '{{ if and (gt 2 1) (le "a" "b") (ne 1 2) (lt 1 2) (ge 1 1) }}y{{ end }}': "y",
    "{ }} } {": "{ }} } {",
}


@pytest.mark.parametrize("template", WRITTEN)
def test_written_as_go_does(template: str) -> None:
    assert render(parse(template), VALUES) == WRITTEN[template]


REFUSED = {
    "{{ range .PodMeta.Labels }}{{ end }}": "{{range}} is not understood here",
    '{{ define "x" }}{{ end }}': "{{define}} is not understood here",
    '{{ template "x" }}': "{{template}} is not understood here",
    "{{ $x := 1 }}": "variables are not understood",
    "{{ .PodMeta.Finalizers }}": ".PodMeta has no .Finalizers here; known are .Namespace, .Labels",
    "{{ .Secrets }}": "a template has no .Secrets here",
    "{{ .PodMeta.Namespace.x }}": "no field x of a single value",
    "{{ env }}": "there is no function 'env'",
    "{{ call .PodMeta }}": "there is no function 'call'",
    "{{ if .TrustDomain }}": "{{if}} has no {{end}}",
    "{{ end }}": "{{end}} has no beginning",
    "{{ if }}{{ end }}": "an action is empty",
    "{{": "{{ is not closed",
    '{{ "x }}': "{{ is not closed",
    "{{/* x }}": "a comment is not closed",
    "{{ .PodMeta.Labels }}": "a whole mapping cannot be written",
    '{{ eq 1 "a" }}': "must be two texts, two numbers or two truth values",
    "{{ eq 1 }}": "eq takes 2 arguments",
    '{{ "a" | "b" }}': "what stands behind | is a function",
    '{{ printf "%x" 1 }}': "printf understands %s",
    '{{ printf "%s" }}': "printf understands %s",
    '{{ printf "a" 1 }}': "more values than places",
    "{{ (print 1 }}": "a parenthesis is not closed",
    '{{ "\\z" }}': "is not understood in a text",
    "{{ .a .b }}": "is not understood in",
    "x" * (MAX_TEMPLATE + 1): "at most 4096 characters",
    "{{if true}}" * 20 + "{{end}}" * 20: "stand at most 16 deep",
    "{{ " + "(" * 20 + "1" + ")" * 20 + " }}": "stands where a value should",
    "{{ 1" + " | print" * 20 + " }}": "at most 16 steps",
    '{{ printf "%s%s" (print .A .A) 1 }}': "has no .A",
}


@pytest.mark.parametrize("template", REFUSED, ids=lambda text: text[:30])
def test_refused_with_a_sentence(template: str) -> None:
    with pytest.raises(TemplateError) as refused:
        render(parse(template), VALUES)
    assert REFUSED[template] in str(refused.value)


WORDS = "{{ }} {{- -}} /* */ .PodMeta .Labels if else end with index printf eq range true x 1 \\ | ( ) . ` - { }"
PIECES = st.sampled_from([*WORDS.split(), " ", "\n", '"', '"%s"'])


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
def test_nothing_else_than_a_sentence_ends_it(template: str) -> None:
    try:
        found: Any = render(parse(template), VALUES)
    except TemplateError:
        return
    assert isinstance(found, str)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=200))
def test_a_text_without_actions_is_itself(text: str) -> None:
    assert render(parse(text), VALUES) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert render(parse("{{ .V }}"), {"V": value}) == value


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["{{", '{{"', "{{ (", "{{-", "{{/*", '{{ "" ', "{{ .", "{{ | ", "{{if ", '{{""}}'])
def test_a_template_costs_its_length(piece: str) -> None:
    """What is not linear takes longer than a test may."""
    for text in (piece * (MAX_TEMPLATE // len(piece)), piece + " " * (MAX_TEMPLATE - 10), piece + '"' * 2000):
        with contextlib.suppress(TemplateError):
            render(parse(text), VALUES)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("grows", ["print" + " ." * 6, 'printf "' + "%s" * 6 + '"' + " ." * 6])
def test_what_a_function_makes_grows_no_further(grows: str) -> None:
    """Sixteen times one in another, it would be six to the power of sixteen."""
    template = '{{ with "a" }}' + f"{{{{ with {grows} }}}}" * 15 + "{{ len . }}" + "{{ end }}" * 16
    with pytest.raises(TemplateError, match="makes is too long"):
        render(parse(template), VALUES)
