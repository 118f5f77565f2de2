# SPDX-License-Identifier: Apache-2.0
"""A network namespace for one command and its sidecar, made and ended by `firedoor run`.

`settings` and `plan` are pure; `linux` has the system calls, `machine` what is changed outside, `child` and `first`
what forked processes do, `run` the order of all this.
"""
