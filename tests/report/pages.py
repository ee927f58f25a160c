"""What holds for every page that is written: it stands alone, and no script runs but its own."""

from __future__ import annotations

import base64
import hashlib
import re


def own_script_only(text: str) -> bool:
    """Whether the page has one script, which its policy names by hash and which allows no other, and no address."""
    scripts = re.findall(r"<script\b[^>]*>(.*?)</script>", text, re.DOTALL)
    if len(scripts) != 1 or text.count("<script") != 1:
        return False
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:;"
    outside = re.search(r"(src|href)=.?https?:", text) or re.search(
        r"\son\w+=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    )
    return policy in text and outside is None
