# SPDX-License-Identifier: Apache-2.0
"""Every gRPC contract that we speak, as stubs in a descriptor pool of our own.

`*_pb2` are messages, `*_grpc` services: the SPIFFE Workload API (`workload`), SPIRE's server APIs (`agent`, `entry`,
`svid`, `bundle`, `trustdomain`, `localauthority`, `logger`, `debug`, with `types`) and agent APIs (`delegated`,
`agent_debug`, `agent_logger`), the SPIFFE Broker API (`brokerapi`), gRPC's health check and reflection (`health`,
`reflection`), and ours (`control`, `policy`, `auth`, `admin`).
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
from firedoor.wire._generated import google_rpc_error_details_pb2 as error_details_pb2
from firedoor.wire._generated import google_rpc_status_pb2 as rpc_status_pb2
from firedoor.wire._generated import grpc_health_v1_health_pb2 as health_pb2
from firedoor.wire._generated import grpc_health_v1_health_pb2_grpc as health_grpc
from firedoor.wire._generated import grpc_reflection_v1_reflection_pb2 as reflection_pb2
from firedoor.wire._generated import grpc_reflection_v1_reflection_pb2_grpc as reflection_grpc
from firedoor.wire._generated import grpc_reflection_v1alpha_reflection_pb2 as reflection_alpha_pb2
from firedoor.wire._generated import grpc_reflection_v1alpha_reflection_pb2_grpc as reflection_alpha_grpc
from firedoor.wire._generated import spiffe_broker_brokerapi_pb2 as brokerapi_pb2
from firedoor.wire._generated import spiffe_broker_brokerapi_pb2_grpc as brokerapi_grpc
from firedoor.wire._generated import spire_api_agent_debug_v1_debug_pb2 as agent_debug_pb2
from firedoor.wire._generated import spire_api_agent_debug_v1_debug_pb2_grpc as agent_debug_grpc
from firedoor.wire._generated import spire_api_agent_delegatedidentity_v1_delegatedidentity_pb2 as delegated_pb2
from firedoor.wire._generated import spire_api_agent_delegatedidentity_v1_delegatedidentity_pb2_grpc as delegated_grpc
from firedoor.wire._generated import spire_api_agent_logger_v1_logger_pb2 as agent_logger_pb2
from firedoor.wire._generated import spire_api_agent_logger_v1_logger_pb2_grpc as agent_logger_grpc
from firedoor.wire._generated import spire_api_server_agent_v1_agent_pb2 as agent_pb2
from firedoor.wire._generated import spire_api_server_agent_v1_agent_pb2_grpc as agent_grpc
from firedoor.wire._generated import spire_api_server_bundle_v1_bundle_pb2 as bundle_pb2
from firedoor.wire._generated import spire_api_server_bundle_v1_bundle_pb2_grpc as bundle_grpc
from firedoor.wire._generated import spire_api_server_debug_v1_debug_pb2 as debug_pb2
from firedoor.wire._generated import spire_api_server_debug_v1_debug_pb2_grpc as debug_grpc
from firedoor.wire._generated import spire_api_server_entry_v1_entry_pb2 as entry_pb2
from firedoor.wire._generated import spire_api_server_entry_v1_entry_pb2_grpc as entry_grpc
from firedoor.wire._generated import spire_api_server_localauthority_v1_localauthority_pb2 as localauthority_pb2
from firedoor.wire._generated import spire_api_server_localauthority_v1_localauthority_pb2_grpc as localauthority_grpc
from firedoor.wire._generated import spire_api_server_logger_v1_logger_pb2 as logger_pb2
from firedoor.wire._generated import spire_api_server_logger_v1_logger_pb2_grpc as logger_grpc
from firedoor.wire._generated import spire_api_server_svid_v1_svid_pb2 as svid_pb2
from firedoor.wire._generated import spire_api_server_svid_v1_svid_pb2_grpc as svid_grpc
from firedoor.wire._generated import spire_api_server_trustdomain_v1_trustdomain_pb2 as trustdomain_pb2
from firedoor.wire._generated import spire_api_server_trustdomain_v1_trustdomain_pb2_grpc as trustdomain_grpc
from firedoor.wire._generated import workload_pb2
from firedoor.wire._generated import workload_pb2_grpc as workload_grpc
from firedoor.wire._pool import POOL

__all__ = [
    "POOL",
    "admin_grpc",
    "admin_pb2",
    "agent_debug_grpc",
    "agent_debug_pb2",
    "agent_grpc",
    "agent_logger_grpc",
    "agent_logger_pb2",
    "agent_pb2",
    "auth_grpc",
    "auth_pb2",
    "brokerapi_grpc",
    "brokerapi_pb2",
    "bundle_grpc",
    "bundle_pb2",
    "control_grpc",
    "control_pb2",
    "debug_grpc",
    "debug_pb2",
    "delegated_grpc",
    "delegated_pb2",
    "details",
    "entry_grpc",
    "entry_pb2",
    "error_details_pb2",
    "health_grpc",
    "health_pb2",
    "localauthority_grpc",
    "localauthority_pb2",
    "logger_grpc",
    "logger_pb2",
    "policy_pb2",
    "reflection_alpha_grpc",
    "reflection_alpha_pb2",
    "reflection_grpc",
    "reflection_pb2",
    "rpc_status_pb2",
    "svid_grpc",
    "svid_pb2",
    "trustdomain_grpc",
    "trustdomain_pb2",
    "types",
    "views",
    "well_known",
    "workload_grpc",
    "workload_pb2",
]
