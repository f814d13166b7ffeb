"""`qtransformer serve` as a process: without torch, with TLS, under signals and under fire."""

from __future__ import annotations

import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controller_fixtures import observation
from serve_fixtures import TEXT, RawSocket, serving
from test_controller import folder  # noqa: F401
from test_protocol import BOMBS, MALFORMED, framed

from qtransformer.cli import main
from qtransformer.deploy.controller import Controller
from qtransformer.serve.client import PolicyClient, PolicyServerError
from qtransformer.serve.protocol import pack

WITHOUT_TORCH = """
import sys

class WithoutTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise AssertionError("torch was asked for")

sys.meta_path.insert(0, WithoutTorch())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_without_torch_until_it_is_told_to_stop(folder: Path, number: signal.Signals):  # noqa: F811
    with serving(folder, before=WITHOUT_TORCH) as (process, port):
        with PolicyClient(f"ws://127.0.0.1:{port}") as client:
            np.testing.assert_allclose(client.infer(observation(0.03, 0.0))["actions"], [[0.3, 0.0]], rtol=1e-6)
            process.send_signal(number)
            assert process.wait(30) == 0
            with pytest.raises(PolicyServerError, match=r"the connection is closed \(.*1001 .*the server stops"):
                client.infer(observation(0.0, 0.0))
        assert process.stderr is not None
        log = process.stderr.read().splitlines()
    assert [re.sub(r"^.* 127.0.0.1:\d+: ", "", line) for line in log] == ["connected, 1 now", "left, 0 now", "stopped"]


def test_tls_and_token(folder: Path, tmp_path: Path):  # noqa: F811
    cert, key, token = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "token"
    make_certificate(cert, key)
    token.write_text("s3cret\n")
    with serving(folder, "--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(token)) as (_, port):
        uri = f"wss://localhost:{port}"
        with PolicyClient(uri, token="s3cret", tls=ssl.create_default_context(cafile=cert)) as client:
            client.infer(observation(0.0, 0.0))
        with pytest.raises(PolicyServerError, match="401"):
            PolicyClient(uri, tls=ssl.create_default_context(cafile=cert))
        with pytest.raises(PolicyServerError, match=r"(?i)certificate"):
            PolicyClient(uri, token="s3cret")
        with pytest.raises(PolicyServerError, match="cannot connect"):
            PolicyClient(f"ws://localhost:{port}", token="s3cret", timeout=5.0)


def make_certificate(cert: Path, key: Path, *more: str) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(cert), "-days", "1"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *names, *files]
    subprocess.run([*command, *(more or ("-nodes",))], check=True, capture_output=True)


def test_an_open_address_is_warned_of(folder: Path):  # noqa: F811
    with serving(folder, "--host", "0.0.0.0") as (process, _):
        assert process.stderr is not None
        assert process.stderr.readline().startswith("warning: whoever reaches this address may ask")


# --- mistakes ---------------------------------------------------------------------------------------------------------


def fail(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["serve", *(str(each) for each in arguments)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("qtransformer serve: error: ")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--max-clients", 0], r"max_clients \(0\) must be above 0; change --max-clients"),
        (["--max-request-bytes", -1], r"max_request_bytes \(-1\) must be above 0"),
        (["--idle-timeout", 0.0], r"idle_timeout \(0.0\) must be above 0"),
        (["--handshake-timeout", "nan"], r"handshake_timeout \(nan\) must be above 0"),
        (["--port", 65_536], r"port \(65536\) must be in 0 .. 65535; change --port"),
        (["--host", "192.0.2.1"], r"cannot listen on 192.0.2.1:8000 \(.*\); choose another --host or --port"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key need each other; give both, or neither"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], r"--tls-cert no.pem, .* cannot be used \(No such file"),
        (["--token-file", "no"], r"--token-file no: cannot be read as plain text \(.*No such file"),
    ],
)
def test_mistakes_in_the_options(folder: Path, capsys: Any, options: list[Any], match: str):  # noqa: F811
    assert re.match(match, fail(capsys, folder, *options))


@pytest.mark.parametrize("secret", ["", " \n", "two words", "two\nlines"])
def test_a_token_is_one_word(folder: Path, tmp_path: Path, capsys: Any, secret: str):  # noqa: F811
    path = tmp_path / "token"
    path.write_text(secret)
    assert fail(capsys, folder, "--token-file", path).endswith(
        "must hold one word, got none or more; write a new secret"
    )


def test_a_token_is_plain_text(folder: Path, tmp_path: Path, capsys: Any):  # noqa: F811
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read as plain text" in fail(capsys, folder, "--token-file", path)


def test_a_key_with_a_passphrase_is_not_asked_for(folder: Path, tmp_path: Path, capsys: Any):  # noqa: F811
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key, "-passout", "pass:secret")
    line = fail(capsys, folder, "--tls-cert", cert, "--tls-key", key)
    assert line.endswith("give PEM files of one certificate, the key without a passphrase")


def test_no_bundle(tmp_path: Path, capsys: Any):
    assert "SHA256SUMS: is missing or damaged" in fail(capsys, tmp_path)


@pytest.mark.parametrize("package", ["msgpack", "websockets"])
def test_without_the_extra(folder: Path, package: str):  # noqa: F811
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from qtransformer.cli import main; sys.exit(main(['serve', {str(folder)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr == f"qtransformer serve: error: serving needs {package}; pip install 'qtransformer[serve]'\n"


# --- under fire -------------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def bad_frame(draw: random.Random) -> bytes:
    """Returns a frame that is no observation: one of the known kinds, a bomb, or a good one cut short or scrambled."""
    good = pack({"state": np.zeros(2, np.float32), "goal": np.zeros(1)})
    kind = draw.randrange(5)
    if kind == 0:
        return framed(draw.choice(MALFORMED)[0])
    if kind == 1:
        return good[: draw.randrange(len(good))]
    if kind == 2:
        return b"\xc1" + draw.randbytes(draw.randrange(200))
    if kind == 3:
        return framed({"state": {b"__ndarray__": True, b"data": draw.randbytes(8), b"dtype": "|O", b"shape": [1]}})
    return draw.choice(BOMBS)[: draw.choice([60_000, 200_000])]


@pytest.mark.slow
@pytest.mark.timeout(900)  # three minutes beside other jobs
def test_10_000_malformed_frames_close_that_connection_only_and_leave_memory_flat(folder: Path):  # noqa: F811
    draw, alone = random.Random(0), Controller(folder).fork()
    alone.reset()
    resident = []
    with serving(folder) as (process, port), PolicyClient(f"ws://127.0.0.1:{port}", timeout=60.0) as bystander:
        assert process.stderr is not None
        largest = bystander.metadata["max_request_bytes"]
        for number in range(10_000):
            frame = bad_frame(draw)
            is_read = len(frame) <= largest
            with RawSocket(port) as raw:
                raw.receive()
                raw.send(frame)
                if is_read:
                    opcode, text = raw.receive()
                    assert opcode == TEXT
                    assert b"\n" not in text
                assert raw.receive_close()[0] == (1011 if is_read else 1009)
            for _ in range(2 + is_read):  # connected, malformed, left: or the pipe would fill
                assert "Traceback" not in process.stderr.readline()
            if number % 1000 == 999:  # the first thousand warms up
                state = observation(number / 1e6, 0.0)
                np.testing.assert_array_equal(bystander.infer(state)["actions"][0], alone.step(state))
                resident.append(resident_bytes(process.pid))
    print("resident MB after each thousand:", [round(each / 1e6, 2) for each in resident])
    assert len(resident) == 10
    assert resident[-1] - resident[0] < 4e6
