# SPDX-License-Identifier: Apache-2.0
"""Every gRPC contract that we speak, as stubs in a descriptor pool of our own.

`*_pb2` are messages, `*_grpc` services: the SPIFFE Workload API (`workload`), SPIRE's server APIs (`agent`, `entry`,
`svid`, `bundle`, with `types`), gRPC's health check (`health`), and ours (`control`, `policy`, `auth`, `admin`).
Nothing here meets the descriptors of another SPIFFE library in the same process.

>>> from firedoor.wire import types
>>> types.SPIFFEID(trust_domain="example.org", path="/db").path
'/db'
"""

from firedoor.wire import details, views, well_known
from firedoor.wire import spire_types as types
from firedoor.wire._generated import firedoor_admin_v1_admin_pb2 as admin_pb2
from firedoor.wire._generated import firedoor_admin_v1_admin_pb2_grpc as admin_grpc
from firedoor.wire._generated import firedoor_auth_v1_auth_pb2 as auth_pb2
from firedoor.wire._generated import firedoor_auth_v1_auth_pb2_grpc as auth_grpc
from firedoor.wire._generated import firedoor_control_v1_control_pb2 as control_pb2
from firedoor.wire._generated import firedoor_control_v1_control_pb2_grpc as control_grpc
from firedoor.wire._generated import firedoor_policy_v1_policy_pb2 as policy_pb2
from firedoor.wire._generated import google_rpc_status_pb2 as rpc_status_pb2
from firedoor.wire._generated import grpc_health_v1_health_pb2 as health_pb2
from firedoor.wire._generated import grpc_health_v1_health_pb2_grpc as health_grpc
from firedoor.wire._generated import spire_api_server_agent_v1_agent_pb2 as agent_pb2
from firedoor.wire._generated import spire_api_server_agent_v1_agent_pb2_grpc as agent_grpc
from firedoor.wire._generated import spire_api_server_bundle_v1_bundle_pb2 as bundle_pb2
from firedoor.wire._generated import spire_api_server_bundle_v1_bundle_pb2_grpc as bundle_grpc
from firedoor.wire._generated import spire_api_server_entry_v1_entry_pb2 as entry_pb2
from firedoor.wire._generated import spire_api_server_entry_v1_entry_pb2_grpc as entry_grpc
from firedoor.wire._generated import spire_api_server_svid_v1_svid_pb2 as svid_pb2
from firedoor.wire._generated import spire_api_server_svid_v1_svid_pb2_grpc as svid_grpc
from firedoor.wire._generated import workload_pb2
from firedoor.wire._generated import workload_pb2_grpc as workload_grpc
from firedoor.wire._pool import POOL

__all__ = [
    "POOL",
    "admin_grpc",
    "admin_pb2",
    "agent_grpc",
    "agent_pb2",
    "auth_grpc",
    "auth_pb2",
    "bundle_grpc",
    "bundle_pb2",
    "control_grpc",
    "control_pb2",
    "details",
    "entry_grpc",
    "entry_pb2",
    "health_grpc",
    "health_pb2",
    "policy_pb2",
    "rpc_status_pb2",
    "svid_grpc",
    "svid_pb2",
    "types",
    "views",
    "well_known",
    "workload_grpc",
    "workload_pb2",
]
