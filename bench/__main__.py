# SPDX-License-Identifier: Apache-2.0
"""One table: how long a decision, a signature and a connection through two listeners take on this machine."""

from bench import connections, decisions, issuing

if __name__ == "__main__":
    print(f"{'what':<52}{'µs':>10}")
    for measure in (decisions.rows, issuing.rows, connections.rows):
        for what, seconds in measure():
            print(f"{what:<52}{seconds * 1e6:>10.1f}", flush=True)
