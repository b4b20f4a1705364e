"""The linear assignment problem inside of a compiled program: who is matched with whom at the least total cost."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def assignment(
    cost: Float[Array, "queries objects"], real: Bool[Array, " objects"] | None = None
) -> Int[Array, " objects"]:
    """The query of each object, all different, whose costs add up to the least (Kuhn 1955; Jonker and Volgenant 1987).

    As `scipy.optimize.linear_sum_assignment`, but compiled, batched by `jax.vmap` and of fixed shape. Objects join one
    after the other by a shortest path of changed matches, so n objects take at most n^2 steps over the queries, mostly
    few more than n. Costs that are NaN or infinite are matched last. There is no gradient: the costs' is stopped.

    Args:
        cost: of each pair.
        real: objects that are False are padding: they are matched with nobody, which is -1, and change nothing.

    Raises ValueError for more objects than queries.

    >>> assignment(jnp.array([[4.0, 1.0], [2.0, 0.0], [3.0, 2.0]])).tolist()
    [1, 0]
    """
    queries, objects = cost.shape
    if objects > queries:
        raise ValueError(f"assignment: {objects} objects came for {queries} queries; each wants one of its own")
    cost = jax.lax.stop_gradient(cost.T)
    # Large, yet far from where sums of it would be infinite or swallow other costs.
    cost = jnp.clip(jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=1e6), -1e6, 1e6)
    real = jnp.ones(objects, bool) if real is None else real
    # Query `queries` stands for where a path begins; object `objects` for nobody.
    start, nobody = queries, objects

    def join(i: jax.Array | int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        price, discount, owner = carry
        owner = owner.at[start].set(jnp.where(real[i], i, nobody))

        def searching(s: tuple[jax.Array, ...]) -> jax.Array:
            return s[2][s[3]] != nobody

        def step(s: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            price, discount, owner, at, reached, before, visited = s
            visited = visited.at[at].set(True)
            object_ = owner[at]
            length = cost[object_] - price[object_] - discount[:queries]
            open_ = ~visited[:queries]
            shorter = open_ & (length < reached)
            reached = jnp.where(shorter, length, reached)
            before = jnp.where(shorter, at, before)
            nearest = jnp.argmin(jnp.where(open_, reached, jnp.inf)).astype(jnp.int32)
            far = reached[nearest]
            price = price.at[owner].add(jnp.where(visited, far, 0.0))
            discount = discount - jnp.where(visited, far, 0.0)
            reached = jnp.where(open_, reached - far, reached)
            return price, discount, owner, nearest, reached, before, visited

        state = (
            price,
            discount,
            owner,
            jnp.int32(start),
            jnp.full(queries, jnp.inf, cost.dtype),
            jnp.full(queries, start, jnp.int32),
            jnp.zeros(queries + 1, bool),
        )
        price, discount, owner, at, _, before, _ = jax.lax.while_loop(searching, step, state)

        def back(s: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            owner, at = s
            return owner.at[at].set(owner[before[at]]), before[at]

        owner, _ = jax.lax.while_loop(lambda s: s[1] != start, back, (owner, at))
        return price, discount, owner.at[start].set(nobody)

    price, discount = jnp.zeros(objects + 1, cost.dtype), jnp.zeros(queries + 1, cost.dtype)
    owner = jnp.full(queries + 1, nobody, jnp.int32)
    *_, owner = jax.lax.fori_loop(0, objects, join, (price, discount, owner))
    # Those of nobody are written beyond the end, and dropped.
    return jnp.full(objects, -1, jnp.int32).at[owner[:queries]].set(jnp.arange(queries, dtype=jnp.int32), mode="drop")
