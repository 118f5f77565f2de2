# SPDX-License-Identifier: Apache-2.0
"""The migration steps, run in order by `firedoor.broker.db.migrate`."""
