# SPDX-License-Identifier: Apache-2.0
"""Whatever a node sends as a pod's token, and whatever a cluster answers: it is taken or refused with a sentence."""

import contextlib
import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.broker.kubernetes.pod_facts import PodFacts, namespace_labels, node_facts, pod_selectors
from firedoor.certs import CertsError, ClusterKeys, PodEvidence, PodToken, TrustDomain, check_review
from tests.service_accounts import AUDIENCE, TokenIssuer

# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 300)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

TD, ISSUER = TrustDomain.parse("example.org"), TokenIssuer(1_800_000_000)
TOKEN = PodToken.read(ISSUER.token())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("namespace", "pod", "serviceaccount", "node", "name", "uid", "metadata", "spec", "status", "labels", "user")
named = st.recursive(
    json_values, lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=5), max_leaves=8
)


@fuzz
@given(st.dictionaries(st.sampled_from([*ISSUER.claims(), "x"]), named, max_size=4))
def test_claims(changes: dict[str, object]) -> None:
    try:
        found = PodToken.read(ISSUER.token(**changes)).claims
    except CertsError:
        return
    # What is taken fits into one segment of an ID, and into one step of a URL's path.
    assert TD.with_path(f"/spire/agent/k8s_pod/c/{found.pod_uid}").path.count("/") == 5
    for step in (found.namespace, found.pod_name, found.service_account, found.node_name):
        assert not set(step) & set("/%?#\\ \n")
        assert step not in (".", "..")
    pod_selectors("c", found, None, {})


@fuzz
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_bytes(data: bytes) -> None:
    for read in (PodEvidence.read, ClusterKeys.read, lambda b: PodToken.read(b.decode("latin-1"))):
        with contextlib.suppress(CertsError):
            read(data)


@fuzz
@given(named)
def test_what_a_cluster_answers(answer: object) -> None:
    if not isinstance(answer, dict):
        return
    for read in (
        lambda: check_review(TOKEN, {"authenticated": True, "audiences": [AUDIENCE], **answer}, AUDIENCE, 0),
        lambda: PodFacts.read(answer, TOKEN.claims),
        lambda: namespace_labels(answer),
        lambda: node_facts(answer),
    ):
        with contextlib.suppress(CertsError):
            read()
    with contextlib.suppress(CertsError):
        ClusterKeys.read(json.dumps({"keys": [answer]}).encode())
