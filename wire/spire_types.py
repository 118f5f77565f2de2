# SPDX-License-Identifier: Apache-2.0
"""Every message of `spire.api.types`."""

from firedoor.wire._generated.spire_api_types_agent_pb2 import Agent, AgentMask
from firedoor.wire._generated.spire_api_types_attestation_pb2 import AttestationData
from firedoor.wire._generated.spire_api_types_bundle_pb2 import Bundle, BundleMask, JWTKey, WITKey, X509Certificate
from firedoor.wire._generated.spire_api_types_entry_pb2 import Entry, EntryMask
from firedoor.wire._generated.spire_api_types_federateswith_pb2 import FederatesWithMatch
from firedoor.wire._generated.spire_api_types_federationrelationship_pb2 import (
    FederationRelationship,
    FederationRelationshipMask,
    HTTPSSPIFFEProfile,
    HTTPSWebProfile,
)
from firedoor.wire._generated.spire_api_types_jointoken_pb2 import JoinToken
from firedoor.wire._generated.spire_api_types_jwtsvid_pb2 import JWTSVID
from firedoor.wire._generated.spire_api_types_logger_pb2 import Logger, LogLevel
from firedoor.wire._generated.spire_api_types_selector_pb2 import Selector, SelectorMatch
from firedoor.wire._generated.spire_api_types_spiffeid_pb2 import SPIFFEID
from firedoor.wire._generated.spire_api_types_status_pb2 import PermissionDeniedDetails, Status
from firedoor.wire._generated.spire_api_types_witsvid_pb2 import WITSVID
from firedoor.wire._generated.spire_api_types_x509svid_pb2 import X509SVID

__all__ = [
    "JWTSVID",
    "SPIFFEID",
    "WITSVID",
    "X509SVID",
    "Agent",
    "AgentMask",
    "AttestationData",
    "Bundle",
    "BundleMask",
    "Entry",
    "EntryMask",
    "FederatesWithMatch",
    "FederationRelationship",
    "FederationRelationshipMask",
    "HTTPSSPIFFEProfile",
    "HTTPSWebProfile",
    "JWTKey",
    "JoinToken",
    "LogLevel",
    "Logger",
    "PermissionDeniedDetails",
    "Selector",
    "SelectorMatch",
    "Status",
    "WITKey",
    "X509Certificate",
]
