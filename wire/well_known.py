# SPDX-License-Identifier: Apache-2.0
"""The well-known types that our messages refer to. Those of `google.protobuf` belong to another pool and do not fit."""

from firedoor.wire._generated.google_protobuf_any_pb2 import Any
from firedoor.wire._generated.google_protobuf_empty_pb2 import Empty
from firedoor.wire._generated.google_protobuf_struct_pb2 import ListValue, Struct, Value
from firedoor.wire._generated.google_protobuf_wrappers_pb2 import BoolValue, StringValue

__all__ = ["Any", "BoolValue", "Empty", "ListValue", "StringValue", "Struct", "Value"]
