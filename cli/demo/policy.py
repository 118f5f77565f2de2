# SPDX-License-Identifier: Apache-2.0
"""The policy of the demo: a file a segment, the flows together, and one flow in a file of its own.

The one of its own is what a row takes away while a stream of it is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firedoor.cli.demo.world import LLM_PORT, MIRROR_PORT, MODELS_PORT, TOOLS_PORT, UPLOAD_PORT, World, node

_SEGMENT = """\
# SPDX-License-Identifier: Apache-2.0
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: {name}}}
spec:
  function: {function}
  trust: {trust}
  vlan: {vlan}
  mode: enforce
  members: ["spiffe://{{td}}/segment/{name}/**"]
  # The workload runs as this user, and the broker itself has seen this node: it holds the join token of {name}.
  admission: {{entry: ["unix:uid:{uid}"], node: ["spire_agent:alias:{node}"]}}
"""

_FLOW = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: {name}}}
spec:
  owner: {owner}
  reason: {reason}
  from: {{segment: {source}}}
  to: {{segment: {destination}, port: {port}}}
  allow: [{allow}]
"""

# Function, trust, VLAN.
_SEGMENTS = {
    "inference": ("inference", "medium", 200),
    "registry": ("registry", "high", 310),
    "mcp-tools": ("mcp", "medium", 320),
    "training": ("training", "low", 100),
}


@dataclass(frozen=True)
class _Flow:
    name: str
    owner: str
    reason: str
    source: str
    destination: str
    port: int
    allow: str


_FLOWS = (
    _Flow(
        "inference-pulls-models",
        "ml-platform",
        "model weights at start-up",
        "inference",
        "registry",
        MODELS_PORT,
        '{http: {methods: [GET, HEAD], paths: ["/models/**"]}}',
    ),
    _Flow(
        "inference-mirrors-models",
        "ml-platform",
        "a copy of the store, by a protocol of its own",
        "inference",
        "registry",
        MIRROR_PORT,
        "{tcp: {}}",
    ),
    _Flow(
        "training-publishes-models",
        "research",
        "finished weights",
        "training",
        "registry",
        UPLOAD_PORT,
        '{http: {methods: [PUT], paths: ["/models/**"]}}',
    ),
    _Flow(
        "inference-calls-tools",
        "ml-platform",
        "tools of the assistant",
        "inference",
        "mcp-tools",
        TOOLS_PORT,
        "{http: {methods: [POST], paths: [/mcp]}}",
    ),
    _Flow(
        "tools-ask-the-model",
        "ml-platform",
        "summaries inside a tool",
        "mcp-tools",
        "inference",
        LLM_PORT,
        "{grpc: {service: grpc.health.v1.Health, methods: [Check]}}",
    ),
)
_WATCH = _Flow(
    "tools-watch-the-model",
    "ml-platform",
    "to know at once when the model is gone",
    "mcp-tools",
    "inference",
    LLM_PORT,
    "{grpc: {service: grpc.health.v1.Health, methods: [Watch]}}",
)
_WATCH_FILE = "flow-watch.yaml"


def write_policy(world: World) -> None:
    """Write all segments and flows."""
    world.policy.mkdir(exist_ok=True)
    for name, (function, trust, vlan) in _SEGMENTS.items():
        text = _SEGMENT.format(
            name=name, function=function, trust=trust, vlan=vlan, uid=world.users[name], node=node(name)
        )
        (world.policy / f"segment-{name}.yaml").write_text(text)
    for file, flows in (("flows.yaml", _FLOWS), (_WATCH_FILE, (_WATCH,))):
        text = "".join(_FLOW.format(**vars(flow)) for flow in flows)
        (world.policy / file).write_text("# SPDX-License-Identifier: Apache-2.0\n" + text)


@contextmanager
def without_watch(world: World) -> Iterator[None]:
    """Take the flow with a file of its own out of the policy, and put it back as it was."""
    there, away = world.policy / _WATCH_FILE, world.policy / f"{_WATCH_FILE}.away"
    there.rename(away)
    try:
        yield
    finally:
        away.rename(there)
