"""Pages that are whole in themselves: one file, which neither loads from elsewhere nor sends there."""

import base64
import hashlib
import re
from collections.abc import Mapping


def headers(page: bytes) -> Mapping[str, str]:
    """What a page is sent with: its own script and style run, by their digests, and nothing else does.

    >>> headers(b"<script>1</script>")["Content-Security-Policy"].split("; ")[1]
    "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
    """
    policy = {
        "default-src": "'none'",
        "script-src": _digests(page, b"script"),
        "style-src": _digests(page, b"style"),
        "connect-src": "'self'",
        "img-src": "blob: data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {what}" for name, what in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _digests(page: bytes, element: bytes) -> str:
    found = re.findall(rb"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
