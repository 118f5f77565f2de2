# SPDX-License-Identifier: Apache-2.0
"""Where a namespace requires sidecars a real API server sees to it, whoever injects, and if nobody does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from firedoor.broker.injector.demands import Demands
from tests.broker.injector.test_inject import EXCLUSIONS, OPTIONAL, OUT, RULES, STAYS, TIGHT, WHERE_REQUIRED, tight
from tests.broker.injector.test_inject import REQUIRED as REQUIRED_BY
from tests.kubernetes.admission import BY_OTHERS, INJECTED, REQUIRED, guarded_cluster, refusal
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.test_guards import STRATEGIC, pod, ruled
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
LABELS: dict[Demands, dict[str, str]] = {
    REQUIRED_BY: REQUIRED,
    EXCLUSIONS: REQUIRED | {"firedoor.dev/capture": "exclusions"},
    OPTIONAL: REQUIRED | {"firedoor.dev/capture": "optional"},
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with guarded_cluster(tmp_path_factory.mktemp("guarded"), RULES) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def places(guarded: Cluster) -> dict[Demands, str]:
    """Where pods are made, without being stored."""
    return {
        demands: f"/api/v1/namespaces/{guarded.namespace('required', labels)}/pods?dryRun=All"
        for demands, labels in LABELS.items()
    }


@pytest.mark.parametrize("case", WHERE_REQUIRED)
def test_nobody_opts_out(guarded: Cluster, places: dict[Demands, str], case: str) -> None:
    given, demands, words = WHERE_REQUIRED[case]
    found = refusal(lambda: guarded.api().post(places[demands], given))
    assert words in found
    assert "or label it" not in found


def test_what_a_namespace_leaves_to_its_pods(guarded: Cluster, places: dict[Demands, str]) -> None:
    passing = {"capture.exclude": "inbound tcp 1: x", "udp": "pass"}
    for demands, notes in (
        (REQUIRED_BY, {}),
        (EXCLUSIONS, passing),
        (OPTIONAL, passing),
        (OPTIONAL, {"capture": "none"}),
    ):
        made = guarded.api().post(places[demands], tight(**notes))
        assert [one["name"] for one in made["spec"]["initContainers"]][-1] == "firedoor-sidecar"


# name: (subresource, what is asked for, whether it is refused)
ENTERING: dict[str, tuple[str, list[tuple[str, str]], bool]] = {
    "a shell in the sidecar": ("exec", [("container", "firedoor-sidecar"), ("command", "sh")], True),
    "a shell where the rules are written": ("exec", [("container", "firedoor-capture"), ("command", "sh")], True),
    "another command of the sidecar's": (
        "exec",
        [("container", "firedoor-sidecar"), *(("command", word) for word in ("firedoor", "sidecar", "run"))],
        True,
    ),
    "a shell that is called like it": (
        "exec",
        [("container", "firedoor-sidecar"), *(("command", word) for word in ("sh", "sidecar", "status"))],
        True,
    ),
    "the sidecar's standard input": ("attach", [("container", "firedoor-sidecar"), ("stdin", "true")], True),
    "the sidecar's status": (
        "exec",
        [("container", "firedoor-sidecar"), *(("command", word) for word in ("firedoor", "sidecar", "status"))],
        False,
    ),
    "a shell in the app": ("exec", [("container", "app"), ("command", "sh")], False),
    "the app's standard input": ("attach", [("container", "app"), ("stdin", "true")], False),
    "a shell in the only container": ("exec", [("command", "sh")], False),
}


@pytest.mark.parametrize("case", ENTERING)
def test_nobody_runs_a_program_in_a_sidecar(guarded: Cluster, case: str) -> None:
    """Kubernetes' role `edit` lets who deploys there run programs in its pods."""
    part, asked, refused = ENTERING[case]
    guarded.node("entered")
    path = f"/api/v1/namespaces/{guarded.namespace('entered', INJECTED)}/pods"
    name = guarded.api().post(path, pod(spec={"nodeName": "entered"}))["metadata"]["name"]
    words = "who runs a program in a sidecar has its keys"

    def said(part: str, asked: list[tuple[str, str]]) -> str:
        return refusal(lambda: guarded.api().text("POST", f"{path}/{name}/{part}?{urlencode(asked)}"))

    until(lambda: words in said(*ENTERING["a shell in the sidecar"][:2]), "the policy is in force")
    found = said(part, asked)
    # There is no kubelet, and what is not refused here is so by its absence.
    assert found
    assert (words in found) == refused, found


def test_what_is_forwarded_passes_by_the_sidecar(guarded: Cluster) -> None:
    """`kubectl port-forward` connects from inside of the pod; its namespace says whether anything may pass by."""
    api, words = guarded.api(), "what is forwarded passes by the sidecar"
    guarded.node("forwards")

    def forwarded(labels: dict[str, str]) -> Callable[[], str]:
        path = f"/api/v1/namespaces/{guarded.namespace('forwards', labels)}/pods"
        name = api.post(path, tight(spec={"nodeName": "forwards"}))["metadata"]["name"]
        return lambda: refusal(lambda: api.text("POST", f"{path}/{name}/portforward?ports=9000"))

    held = forwarded(LABELS[REQUIRED_BY])
    until(lambda: words in held(), "the policy is in force")
    for labels in (LABELS[EXCLUSIONS], LABELS[OPTIONAL], INJECTED, {}):
        found = forwarded(labels)()
        # There is no kubelet, and what is not refused here is so by its absence.
        assert found
        assert words not in found


def test_it_holds_where_nobody_injects(guarded: Cluster) -> None:
    """The webhook is away, and so is the policy."""
    none = guarded.namespace("none", REQUIRED | BY_OTHERS)
    path = f"/api/v1/namespaces/{none}/pods"
    found = refusal(lambda: guarded.api().post(path, tight()))
    assert "spec.initContainers: it has no sidecar in front; let the injector put it there" in found
    assert "or label it" not in found
    assert "its namespace requires a sidecar in every pod" in refusal(lambda: guarded.api().post(path, OUT))
    assert guarded.api().get(path)["items"] == []


# name: (the pod's own user, what joins, words; none where it is admitted)
JOINING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing special": ({}, {}, "container debug has no runAsUser, so that its image names the user"),
    "the pod's user": (
        {"runAsUser": 7},
        {"allowPrivilegeEscalation": False},
        "container debug may become the sidecar's user",
    ),
    "root": (
        {},
        {"runAsUser": 0, "allowPrivilegeEscalation": False},
        "spec.ephemeralContainers[0]: container debug may become the sidecar's user and go round it",
    ),
    "no more than the pod's user": ({"runAsUser": 7}, STAYS, ""),
    "a user of its own": ({}, TIGHT, ""),
}


@pytest.mark.parametrize("case", JOINING)
def test_a_container_that_joins(guarded: Cluster, case: str) -> None:
    """As `kubectl debug` adds one."""
    whole, context, words = JOINING[case]
    path = f"/api/v1/namespaces/{guarded.namespace('required', REQUIRED)}/pods"
    given = pod(spec={"securityContext": whole}, container={"securityContext": TIGHT})
    name = guarded.api().post(path, given)["metadata"]["name"]
    ruled(guarded, f"{path}/{name}")
    joining = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x", "securityContext": context}]}}
    found = refusal(lambda: guarded.api().patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC))
    assert words in found
    assert bool(words) == bool(found), found


def test_a_namespace_that_comes_to_require_it(guarded: Cluster) -> None:
    """What runs there goes on, and can be changed as before: nothing that it has can be taken away from it."""
    namespace, api = guarded.namespace("becomes", INJECTED), guarded.api()
    path = f"/api/v1/namespaces/{namespace}/pods"
    with_sidecar = api.post(path, pod())["metadata"]["name"]
    without = api.post(path, pod(labels={"firedoor.dev/inject": "disabled"}))["metadata"]["name"]
    joining = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x"}]}}
    ruled(guarded, f"{path}/{with_sidecar}")
    api.patch(f"{path}/{with_sidecar}/ephemeralcontainers", joining, STRATEGIC)
    api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": REQUIRED}})
    until(lambda: refusal(lambda: api.post(f"{path}?dryRun=All", pod())), "it is required")
    for name in (with_sidecar, without):
        assert api.patch(f"{path}/{name}", {"metadata": {"labels": {"team": "ml"}}})
    more = {"spec": {"ephemeralContainers": [{"name": "more", "image": "x"}]}}
    found = refusal(lambda: api.patch(f"{path}/{with_sidecar}/ephemeralcontainers", more, STRATEGIC))
    assert "has no runAsUser" in found


def test_where_users_are_held(guarded: Cluster) -> None:
    """As the settings say; a word that nobody knows holds them everywhere."""
    api, settings = guarded.api(), "/api/v1/namespaces/firedoor-system/configmaps/firedoor-injector"
    enabled, required = (
        f"/api/v1/namespaces/{guarded.namespace('users', labels)}/pods?dryRun=All" for labels in (INJECTED, REQUIRED)
    )

    def held(path: str) -> bool:
        found = refusal(lambda: api.post(path, pod()))
        assert not found or "has no runAsUser" in found, found
        return bool(found)

    try:
        for word, wanted in (
            *(("everywhere", (True, True)), ("nowhere", (False, False))),
            *(("sometimes", (True, True)), ("required", (False, True))),
        ):
            api.patch(settings, {"data": {"strict_users": word}})
            until(lambda wanted=wanted: (held(enabled), held(required)) == wanted, word)
    finally:
        api.patch(settings, {"data": {"strict_users": "required"}})
        until(lambda: (held(enabled), held(required)) == (False, True), "it is as before")


def test_a_sidecar_of_the_version_before(guarded: Cluster) -> None:
    """While one version follows another both are ours; but a sidecar is of one of them, and stays."""
    api, path = guarded.api(), f"/api/v1/namespaces/{guarded.namespace('versions', INJECTED)}/pods"
    made = api.post(f"{path}?dryRun=All", pod())
    (before,) = RULES.accepted_images
    again = {"metadata": {"generateName": "again-"}, "spec": made["spec"]}
    for one in again["spec"]["initContainers"]:
        one["image"] = before
    for number in (0, 1):
        for image, at in ((RULES.image, 1), ("evil", number)):
            mixed = copy.deepcopy(again)
            mixed["spec"]["initContainers"][number]["image"] = image
            found = refusal(lambda mixed=mixed: api.post(path, mixed))
            assert f"spec.initContainers[{at}].image: it comes with a sidecar that is not the one" in found
    name = api.post(path, again)["metadata"]["name"]
    newer = {"spec": {"initContainers": [{"name": "firedoor-sidecar", "image": RULES.image}]}}
    assert "the image of its sidecar stays" in refusal(lambda: api.patch(f"{path}/{name}", newer, STRATEGIC))
