"""cat(rotary(x[..., :n]), x[..., n:]), head by head  ->  rotary(x), which passes the columns that do not rotate

StableLM and Phi cut heads apart before they rotate; rotary knows by its angles where to stop.

Before fuse_rotary, which takes rotations of whole heads.
"""

from __future__ import annotations

from slipway.compiler.ops import Value, op
from slipway.passes.rewrite import Rewrite


class FusePartialRotary(Rewrite):
    def before(self, x, cos_sin, heads, head_dim, rotary_dim, end, rest, interleaved, rotary_columns, rest_columns, columns):
        first = rows(op.slice(by_head(x, heads, head_dim), 3, 0, rotary_dim), rotary_columns)
        last = rows(op.slice(by_head(x, heads, head_dim), 3, rotary_dim, end), rest_columns)
        rotated = op.rotary(first, cos_sin, rotary_dim, interleaved)
        return rows(op.cat([by_head(rotated, heads, rotary_dim), by_head(last, heads, rest)], -1), columns)

    def after(self, x, cos_sin, head_dim, interleaved):
        return op.rotary(x, cos_sin, head_dim, interleaved)

    def unless(self, cos_sin, head_dim, rotary_dim, rest):
        if cos_sin.shape[2] * 2 != rotary_dim:
            return f"angles for {cos_sin.shape[2] * 2} columns, and {rotary_dim} are cut off"
        if rotary_dim + rest != head_dim:
            return f"{head_dim - rotary_dim} columns are left, and {rest} put back"
        return None


def by_head(x: Value, heads: int, width: int) -> Value:
    """[T, heads*width] -> [1, heads, T, width]."""
    return op.permute(op.reshape(x, [1, -1, heads, width]), [0, 2, 1, 3])


def rows(x: Value, columns: int) -> Value:
    """The inverse of by_head."""
    return op.reshape(op.permute(x, [2, 0, 1, 3]), [-1, columns])
