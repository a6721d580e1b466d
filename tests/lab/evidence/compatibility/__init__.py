"""What works together with what: every sampling node of the pack with everything of core that takes part in sampling."""

from lab.evidence.compatibility.page import write

__all__ = ["write"]
