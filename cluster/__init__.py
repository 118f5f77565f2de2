# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster as its client sees it, for the broker and for the sidecar of a node.

`access` is where a server is and as whom we come; `api` asks it, over `http`; `watch` follows a kind of its objects,
which `objects` reads. Nothing here knows what the objects mean.
"""
