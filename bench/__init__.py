# SPDX-License-Identifier: Apache-2.0
"""Measurements of the parts that are on the way of every request. `make bench` prints them; nothing is asserted."""
