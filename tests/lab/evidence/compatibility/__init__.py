"""What stacks with what: every sampling node of the pack beside everything of core that touches a sampling."""

from lab.evidence.compatibility.page import write

__all__ = ["write"]
