"""Compressed bodies: what was compressed comes back, and what is cut off, damaged or too large is refused."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.deployment import codings

PACK = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}


def test_every_coding_is_tested():
    assert set(PACK) == set(codings.CODINGS)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(codings.CODINGS))
def test_what_was_compressed_comes_back(content, coding):
    assert codings.unpacked(PACK[coding](content), coding, len(content)) == content


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate"]))
def test_random_bytes_are_refused(content, coding):
    with pytest.raises(ValueError, match="infer: the body is"):
        codings.unpacked(content, coding, 1000)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_refused(coding):
    packed = PACK[coding](b"0" * 10_000_000)
    assert len(packed) < 20_000
    with pytest.raises(codings.TooLargeError):
        codings.unpacked(packed, coding, 9_999_999)
    with pytest.raises(ValueError, match=f"infer: the body is {coding} that is cut off"):
        codings.unpacked(packed[:-1], coding, 10_000_000)
    with pytest.raises(ValueError, match=f"infer: 3 bytes are left over behind the {coding} of the body"):
        codings.unpacked(packed + b"xyz", coding, 10_000_000)
    with pytest.raises(ValueError, match=f"infer: the body is no {coding}"):
        codings.unpacked(packed[:-4] + b"\xff" * 4, coding, 10_000_000)
