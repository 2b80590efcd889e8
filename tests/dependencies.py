"""What `pip install 'edge-embed[server]'` brings along, read from what is installed. Run: prints it, with versions."""

from __future__ import annotations

from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "edge-embed"


def brought(*extras: str) -> dict[str, list[Requirement]]:
    """Every package that the project needs with these extras, however indirectly, and who asks for which version."""
    found: dict[str, list[Requirement]] = {}
    waiting = [(PROJECT, frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for requirement in map(Requirement, requires(name) or []):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                continue
            needed = canonicalize_name(requirement.name)
            found.setdefault(needed, []).append(requirement)
            following = (needed, frozenset(requirement.extras))
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


if __name__ == "__main__":
    for package in sorted(brought("server")):
        print(f"{package}=={version(package)}")
