# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the broker, by whose fault it is.

::

    BrokerError
    ├── CallerError              the caller asked for something that cannot be
    │   ├── InvalidRequest       the request is malformed
    │   ├── NotFound             what it names is not there
    │   ├── AlreadyExists        it is there already
    │   ├── Conflict             the state does not allow it now
    │   │   └── Stale            another broker changed it at the same time
    │   ├── Unsupported          this broker does not serve it
    │   ├── RateLimited          too much in too short a time
    │   ├── TooSlow              the answer did not come in time
    │   └── Unauthenticated      nobody knows who is calling
    ├── AgentError               the agent's standing does not allow the call
    │   ├── NotAuthorized        the authorization table says no
    │   ├── AgentExpired
    │   ├── AgentNotAttested
    │   ├── AgentNotActive
    │   ├── AgentBanned
    │   ├── AgentMustReattest
    │   └── AttestationRefused   the evidence does not prove what it should
    ├── WorkloadError            the identity may not be issued
    │   ├── NotEntitled          the agent is not entitled to the entry
    │   └── NotAdmitted          the segment does not admit the ID
    └── BrokerFault              the broker cannot do what it should
        ├── ConfigError          the configuration is wrong (file, line, key)
        ├── DatabaseError        the database does not answer or is full
        ├── StorageError         a file cannot be written or read
        ├── BackupError          a backup cannot be made, or is not what it should be
        ├── AuthorityError       there is no authority that can sign
        │   └── KeysAway         the key manager does not answer
        ├── PolicyUnavailable    no segments are declared
        ├── EndpointError        a bundle endpoint, or a host that attests, does not answer as it should
        └── Starting             not ready yet

`str()` is a sentence for the person who must act. No message carries a key, a token or a selector's value.
"""

from __future__ import annotations

from typing import ClassVar


class BrokerError(Exception):
    """Base of all errors of the broker."""

    code: ClassVar[str] = "broker_error"


class CallerError(BrokerError):
    """The caller asked for something that cannot be."""

    code = "caller_error"


class InvalidRequest(CallerError):
    """The request is malformed."""

    code = "invalid_request"


class NotFound(CallerError):
    """What the request names is not there."""

    code = "not_found"


class AlreadyExists(CallerError):
    """What the request would make is there already."""

    code = "already_exists"


class Conflict(CallerError):
    """The present state does not allow the request."""

    code = "conflict"


class Stale(Conflict):
    """Another broker changed what the request was decided by; decided anew it may well succeed."""

    code = "stale"


class Unsupported(CallerError):
    """The broker does not serve what was asked."""

    code = "unsupported"


class RateLimited(CallerError):
    """The caller asked too much in too short a time."""

    code = "rate_limited"


class TooSlow(CallerError):
    """The caller did not answer in time."""

    code = "too_slow"


class Unauthenticated(CallerError):
    """Nobody knows who is calling."""

    code = "unauthenticated"


class AgentError(BrokerError):
    """The agent's standing does not allow the call."""

    code = "agent_error"


class NotAuthorized(AgentError):
    """The authorization table does not let this caller use this method."""

    code = "not_authorized"


class AgentExpired(AgentError):
    """The agent's certificate has expired."""

    code = "agent_expired"


class AgentNotAttested(AgentError):
    """No attested agent has this ID."""

    code = "agent_not_attested"


class AgentNotActive(AgentError):
    """The certificate is not the agent's present one."""

    code = "agent_not_active"


class AgentBanned(AgentError):
    """The agent is banned."""

    code = "agent_banned"


class AgentMustReattest(AgentError):
    """The agent attests again instead of renewing."""

    code = "agent_must_reattest"


class AttestationRefused(AgentError):
    """The evidence does not prove what it should."""

    code = "attestation_refused"


class WorkloadError(BrokerError):
    """The identity may not be issued."""

    code = "workload_error"


class NotEntitled(WorkloadError):
    """The agent is not entitled to the entry."""

    code = "not_entitled"


class NotAdmitted(WorkloadError):
    """The segment does not admit the ID. `redacted` is the sentence without a selector's value, for logs."""

    code = "not_admitted"

    def __init__(self, message: str, redacted: str = "") -> None:
        super().__init__(message)
        self.redacted = redacted or message


class BrokerFault(BrokerError):
    """The broker cannot do what it should."""

    code = "broker_fault"


class ConfigError(BrokerFault):
    """The configuration is wrong. `findings` has a line for each problem, with file, line and key."""

    code = "config"

    def __init__(self, *findings: str) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


class DatabaseError(BrokerFault):
    """The database does not answer, is full or is broken; nothing was half-written."""

    code = "database"


class StorageError(BrokerFault):
    """A file or folder of the broker cannot be read or written."""

    code = "storage"


class BackupError(BrokerFault):
    """A backup cannot be made, or cannot be restored; nothing was changed."""

    code = "backup"


class AuthorityError(BrokerFault):
    """There is no authority that can sign."""

    code = "authority"


class KeysAway(AuthorityError):
    """The key manager does not answer: nothing is signed until it is back, and all else goes on."""

    code = "key_manager_away"


class PolicyUnavailable(BrokerFault):
    """No segments are declared, so nothing may be issued."""

    code = "no_policy"


class EndpointError(BrokerFault):
    """Another trust domain's bundle endpoint, or a host that attests, does not answer, or not as it should."""

    code = "bundle_endpoint"


class Starting(BrokerFault):
    """The broker is not ready yet."""

    code = "starting"
