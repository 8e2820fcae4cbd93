"""A linear on a CPU: what its kernel is rendered with, its packed weights and its scratch. Mirrors plugins/linear/host."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.linear import pack
from slipway.plugins.plugin import Launch, PackedWeight
from slipway.quantization.formats import WeightFormat

MAX_INTEGER_INPUTS = 65536  # beyond, a sum of code * plane may leave int32 (on AMX; elsewhere integers are summed a block at a time)
ROW_BLOCK_BYTES = 1_150_000  # of packed rows that share a core's L2 with the panels that pass


@dataclass(frozen=True)
class HostProblem:
    outputs: int
    inputs: int
    fmt: WeightFormat
    gated: bool
    target: Target

    counters = 0

    @property
    def declined(self) -> str | None:
        """Why no kernel takes it."""
        if self.fmt.integer and self.inputs > MAX_INTEGER_INPUTS:
            return f"{self.inputs} inputs: integer sums hold {MAX_INTEGER_INPUTS}"
        return None

    @property
    def constants(self) -> dict[str, object]:
        """What launch.host.j2 asks for beside shapes and types."""
        return {"weights": self._cpp_format, "private_bytes": self.private_bytes, "local_bytes": self.local_bytes}

    @property
    def weight_bytes(self) -> int:
        return self.panels.packed_bytes(self.outputs, self.inputs, self.gated)

    def packed_weights(self, weights: tuple[Node, ...], bias: Node | None) -> tuple[PackedWeight, ...]:
        packed = PackedWeight(weights, self.panels.pack, f"{'gated_' * self.gated}linear_{self.panels}", self.weight_bytes)
        if bias is None:
            return (packed,)
        return (packed, PackedWeight((bias,), pack.pack_bias, "linear_bias", 4 * pack.PANEL * pack.num_panels(self.outputs, False)))

    def launches(self, symbol: str) -> tuple[Launch, ...]:
        return ()

    @property
    def shared_scratch(self) -> int:
        return 32 * self.row_bytes

    @property
    def shared_scratch_per_row(self) -> int:
        return self.row_bytes

    @property
    def panels(self) -> pack.Panels:
        return pack.Panels(self.fmt, self.target.isa)

    @property
    def columns(self) -> int:
        return self.panels.columns(self.inputs)

    @property
    def row_bytes(self) -> int:
        """One packed row of activations."""
        isa, columns = self.target.isa, self.columns
        if not self.fmt.integer:
            return {"amx": 2 * columns, "avx512_bf16": 2 * columns + 64}.get(isa, 4 * columns)
        if isa == "amx":
            return 128 * -(-columns // 64) + 3 * 4
        return 4 * columns if isa == "avx2" else columns + columns // self.panels.block_k * 8

    @property
    def private_bytes(self) -> int:
        return 16 * self.row_bytes

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread: rows it packs for itself; a panel of spread codes; on AMX also the sums of the many-row kernel."""
        if self.target.isa != "amx":
            return self.private_bytes + self._spread_bytes
        steps = -(-self.columns // 64) if self.fmt.integer else -(-self.inputs // 32)
        tiles = min(64, max(32, ROW_BLOCK_BYTES // (1024 * steps) // 2 * 2))
        sums = 2048 * tiles * (1 if tiles * steps * 1024 <= ROW_BLOCK_BYTES else 8)
        return self.private_bytes + sums + 2048 * min(steps, 128)

    @property
    def _spread_bytes(self) -> int:
        """Room for a panel of what codes stand for, where kernels have passes over it: int8 or bf16."""
        if self.fmt.name == "int4" and self.target.isa in ("avx512", "avx512_bf16"):
            return pack.PANEL * self.columns
        return 2 * pack.PANEL * self.columns if not self.fmt.integer and self.fmt.bits < 16 and self.target.isa == "avx512_bf16" else 0

    @property
    def _cpp_format(self) -> str:
        if self.fmt.name == "int4":
            return f"Int4<{self.fmt.group_size}, {str(self.fmt.zero_point).lower()}>"
        if self.fmt.name == "int8":
            return f"Int8<{self.panels.block_k}>"
        return "".join(word.capitalize() for word in self.fmt.name.split("_"))
