# SPDX-License-Identifier: Apache-2.0
"""The chart is one that a real helm takes, what it writes is read by the broker, and wrong values are refused."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.broker import config as broker_config
from firedoor.broker.metrics import Metrics
from firedoor.broker.policy_origin import Files, read_files
from tests.peers.build import Missing, binary

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm/firedoor"
MANIFESTS = DEPLOY / "kubernetes/broker.yaml"
TD = ("--set", "trustDomain=example.org")
POSTGRES = (
    *("--set", "broker.database=postgresql://firedoor@db/firedoor?sslmode=verify-full"),
    *("--set", "broker.databaseSecret=database"),
)
ALL = (
    *(*TD, *POSTGRES),
    *("--set", "broker.replicas=3", "--set", "broker.passphraseSecret=keys", "--set", "broker.bundleEndpoint=true"),
    *(
        "--set",
        "broker.cluster=prod",
        "--set",
        "broker.config.ca_ttl=48h",
        "--set",
        "networkPolicy.metricsFrom[0].podSelector.matchLabels.a=b",
    ),
    *(
        "--set",
        "monitoring.serviceMonitor=true",
        "--set",
        "monitoring.rules=true",
        "--set",
        "monitoring.dashboard=true",
    ),
    *("--set-file", f"broker.segments.policy\\.yaml={DEPLOY / 'segments/ai-cluster/training.yaml'}"),
)
CLUSTER = (
    *TD,
    "--set",
    "broker.cluster=prod",
    "--set",
    "broker.policyFromCluster=true",
    "--set",
    "injector.enabled=true",
)
POLICIES = (
    *(*TD, "--set", "broker.cluster=prod", "--set", "injector.enabled=true"),
    *("--set", "injector.policy=admission-policy", "--set", "guards.enabled=true"),
    *("--set", "controllers.enabled=true", "--set", "controllers.config.trust_bundle=true"),
)
# What would write further lines, were it written as it is.
MORE = "x\nhostNetwork: true"
METRIC = re.compile(r"firedoor_broker_[a-z_]+")


class Strict(yaml.SafeLoader):
    """Takes no key that stands twice: of two labels of one name a cluster keeps one."""


def _mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    assert len({key for key, _ in pairs}) == len(pairs), node.start_mark
    return dict(pairs)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.load_all(text, Loader=Strict) if one]


Helm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    try:
        program = binary("helm", "helm")
    except Missing as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("helm")
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], capture_output=True, text=True, env=env, timeout=120)

    return run


def render(helm: Helm, *words: str) -> list[dict[str, Any]]:
    ran = helm("template", "firedoor", str(CHART), "--namespace", "firedoor-system", *words)
    assert ran.returncode == 0, ran.stderr
    return documents(ran.stdout)


def found(rendered: list[dict[str, Any]], kind: str, name: str = "firedoor-broker") -> dict[str, Any]:
    (one,) = (one for one in rendered if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return one


@pytest.mark.parametrize("words", [TD, ALL, CLUSTER, POLICIES], ids=["least", "all", "cluster", "policies"])
def test_lint(helm: Helm, words: tuple[str, ...]) -> None:
    ran = helm("lint", "--strict", str(CHART), *words)
    assert (ran.returncode, "0 chart(s) failed" in ran.stdout) == (0, True), ran.stdout + ran.stderr


@pytest.mark.parametrize("words", [TD, ALL, CLUSTER, POLICIES], ids=["least", "all", "cluster", "policies"])
def test_the_broker_reads_its_configuration(helm: Helm, words: tuple[str, ...], tmp_path: Path) -> None:
    rendered = render(helm, *words)
    file = tmp_path / "broker.yaml"
    file.write_text(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    config = broker_config.load(file, {}, {})
    assert (config.trust_domain.name, config.listen, config.metrics) == ("example.org", "0.0.0.0:8081", "0.0.0.0:9090")
    if words is ALL:
        assert (config.ca_ttl, config.database.partition(":")[0]) == (48 * 3600, "postgresql")
        mounts = {one["mountPath"] for one in container(rendered)["volumeMounts"]}
        for path in (config.segments, config.key_passphrase_file, config.database_password_file):
            assert path is not None
            assert mounts & {str(path), str(path.parent)}


def container(rendered: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = found(rendered, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(one)


@pytest.mark.parametrize("words", [TD, ALL, CLUSTER], ids=["least", "all", "cluster"])
def test_the_pod_is_shut(helm: Helm, words: tuple[str, ...]) -> None:
    rendered = render(helm, *words)
    pod = found(rendered, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(rendered)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The token of the service account is there when the broker needs it, and may do what is said.
    assert pod["automountServiceAccountToken"] == (words is not TD)
    assert allowed(rendered) == {TD: set(), ALL: REVIEWS, CLUSTER: REVIEWS | WEBHOOK | POLICY}[words]


REVIEWS = {
    ("authentication.k8s.io", "tokenreviews", "create"),
    *(("", what, "get") for what in ("pods", "namespaces", "nodes")),
}
WEBHOOK = {("admissionregistration.k8s.io", "mutatingwebhookconfigurations", verb) for verb in ("get", "patch")}
POLICY = {
    *(("firedoor.dev", what, verb) for what in ("segments", "flows", "services") for verb in ("get", "list", "watch")),
    *(("firedoor.dev", f"{what}/status", "patch") for what in ("segments", "flows", "services")),
}


def allowed(rendered: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """Return what the broker's account may do."""
    rules = [rule for one in rendered if one["kind"] == "ClusterRole" for rule in one["rules"]]
    return {
        (group, what, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_webhook_is_where_the_broker_is(helm: Helm) -> None:
    rendered = render(helm, *CLUSTER)
    hooks = found(rendered, "MutatingWebhookConfiguration", "firedoor-system-firedoor-injector")["webhooks"]
    (config,) = (one["injector"] for one in documents(found(rendered, "ConfigMap")["data"]["broker.yaml"]))
    service = hooks[0]["clientConfig"]["service"]
    assert config["names"] == [f"{service['name']}.{service['namespace']}.svc"]
    assert config["webhook"] == "firedoor-system-firedoor-injector"


def test_everything_is_of_the_release(helm: Helm) -> None:
    for one in (*render(helm, *ALL), *render(helm, *CLUSTER), *render(helm, *POLICIES)):
        labels = one["metadata"]["labels"]
        assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/instance"]) == (
            "firedoor-broker",
            "firedoor",
        )
        assert one["metadata"].get("namespace", "firedoor-system") == "firedoor-system"


def test_what_selects_brokers_selects_their_pods(helm: Helm) -> None:
    rendered = render(helm, *ALL)
    pod = found(rendered, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        *(one["spec"]["selector"] for one in rendered if one["kind"] == "Service"),
        found(rendered, "StatefulSet")["spec"]["selector"]["matchLabels"],
        found(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        found(rendered, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= pod.items()
    scraped = found(rendered, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    of = [
        one["metadata"]["name"]
        for one in rendered
        if one["kind"] == "Service" and scraped.items() <= one["metadata"]["labels"].items()
    ]
    assert of == ["firedoor-broker-each"]


REFUSED = {
    "no trust domain": ((), "trustDomain"),
    "a trust domain in capitals": (("--set", "trustDomain=Example.org"), "trustDomain"),
    "an unknown value": ((*TD, "--set", "broker.replica=2"), "replica"),
    "no broker": ((*TD, "--set", "broker.replicas=0"), "replicas"),
    "several brokers on SQLite": ((*TD, "--set", "broker.replicas=2"), "needs broker.database"),
    "another database": ((*TD, "--set", "broker.database=mysql://a"), "database"),
    "an injector for no cluster": ((*TD, "--set", "injector.enabled=true"), "needs broker.cluster"),
    "guards of no cluster": ((*TD, "--set", "guards.enabled=true"), "needs broker.cluster"),
    "controllers of no cluster": ((*TD, "--set", "controllers.enabled=true"), "needs broker.cluster"),
    "a policy that nothing guards": ((*POLICIES, "--set", "guards.enabled=false"), "needs guards.enabled"),
    "users that are held sometimes": ((*CLUSTER, "--set", "injector.strictUsers=sometimes"), "strictUsers"),
    "an image that is none": ((*CLUSTER, "--set", "injector.acceptedImages={a b}"), "acceptedImages"),
    "another injector": ((*CLUSTER, "--set", "injector.policy=none"), "policy"),
    "controllers of another namespace": ((*POLICIES, "--set", "controllers.config.namespace=x"), "config"),
    "controllers of another bundle": ((*POLICIES, "--set", "controllers.config.bundle_config_map=x"), "config"),
    "controllers beside the chart's": ((*TD, "--set", "broker.config.kubernetes_controllers.cluster=x"), "config"),
    "a policy of no cluster": ((*TD, "--set", "broker.policyFromCluster=true"), "needs broker.cluster"),
    "two policies": ((*CLUSTER, "--set", "broker.segments.a\\.yaml=b"), "remove one"),
    "a secret for no database": ((*TD, "--set", "broker.databaseSecret=a"), "there is no broker.database"),
    "a key that the chart decides": ((*TD, "--set", "broker.config.listen=0.0.0.0:1"), "config"),
    "a word for a switch": ((*TD, "--set-string", "networkPolicy.enabled=yes"), "enabled"),
    "a priority that is more than a name": ((*TD, "--set", f"broker.priorityClassName={MORE}"), "priorityClassName"),
    "storage that is more than a name": ((*TD, "--set", f"broker.storage.className={MORE}"), "className"),
    "a database's secret that is more than a name": (
        (*TD, *POSTGRES, "--set", f"broker.databaseSecret={MORE}"),
        "databaseSecret",
    ),
    "a passphrase's secret that is more than a name": (
        (*TD, "--set", f"broker.passphraseSecret={MORE}"),
        "passphraseSecret",
    ),
    "a policy that is no YAML file": ((*TD, "--set", "broker.segments.a=b"), "invalid propertyName 'a'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_values_are_refused(helm: Helm, name: str) -> None:
    words, said = REFUSED[name]
    ran = helm("template", "firedoor", str(CHART), *words)
    assert ran.returncode != 0
    assert said in ran.stderr


def test_names_stay_names(helm: Helm) -> None:
    """Some are words of YAML."""
    words = [f"broker.{key}=true" for key in ("priorityClassName", "passphraseSecret", "storage.className")]
    rendered = render(helm, *TD, *POSTGRES, *(f"--set-string={word}" for word in (*words, "broker.databaseSecret=1e3")))
    spec = found(rendered, "StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    secrets = [one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one]
    (claim,) = spec["volumeClaimTemplates"]
    assert (pod["priorityClassName"], claim["spec"]["storageClassName"]) == ("true", "true")
    assert secrets == ["1e3", "true"]


SCRIPT = runpy.run_path(str(DEPLOY.parent / ".ci/manifests.py"))


def test_the_manifests_are_the_chart(helm: Helm) -> None:
    """The fixture skips where there is no helm."""
    assert helm("version").returncode == 0
    for path, text in SCRIPT["rendered"](str(binary("helm", "helm"))).items():
        assert path.read_text() == text, "run .venv/bin/python .ci/manifests.py"


def test_the_chart_has_what_the_manifests_have() -> None:
    copies = SCRIPT["copies"]()
    assert {path: path.read_text() for path in copies} == copies, "run .venv/bin/python .ci/manifests.py"
    assert set((CHART / "crds").iterdir()) <= set(copies)


def test_the_api_server_does_without_a_webhook(helm: Helm) -> None:
    """What it is told is what a broker that is asked is told."""
    rendered = render(helm, *POLICIES)
    kinds = [one["kind"] for one in rendered]
    assert "MutatingWebhookConfiguration" not in kinds
    assert "injector" not in documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])[0]
    (asked,) = documents(found(render(helm, *CLUSTER), "ConfigMap")["data"]["broker.yaml"])
    told = found(rendered, "ConfigMap", "firedoor-injector")["data"]
    assert told["broker"] == ",".join(asked["injector"]["broker"])
    for key in ("image", "cluster", "uid", "bundle_config_map", "strict_users"):
        assert told[key] == str(asked["injector"][key])
    for file in ("guards.yaml", "injector-policy.yaml"):
        for one in documents((DEPLOY / "kubernetes" / file).read_text()):
            assert found(rendered, one["kind"], one["metadata"]["name"])["spec"] == one["spec"]


def test_further_images_are_told_to_both(helm: Helm) -> None:
    words = ("--set", "injector.acceptedImages={a:1,b:2}", "--set", "injector.strictUsers=everywhere")
    (asked,) = documents(found(render(helm, *CLUSTER, *words), "ConfigMap")["data"]["broker.yaml"])
    told = found(render(helm, *POLICIES, *words), "ConfigMap", "firedoor-injector")["data"]
    assert (asked["injector"]["accepted_images"], told["accepted_images"]) == (["a:1", "b:2"], "a:1,b:2")
    assert asked["injector"]["strict_users"] == told["strict_users"] == "everywhere"


def test_where_sidecars_are_required_no_answer_is_no_pod(helm: Helm) -> None:
    rendered = render(helm, *CLUSTER, "--set", "injector.failurePolicy=Ignore")
    hooks = found(rendered, "MutatingWebhookConfiguration", "firedoor-system-firedoor-injector")["webhooks"]
    for hook in hooks:
        required = hook["clientConfig"]["service"]["path"].startswith("/inject/required")
        assert hook["failurePolicy"] == ("Fail" if required else "Ignore")


def test_what_is_delivered_is_in_the_namespace_of_the_release(helm: Helm) -> None:
    ran = helm("template", "other", str(CHART), "--namespace", "elsewhere", *POLICIES)
    assert "firedoor-system" not in ran.stdout
    rendered = documents(ran.stdout)
    (account,) = found(rendered, "ClusterRoleBinding", "firedoor-controllers")["subjects"]
    assert (account["namespace"], account["name"]) == (
        "elsewhere",
        found(rendered, "ServiceAccount", account["name"])["metadata"]["name"],
    )
    bound = found(rendered, "ValidatingAdmissionPolicyBinding", "firedoor-pods-namespaces")["spec"]
    assert bound["paramRef"]["namespace"] == "elsewhere"


def test_controllers_may_do_what_the_manifest_says(helm: Helm) -> None:
    rendered = render(helm, *POLICIES)
    for one in documents((DEPLOY / "kubernetes/controllers.yaml").read_text()):
        given = found(rendered, one["kind"], one["metadata"]["name"])
        for key in one.keys() - {"metadata"}:
            assert given[key] == one[key]
    (config,) = documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    assert config["kubernetes_controllers"] == {"cluster": "prod", "namespace": "firedoor-system", "trust_bundle": True}


def test_sidecars_and_controllers_have_one_bundle(helm: Helm) -> None:
    rendered = render(helm, *POLICIES, "--set", "injector.bundleConfigMap=roots")
    (config,) = documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    assert config["kubernetes_controllers"]["bundle_config_map"] == "roots"
    assert found(rendered, "ConfigMap", "firedoor-injector")["data"]["bundle_config_map"] == "roots"
    rules = found(rendered, "ClusterRole", "firedoor-controllers")["rules"]
    named = [one["resourceNames"] for one in rules if one["resources"] == ["configmaps"] and "resourceNames" in one]
    assert named == [["roots"]]


def test_who_may_ask_for_certificates_of_pods(helm: Helm) -> None:
    rendered = render(helm, *POLICIES, "--set", "controllers.config.pod_certificates=true")
    for one in documents((DEPLOY / "kubernetes/pod-certificates.yaml").read_text()):
        assert found(rendered, one["kind"], one["metadata"]["name"])["spec"] == one["spec"]
    names = [one["metadata"]["name"] for one in render(helm, *POLICIES)]
    assert "firedoor-pod-certificates" not in names


def test_alerts_and_dashboard_read_what_there_is(helm: Helm) -> None:
    served = set(re.findall(r"^# TYPE (firedoor_broker_\w+)", Metrics().text().decode(), re.M))
    served |= {f"{name}_bucket" for name in served}
    alerts = (CHART / "files/alerts.yaml").read_text()
    dashboard = (CHART / "files/dashboard.json").read_text()
    (groups,) = (one["groups"] for one in documents(alerts))
    rules = [rule for group in groups for rule in group["rules"]]
    panels = json.loads(dashboard)["panels"]
    expressions = [rule["expr"] for rule in rules] + [t["expr"] for panel in panels for t in panel["targets"]]
    for expression in expressions:
        assert METRIC.findall(expression), expression
        assert set(METRIC.findall(expression)) <= served
    rendered = render(helm, *ALL)
    assert found(rendered, "PrometheusRule")["spec"]["groups"] == groups
    assert json.loads(
        found(rendered, "ConfigMap", "firedoor-broker-dashboard")["data"]["firedoor-broker.json"]
    ) == json.loads(dashboard)


def test_an_edit_of_a_mounted_policy_is_noticed(tmp_path: Path) -> None:
    """A kubelet replaces a ConfigMap by turning one link; names with dots at their head are its own."""
    volume = tmp_path / "segments"
    volume.mkdir()
    for version in ("..1", "..2"):
        (volume / version).mkdir()
        (volume / version / "policy.yaml").write_text(f"# {version}\n")
    (volume / "..data").symlink_to("..1")
    (volume / "policy.yaml").symlink_to("..data/policy.yaml")
    origin = Files(volume)
    before = origin.fingerprint()
    assert [one.text for one in read_files(volume)] == ["# ..1\n"]
    (volume / "..data_tmp").symlink_to("..2")
    (volume / "..data_tmp").rename(volume / "..data")
    assert origin.fingerprint() != before
    assert [one.text for one in read_files(volume)] == ["# ..2\n"]
