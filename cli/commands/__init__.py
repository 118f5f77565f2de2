# SPDX-License-Identifier: Apache-2.0
"""The subcommands, a module each; `firedoor.cli.main` loads the one that is called."""
