# SPDX-License-Identifier: Apache-2.0
"""`firedoor broker`: the process that issues identities and publishes policy."""

import argparse
from typing import TYPE_CHECKING

from firedoor.cli import backup
from firedoor.cli.daemon import add_options, load_config, report, usage_error
from firedoor.cli.exits import Exit
from firedoor.cli.parsing import Group

if TYPE_CHECKING:
    from firedoor.broker.config import Config

RUN_EXAMPLE = """\
$ firedoor broker run --trust-domain example.org --listen 127.0.0.1:8081 \\
    --data-dir /var/lib/firedoor/broker --segments segments/"""
VALIDATE_EXAMPLE = "$ firedoor broker validate --config broker.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: one flag for each key of the configuration."""
    from firedoor.broker import config

    words = Group(parser)
    run = words.leaf("run", "run the broker in the foreground", RUN_EXAMPLE, run_broker)
    validate = words.leaf("validate", "check the configuration and the policy", VALIDATE_EXAMPLE, run_validate)
    for leaf in (run, validate, *backup.configure(words)):
        add_options(leaf, config.OPTIONS, config.ENVIRONMENT)


def run_broker(options: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    from firedoor import broker

    return int(broker.run(_load(options)) or Exit.DONE)


def run_validate(options: argparse.Namespace) -> int:
    """Load everything that `run` would, and start nothing."""
    from firedoor.broker import config

    return report(config.validate(_load(options)), options.output)


def _load(options: argparse.Namespace) -> "Config":
    from firedoor.broker import config
    from firedoor.broker.errors import ConfigError

    try:
        return load_config(config.load, config.OPTIONS, options, config.ENVIRONMENT)
    except ConfigError as error:
        raise usage_error(error.findings) from None
