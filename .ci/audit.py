"""Ask the package index whether any installed release is known to be vulnerable.

    python .ci/audit.py [--index https://pypi.org]

Exits with 0 only if every release was asked about and none is vulnerable; with 1 if one is; with 2
if any could not be asked about. A source that says nothing is no source: it must first know of a
release that is vulnerable for certain. (``pip-audit`` exits with 0 when it could audit nothing.)

The index's JSON interface takes its answers from the Python Packaging Advisory Database:
https://docs.pypi.org/api/json/#known-vulnerabilities
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

KNOWN_TO_BE_VULNERABLE = ("urllib3", "1.24.1")  # CVE-2019-11324 and others
NOT_ON_AN_INDEX = {"datapatterns"}
TIMEOUT_SECONDS = 15.0
ANSWER_BYTES_MAX = 50_000_000

AUDITED, VULNERABLE, COULD_NOT_AUDIT = 0, 1, 2


@dataclass(frozen=True)
class Answer:
    """What the index says of a release; ``reason`` if it says nothing."""

    name: str
    version: str
    advisories: tuple[str, ...] = ()
    reason: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Audit what is installed beside this Python, and return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--index", default="https://pypi.org", help="whose JSON interface to ask")
    index = parser.parse_args(arguments).index.rstrip("/")
    probe = ask(index, *KNOWN_TO_BE_VULNERABLE)
    if not probe.advisories:
        name, version = KNOWN_TO_BE_VULNERABLE
        said = probe.reason or f"it knows of no vulnerability in {name} {version}, which has some"
        print(f"could not audit: {index} is no source of advisories: {said}", file=sys.stderr)
        return COULD_NOT_AUDIT
    installed = releases()
    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(lambda release: ask(index, *release), installed))
    return report(answers)


def releases() -> list[tuple[str, str]]:
    """Return name and version of everything that is installed, except what is not on an index."""
    found = {(d.metadata["Name"], d.version) for d in distributions()}
    return sorted((n, v) for n, v in found if n.lower() not in NOT_ON_AN_INDEX)


def ask(index: str, name: str, version: str) -> Answer:
    """Return what ``index`` says of one release."""
    try:
        described = _get(f"{index}/pypi/{name}/{version}/json")
    except (OSError, ValueError) as error:
        return Answer(name, version, reason=f"{type(error).__name__}: {error}")
    found = described.get("vulnerabilities") if isinstance(described, dict) else None
    if not isinstance(found, list):
        return Answer(name, version, reason="the answer says nothing of vulnerabilities")
    still = [each for each in found if not each.get("withdrawn")]
    return Answer(name, version, tuple(str(each.get("id")) for each in still))


def report(answers: list[Answer]) -> int:
    """Print what was found and return the exit code."""
    vulnerable = [answer for answer in answers if answer.advisories]
    unknown = [answer for answer in answers if answer.reason]
    for answer in vulnerable:
        print(f"vulnerable: {answer.name} {answer.version}: {', '.join(answer.advisories)}")
    for answer in unknown:
        print(f"could not audit: {answer.name} {answer.version}: {answer.reason}", file=sys.stderr)
    print(f"{len(answers) - len(unknown)} of {len(answers)} releases audited")
    if vulnerable:
        return VULNERABLE
    return COULD_NOT_AUDIT if unknown or not answers else AUDITED


def _get(url: str) -> Any:  # noqa: ANN401 -- JSON
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
        return json.loads(response.read(ANSWER_BYTES_MAX))


if __name__ == "__main__":
    sys.exit(main())
