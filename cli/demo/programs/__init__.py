# SPDX-License-Identifier: Apache-2.0
"""The programs around which the sidecars stand. They import nothing of firedoor and know nothing of it.

The demo copies them to its folder, so that another user, who may not enter ours, can start them.
"""
