# SPDX-License-Identifier: Apache-2.0
"""The DNS relay, to which the rules lead port 53, in the `capture` section.

capture:
  dns:
    names: ["s3.example.org", "**.cluster.local"]  # all, unless this is written out
    resolvers: [10.0.0.10]                         # those of resolv.conf, unless this is written out
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from firedoor.mtls import MtlsError, check_dns_pattern
from firedoor.segments.setting_values import split_host_port
from firedoor.segments.settings import Option, Section
from firedoor.sidecar import resolv
from firedoor.sidecar.resolv import ResolvConf, Resolvers

MOST_NAMES: Final = 1024
MOST_RESOLVERS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Dns:
    """Where the relay listens, and what it is told."""

    listen: tuple[str, ...]
    # None: every name.
    names: tuple[str, ...] | None
    # Empty: those of resolv.conf.
    resolvers: tuple[str, ...]
    # Whether resolv.conf speaks of another network namespace than the sidecar's.
    elsewhere: bool

    def source(self) -> Callable[[], Resolvers]:
        """Return what says whom to ask now."""
        if self.resolvers:
            fixed = Resolvers(self.resolvers)
            return lambda: fixed
        return ResolvConf(elsewhere=self.elsewhere).read


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("capture.dns.names", "NAME", "the only names that may be asked for, such as **.example", several=True),
        option("capture.dns.resolvers", "IP", "whom the DNS relay asks, if not those of resolv.conf", several=True),
    )


def parse(capture: Section, listen: tuple[str, ...], *, elsewhere: bool) -> Dns:
    """Read `capture.dns`."""
    section = capture.section("dns")
    for key, most in (("names", MOST_NAMES), ("resolvers", MOST_RESOLVERS)):
        if len(list(section.items(key))) > most:
            section.findings.add(section.at(key), section.path(key), f"has more than {most} items")
    resolvers = tuple(dict.fromkeys(section.each("resolvers", resolv.resolver)))
    for one in filter(resolv.is_local, resolvers):
        _check_local(section, one, listen, elsewhere=elsewhere)
    names = section.each("names", _pattern)
    all_names = section.get("names") is None
    return Dns(listen=listen, names=None if all_names else names, resolvers=resolvers, elsewhere=elsewhere)


def _check_local(section: Section, one: str, listen: tuple[str, ...], *, elsewhere: bool) -> None:
    where = (section.at("resolvers"), section.path("resolvers"))
    if elsewhere:
        section.findings.add(*where, f"{one}: in the network namespace of `firedoor run` it is another's")
    elif split_host_port(one)[1] in {split_host_port(own)[1] for own in listen}:
        section.findings.add(*where, f"{one}: is the relay itself")


def _pattern(value: str) -> str:
    try:
        check_dns_pattern(value)
    except MtlsError as error:
        raise ValueError(str(error)) from None
    return value
