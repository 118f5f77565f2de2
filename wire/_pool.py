# SPDX-License-Identifier: Apache-2.0
"""The descriptor pool of our own stubs.

The Workload API has no proto package, so that every SPIFFE library registers the same names, and the default pool
refuses the second one. Our messages live in a pool that nobody else sees, the well-known types among them.
"""

from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal import builder

POOL = descriptor_pool.DescriptorPool()


def load(serialized: bytes, module: dict[str, Any]) -> FileDescriptor:
    """Register one file descriptor and put its messages and enums into a generated module's globals."""
    POOL.AddSerializedFile(serialized)
    name = module["__name__"]
    descriptor = POOL.FindFileByName(module["SOURCE"])
    builder.BuildMessageAndEnumDescriptors(descriptor, module)
    builder.BuildTopDescriptorsAndMessages(descriptor, name, module)
    return descriptor
