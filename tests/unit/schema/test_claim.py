"""A lock that one process at a time can hold."""

from __future__ import annotations

import os
from pathlib import Path

from schema.embedded import Claim


def test_claim_held_by_one_is_refused_to_another(tmp_path: Path) -> None:
    """The error names the holder; after its release the claim can be taken."""
    first, second = Claim(tmp_path / "lock"), Claim(tmp_path / "lock")
    assert second.held() == ""
    assert first.take("the first")
    assert first.take("again")
    assert not second.take("the second")
    assert second.held() == second.holder() == f"the first (pid {os.getpid()})"
    first.release()
    assert second.held() == ""
    assert second.take("the second")
    second.release()
    second.release()


def test_claim_never_made_has_no_holder(tmp_path: Path) -> None:
    """Asking for the holder does not create the file."""
    claim = Claim(tmp_path / "lock")
    assert claim.holder() == claim.held() == ""
    assert not (tmp_path / "lock").exists()
