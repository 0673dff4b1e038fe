"""Let the sites whose public keys lie below /sites in: each `NAME.pub` is registered as NAME."""

import sys
from pathlib import Path

from flower_command import CONNECTION, connect, flwr, reason

KNOWN = "already in use"


def main() -> int:
    """Register every key; one that is known already is no mistake."""
    keys = sorted(Path("/sites").rglob("*.pub"))
    if not keys:
        print("error: no public key below /sites", file=sys.stderr)
        return 2
    connect()
    failed = 0
    for key in keys:
        answer = flwr("supernode", "register", str(key), CONNECTION, "--name", key.stem)
        if answer.get("success"):
            print(f"{key.stem}: registered")
        elif KNOWN in reason(answer):
            print(f"{key.stem}: registered before")
        else:
            print(f"error: {key.stem}: {reason(answer)}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
