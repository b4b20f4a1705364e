"""The public function `linear_scan`: checks, documentation, dispatch."""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._rows import Rows
from llmasos_xla.kernels.scan import choice
from llmasos_xla.kernels.scan._check import check

AnyArray = Array | np.ndarray


def _candidates(
    a: Any,
    b: Any,
    h0: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    return choice.candidates(check(a, b, h0, lengths, resets, reverse), implementation is not None)


@_dispatch.op(_candidates, Rows(("b", "a", "h0", "lengths", "resets")))
def linear_scan(
    a: Float[AnyArray, "#batch #time #channels"],
    b: Float[AnyArray, "batch time channels"],
    h0: Float[AnyArray, "batch channels"] | None = None,
    *,
    lengths: Integer[AnyArray, " batch"] | None = None,
    resets: Bool[AnyArray, "batch time"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time channels"], Float[Array, "batch channels"]]:
    """The linear recurrence h_t = a_t h_{t-1} + b_t, each channel by itself: h at all steps and the last state.

    It is what is recurrent in minGRU and minLSTM (Feng et al. 2024), HGRN (Qin et al. 2023), the RG-LRU of Griffin (De
    et al. 2024) and real diagonal state spaces. Gates may have any sign and be 0: nothing is computed in logarithms.
    Where steps are computed at once (on GPUs and TPUs), gates are multiplied with each other, and must not overflow so.

    Derivatives of any order keep a and h alone, and are such recurrences themselves: with g the cotangent of h,

        db_t = g_t + a_{t+1} db_{t+1}        da_t = db_t h_{t-1}        dh_0 = a_0 db_0

    For bfloat16 and float16 the state is float32 from step to step and h is rounded once. In its derivative h and db
    are those rounded ones, sums are float32.

    Args:
        a: the gates; an axis of size one holds for all of its batch, time or channels and is not expanded in memory,
            so that `decay[None, None]` is a decay of each channel.
        b: what enters.
        h0: the state to start from; None for zeros. Where b is 16-bit, a and h0 may be float32, each by itself: gates
            near 1 need it, and a state that is handed on from call to call.
        lengths: steps of each row that count, the rest being padding on the right, which is not looked at: h is zero
            there, and the final state is that of the last step that counts (of length 0: `h0`).
        resets: True at steps whose state before is zero, as at the first step of a new sequence in a packed row.
        reverse: from each row's last step that counts to its first. h stays aligned with b; the final state is the one
            after the first step.
        implementation: None chooses; "triton" or "xla" must run.

    Returns:
        h in the dtype of b, and the final state in the dtype of h0, or of b without it.

    Raises:
        ValueError: if shapes disagree, batch, time or channels is empty, or a length known at trace time is not in
            0..time.
        TypeError: if dtypes are not floating or do not go together, lengths are not integers or resets not booleans.

    >>> import jax.numpy as jnp
    >>> h, final = linear_scan(jnp.full((1, 1, 1), 0.5), jnp.ones((1, 4, 1)), jnp.full((1, 1), 2.0))
    >>> h[0, :, 0].tolist(), final.tolist()
    ([2.0, 2.0, 2.0, 2.0], [[2.0]])
    """
    ways = _candidates(a, b, h0, lengths=lengths, resets=resets, reverse=reverse, implementation=implementation)
    h, final = _dispatch.run(linear_scan, ways, implementation)
    return h, final
