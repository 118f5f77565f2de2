# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between us and a cluster, by whose fault it is.

::

    ClusterError
    ├── AccessUnusable           the address, the CA or the token: whoever configured us must act
    ├── ClusterUnavailable       the server does not answer as it should
    │   ├── WrittenMeanwhile     somebody else has written an object meanwhile
    │   ├── AnswerTooLong        its answer is longer than what may be asked for
    │   └── Gone                 it has forgotten where a watch was to go on
    └── ObjectsUnreadable        what came is not what was asked for: nothing of it is relied upon

`code` is stable; `str()` is a sentence for the person who must act, and holds no token.
"""

from __future__ import annotations

from typing import ClassVar


class ClusterError(Exception):
    """Base of all. Raise a leaf."""

    code: ClassVar[str] = "cluster_error"
    # The name of the gRPC status that a server answers with: another try may help.
    grpc_status: ClassVar[str] = "UNAVAILABLE"


class AccessUnusable(ClusterError):
    """We cannot come as who we are. The sentence begins with the setting: `server`, `ca` or `token`."""

    code = "cluster_access"


class ClusterUnavailable(ClusterError):
    """A server does not answer, or not as it should: whose token it is, or what there is, nobody knows."""

    code = "cluster_unavailable"


class WrittenMeanwhile(ClusterUnavailable):
    """An object was made or changed by somebody else meanwhile: it is read again."""

    code = "cluster_conflict"


class AnswerTooLong(ClusterUnavailable):
    """An answer is longer than it may be: less is asked for, where that can be."""

    code = "cluster_answer"


class Gone(ClusterUnavailable):
    """The server has forgotten the version that a list or a watch was to go on from: all are listed anew."""

    code = "cluster_gone"


class ObjectsUnreadable(ClusterError):
    """Objects that are not what was asked for, or more than there can be."""

    code = "cluster_objects"
