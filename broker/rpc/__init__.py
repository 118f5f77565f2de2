# SPDX-License-Identifier: Apache-2.0
"""What the broker answers by gRPC: the authorization table, the one gate in front of every method, and the services."""
