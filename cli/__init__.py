# SPDX-License-Identifier: Apache-2.0
"""The `firedoor` command: one module a subcommand, imported only when it is called."""
