# SPDX-License-Identifier: Apache-2.0
"""The process beside a workload: attests, keeps SVIDs fresh, answers programs, drives the data path."""
