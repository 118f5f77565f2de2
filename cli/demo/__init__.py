# SPDX-License-Identifier: Apache-2.0
"""A whole firedoor on one machine: a broker, sidecars, and real programs that somebody else wrote, behind them."""
