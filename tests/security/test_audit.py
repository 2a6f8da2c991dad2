"""The audit says "audited" only of what it has audited."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AUDIT = ROOT / ".ci" / "audit.py"
audit = runpy.run_path(str(AUDIT))
PROBE = "/pypi/{}/{}/json".format(*audit["KNOWN_TO_BE_VULNERABLE"])
KNOWN = {"vulnerabilities": [{"id": "PYSEC-1", "withdrawn": None}]}
CLEAN: dict[str, Any] = {"vulnerabilities": []}
WITHDRAWN = {"vulnerabilities": [{"id": "PYSEC-2", "withdrawn": "2024-01-01T00:00:00Z"}]}
NAME, VERSION = audit["releases"]()[0]
RELEASE = f"/pypi/{NAME}/{VERSION}/json"


@contextmanager
def index(answers: dict[str, object], otherwise: object = CLEAN) -> Iterator[str]:
    """Serve a package index; an answer that is a number is a status, text is sent as it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path, otherwise)
            status = answer if isinstance(answer, int) else 200
            body = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def audited(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 -- our own script
        [sys.executable, AUDIT, "--index", url], capture_output=True, text=True, check=False
    )


def test_what_is_installed_is_audited_release_by_release() -> None:
    with index({PROBE: KNOWN, RELEASE: WITHDRAWN}) as url:
        ran = audited(url)

    everything = len(audit["releases"]())
    assert ran.returncode == 0, ran
    assert f"{everything} of {everything} releases audited" in ran.stdout
    assert everything > 20


def test_one_vulnerable_release_fails_the_audit() -> None:
    with index({PROBE: KNOWN, RELEASE: KNOWN}) as url:
        ran = audited(url)

    assert ran.returncode == 1
    assert f"vulnerable: {NAME} {VERSION}: PYSEC-1" in ran.stdout


@pytest.mark.parametrize("answer", [404, 500, "", "<html>", "[]", "{}", {"vulnerabilities": None}])
def test_one_release_that_nothing_is_known_of_could_not_be_audited(answer: object) -> None:
    with index({PROBE: KNOWN, RELEASE: answer}) as url:
        ran = audited(url)

    assert ran.returncode == 2
    assert f"could not audit: {NAME} {VERSION}" in ran.stderr


@pytest.mark.parametrize("answer", [404, CLEAN, "{}", "<html>"])
def test_an_index_that_knows_of_no_vulnerability_anywhere_audits_nothing(answer: object) -> None:
    with index({PROBE: answer}) as url:
        ran = audited(url)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "is no source of advisories" in ran.stderr


def test_without_an_index_nothing_is_audited() -> None:
    ran = audited("http://127.0.0.1:1")

    assert ran.returncode == 2
    assert "could not audit" in ran.stderr


def test_ci_fails_for_a_vulnerable_release_and_where_an_audit_is_required() -> None:
    """The part of ``.ci/run`` that decides, with an audit that ends as it is told."""
    [decision] = [
        part
        for part in (ROOT / ".ci" / "run").read_text().split("\nstep ")
        if part.startswith('"make audit"')
    ]
    decision = decision.replace(".venv/bin/python .ci/audit.py", "(exit $CODE)")
    assert "(exit $CODE)" in decision
    script = "set -euo pipefail\nstep() { :; }\nmake() { :; }\nstep " + decision
    codes = {
        (code, required): subprocess.run(  # noqa: S603 -- a part of our own script
            ["/bin/bash", "-c", script + "\nexit 0"],
            env={"CODE": str(code), "AUDIT": required},
            capture_output=True,
            check=False,
        ).returncode
        != 0
        for code in (0, 1, 2)
        for required in ("", "required")
    }

    assert {case for case, failed in codes.items() if failed} == {
        (1, ""), (1, "required"), (2, "required"),
    }  # fmt: skip
