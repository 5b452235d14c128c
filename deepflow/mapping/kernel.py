"""Kernel parallelism: one matrix product C[m, n] = A[m, k] B[k, n] over a grid of ranks.

Column-row (CR) cuts the inner dimension over kp1 ranks: a rank holds A[m, k/kp1] and
B[k/kp1, n], its product is a partial sum, and a reduce_scatter leaves C[m, n/kp1], which is
the A that the next product needs. Backward, the gradient of C is gathered and a rank computes
the gradients of what it holds; the research code gave it other pieces of equal FLOPs.

Row-column (RC) cuts m over kp1 and n over kp2: a rank holds A[m/kp1, k] and B[k, n/kp2], and
an all_gather over kp2 completes its rows of C. Backward it computes the pieces
B'[k/kp1, n/kp2] and A'[m/kp1, k/kp2] of both gradients. For them it collects the columns of A
and of C' that it lacks over kp1, and the rows of B and of C' over kp2. Of A and B that is
1/kp1 and 1/kp2 of a whole gather; the research code charged half of one, right for two ranks
only. Each rank ending up with another slice costs the links as much as all with the same.

Dimensions that do not divide are rounded up: the largest shard sets the time, and the products
that pad the others show as executed FLOPs above those of the model. Sides of products may be
arrays, of many products that are cut alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from deepflow.config.hardware import PARALLEL_DIMENSIONS, Parallelism
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.record import record
from deepflow.workload.lstm import GATE_TRANSFERS
from deepflow.workload.operators import (
    Block,
    Collective,
    Elementwise,
    Gemm,
    Operator,
    backward,
)

_TYPES = {-1: "none", 1: "CR", 2: "RC"}

# Into how many parts (rows, columns) a matrix is cut between the ranks.
Layout = tuple[int, int]


def ceil_div(size: int, parts: int) -> int:
    """The largest of ``parts`` shards of ``size``."""
    return -(-size // parts)


@record(frozen=True)
class KernelSplit:
    """How a layer's products are cut: ``kind`` "none", "CR" or "RC", over kp1 x kp2 ranks."""

    kind: str = "none"
    kp1: int = 1
    kp2: int = 1

    @property
    def ranks(self) -> int:
        """Devices that share one product."""
        return self.kp1 * self.kp2

    @property
    def activations(self) -> Layout:
        """Cut of a product's input, and of its output after communication."""
        return {"none": (1, 1), "CR": (1, self.kp1), "RC": (self.kp1, 1)}[self.kind]

    @property
    def gradients(self) -> Layout:
        """Cut of the gradient that the backward pass takes in and of the one that it yields."""
        return {"none": (1, 1), "CR": (1, self.kp1), "RC": (self.kp1, self.kp2)}[self.kind]

    def outputs(self, m: int, n: int) -> tuple[int, int]:
        """Rows and columns of C on which a rank runs what follows the product."""
        rows, columns = self.gradients
        return ceil_div(m, rows), ceil_div(n, columns)

    def weights(self, k: int, n: int) -> tuple[int, int]:
        """Rows and columns of B that a rank stores and updates."""
        if self.kind == "CR":
            return ceil_div(k, self.kp1), n
        return k, ceil_div(n, self.kp2)

    def weight_gradient(self, k: int, n: int) -> tuple[int, int]:
        """Rows and columns of the gradient of B that a rank computes."""
        return ceil_div(k, self.kp1), ceil_div(n, self.kp2)


class GroupPlace(NamedTuple):
    """Which ranks a group consists of: ``size`` of them, ``stride`` apart, along a dimension of
    ``PARALLEL_DIMENSIONS``."""

    dimension: str
    size: int
    stride: int


@record(frozen=True)
class KernelMapping:
    """Splits of the layer types and the groups of ranks that talk to each other.

    ``groups`` are called "<layer>.kp1", "<layer>.kp2", "data" and "pipeline".
    """

    splits: dict[str, KernelSplit]
    groups: dict[str, Group]
    kernel: int
    pipeline: int
    data: int

    @property
    def num_devices(self) -> int:
        """Devices that work, of all replicas and stages."""
        return self.kernel * self.pipeline * self.data

    @property
    def places(self) -> dict[str, GroupPlace]:
        """Where the groups are, by their names."""
        places = {
            "data": GroupPlace("dp", self.data, self.kernel),
            "pipeline": GroupPlace("lp", min(self.pipeline, 2), self.kernel * self.data),
        }
        for layer, split in self.splits.items():
            places[f"{layer}.kp1"] = GroupPlace("kp1", split.kp1, 1)
            places[f"{layer}.kp2"] = GroupPlace("kp2", split.kp2, split.kp1)
        return places

    @property
    def degrees(self) -> tuple[int, int, int, int]:
        """Those of the parallel dimensions; where layers are cut differently, of the widest."""
        widest = max(self.splits.values(), key=lambda split: split.ranks)
        return widest.kp1, widest.kp2, self.data, self.pipeline


@record(frozen=True)
class RankBlocks:
    """What one rank runs of a layer, once: both passes, and after them, once per step, the
    reduction of its weight gradient and the update of its weights."""

    forward: Block
    backward: Block
    reduction: Block
    update: Block


def map_kernels(
    hardware: Hardware, layers: Mapping[str, str], *, data_fills_machine: bool
) -> KernelMapping:
    """Degrees and groups for ``layers``: names, each with its layer type in the configuration.

    ``kp1``, ``kp2`` and ``t`` hold for all layers where they are given, otherwise
    ``kp_<type>_*`` (hidden, softmax, embedding, projection). Layers may use fewer ranks than
    others if the numbers divide; then groups of ranks do the same work. With a degree above 1,
    degrees have to multiply to the devices of the machine, ``data: auto`` taking what is left;
    without any, one device works, unless ``data_fills_machine`` makes ``auto`` take all.

    Raises:
        InfeasiblePoint: the degrees contradict each other or the machine, or a group has no
            network.
    """
    asked = hardware.config.scheduling_param
    system = hardware.config.system_hierarchy
    splits = {layer: _split(asked, layer_type) for layer, layer_type in layers.items()}
    kernel = max(split.ranks for split in splits.values())
    if asked.tensor is not None and asked.tensor != kernel:
        raise InfeasiblePoint(
            f"parallelism.tensor {asked.tensor} does not say how to cut the products of a GEMM or"
            " LSTM; give parallelism.t (CR or RC), kp1 and kp2"
        )
    for layer, split in splits.items():
        if kernel % split.ranks:
            raise InfeasiblePoint(
                f"kernel parallelism of the {layer} layer uses {split.ranks} ranks, which do not"
                f" divide the {kernel} of another layer"
            )
    devices = system.num_devices_per_node * system.num_nodes
    fixed = kernel * asked.pipeline
    fills = asked.data == "auto" and (fixed > 1 or data_fills_machine)
    data = devices // fixed if fills else 1 if asked.data == "auto" else int(asked.data)
    if fixed * data not in (1, devices) or (fills and fixed * data != devices):
        raise InfeasiblePoint(
            f"kernel parallelism {kernel} x pipeline {asked.pipeline} x data {asked.data} does"
            f" not multiply to the {devices} devices ({system.num_nodes} nodes of"
            f" {system.num_devices_per_node}; system_hierarchy.num_nodes, num_devices_per_node)"
        )
    mapping = KernelMapping(splits, {}, kernel, asked.pipeline, data)
    return replace(mapping, groups=place_groups(seen_by_dimensions(hardware, mapping), mapping))


def seen_by_dimensions(hardware: Hardware, mapping: KernelMapping) -> dict[str, Hardware]:
    """The machine as each parallel dimension finds it with the file's layout, if it has one."""
    if hardware.config.system_hierarchy.layout == "none":
        return dict.fromkeys(PARALLEL_DIMENSIONS, hardware)
    from deepflow.mapping.layout import Degrees, seen_by_dimension

    return seen_by_dimension(hardware, Degrees(*mapping.degrees))


def place_groups(seen: Mapping[str, Hardware], mapping: KernelMapping) -> dict[str, Group]:
    """The groups at ``mapping.places``; ``seen``: the machine as each dimension finds it.

    Raises:
        InfeasiblePoint: a group has no network.
    """
    # Layers that are cut alike have the same groups.
    placed: dict[GroupPlace, Group] = {}
    groups = {}
    for name, place in mapping.places.items():
        if place not in placed:
            dimension, size, stride = place
            placed[place] = place_group(seen[dimension], name, size, stride, (dimension,))
        group = placed[place]
        groups[name] = group if group.name == name else replace(group, name=name)
    return groups


def _split(asked: Parallelism, layer: str) -> KernelSplit:
    kp1 = asked.kp1 if asked.kp1 is not None else int(getattr(asked, f"kp_{layer}_dim1"))
    kp2 = asked.kp2 if asked.kp2 is not None else int(getattr(asked, f"kp_{layer}_dim2"))
    kind = asked.t if asked.t is not None else _TYPES[getattr(asked, f"kp_{layer}_type")]
    if kp1 * kp2 == 1:
        return KernelSplit()
    if kind == "none":
        raise InfeasiblePoint(
            f"kernel parallelism {kp1} x {kp2} of the {layer} layer has no type; give"
            f" parallelism.t (CR or RC) or kp_{layer}_type"
        )
    if kind == "CR" and kp2 > 1:
        raise InfeasiblePoint(
            f"column-row parallelism cuts one dimension, over kp1; kp2 of the {layer} layer is"
            f" {kp2}"
        )
    return KernelSplit(kind, kp1, kp2)


# --- Shards ---------------------------------------------------------------------------------


def shard_product(block: Block, layer: str, split: KernelSplit, precision: float) -> RankBlocks:
    """A rank's share of a block of one product and element-wise steps on its output."""
    (product,) = (item for item in block.operators if isinstance(item, Gemm))
    shard, communication = _forward_product(product, layer, split, precision)
    rows, columns = split.outputs(product.m, product.n)
    share = rows * columns / (product.m * product.n)
    steps = tuple(item.scaled(share) for item in block.operators if isinstance(item, Elementwise))
    into = replace(block, operators=steps)
    return RankBlocks(
        replace(block, operators=(shard, *communication, *steps)),
        Block(
            f"{block.name}.backward",
            (*backward(into).operators, *_backward_product(product, layer, split, precision)),
        ),
        *weight_blocks(layer, product.k, product.n, split, precision),
    )


def shard_cell(block: Block, split: KernelSplit, precision: float) -> RankBlocks:
    """A rank's share of a recurrent cell.

    Gates lie one after another in the columns of the product, so ranks hold different gates
    and exchange slices of them, within kp1 (CR) or kp2 (RC), in both passes. The gradient of
    the weights adds up over the time steps: it is read, added to and written.
    """
    (product,) = (item for item in block.operators if isinstance(item, Gemm))
    plain = shard_product(block, "hidden", split, precision)
    rows, columns = split.outputs(product.m, product.n)
    exchanged = float(GATE_TRANSFERS * precision * rows * columns)
    exchange: tuple[Operator, ...] = ()
    if split.kind == "CR" or split.kp2 > 1:
        dimension = "kp1" if split.kind == "CR" else "kp2"
        exchange = (
            Collective("gate_exchange", "send", f"hidden.{dimension}", exchanged),
            Elementwise("gate_exchange_copy", 2 * exchanged, 0.0, kernels=0),
        )
    k, n = split.weight_gradient(product.k, product.n)
    accumulation = Elementwise(
        "gate_gradient_accumulation", 3.0 * precision * k * n, float(k * n), kernels=0
    )
    return replace(
        plain,
        forward=replace(plain.forward, operators=(*plain.forward.operators, *exchange)),
        backward=replace(
            plain.backward, operators=(*exchange, *plain.backward.operators, accumulation)
        ),
    )


def shard_softmax(block: Block, split: KernelSplit, precision: float) -> RankBlocks:
    """A rank's share of the logits and their softmax; one number per row is gathered."""
    (product,) = (item for item in block.operators if isinstance(item, Gemm))
    plain = shard_product(block, "softmax", split, precision)
    rows, _ = split.outputs(product.m, product.n)
    message = float(precision * rows * (split.kp2 if split.kind == "RC" else 1))
    dimension = "kp2" if split.kind == "RC" else "kp1"
    statistics = Collective("softmax_rows", "all_gather", f"softmax.{dimension}", message)
    operators = plain.forward.operators
    if split.kind != "none":
        operators += (statistics,)
    return replace(plain, forward=replace(plain.forward, operators=operators))


def shard_embedding(
    block: Block, batch: int, vocabulary: int, width: int, split: KernelSplit, precision: float
) -> RankBlocks:
    """A rank's share of the look-up of ``batch`` rows of ``width`` in ``vocabulary`` rows.

    CR cuts the table by rows: what ranks find is gathered over kp1 in both passes. RC cuts the
    batch and the table's columns: the gradient of all rows is gathered over kp1. If the table
    is copied from the host (group "host"), a rank copies what it looks up.
    """
    rows, columns = split.outputs(batch, width)
    lookup = block.operators
    if split.kind == "RC":
        share = rows * columns / (batch * width)
        lookup = tuple(item.scaled(share) for item in lookup if isinstance(item, Elementwise))
    forward: tuple[Operator, ...] = (
        Collective("host_copy", "send", "host", 2.0 * precision * rows * columns),
        *lookup,
    )
    gradient = backward(replace(block, operators=lookup)).operators
    if split.kind == "CR":
        found = Collective(
            "embedding_gather", "all_gather", "embedding.kp1", float(precision * batch * width)
        )
        forward, gradient = (*forward, found), (found, *gradient)
    elif split.kind == "RC" and split.kp1 > 1:
        rest = Collective(
            "embedding_gradient_gather",
            "all_gather",
            "embedding.kp1",
            float(precision * batch * columns),
        )
        gradient = (rest, *gradient)
    return RankBlocks(
        replace(block, operators=forward),
        Block(f"{block.name}.backward", gradient),
        *weight_blocks("embedding", vocabulary, width, split, precision),
    )


def found_layout(split: KernelSplit) -> Layout:
    """Cut of what an embedding yields: CR has gathered all of it, RC leaves it cut."""
    return split.gradients if split.kind == "RC" else (1, 1)


def weight_blocks(
    layer: str, k: int, n: int, split: KernelSplit, precision: float
) -> tuple[Block, Block]:
    """(reduction, update) of a rank's weights of B[k, n], once per step.

    The gradient is averaged over the replicas; RC then gathers the pieces of its columns over
    kp1. Two kernels update and clip: 4 and 3 accesses per weight.
    """
    rows, columns = split.weight_gradient(k, n)
    reduction: list[Operator] = [
        Collective(
            f"{layer}_gradient_reduction", "all_reduce", "data", 1.0 * precision * rows * columns
        )
    ]
    rows, columns = split.weights(k, n)
    if split.kind == "RC" and split.kp1 > 1:
        reduction.append(
            Collective(
                f"{layer}_gradient_gather",
                "all_gather",
                f"{layer}.kp1",
                1.0 * precision * rows * columns,
            )
        )
    weights = 1.0 * rows * columns
    update = Elementwise(f"{layer}_update", 7 * precision * weights, 7 * weights, kernels=2)
    return Block(f"{layer}.reduction", tuple(reduction)), Block(f"{layer}.update", (update,))


def regather(
    name: str,
    layer: str,
    split: KernelSplit,
    held: Layout,
    wanted: Layout,
    shape: tuple[int, int],
    precision: float,
) -> tuple[Collective, ...]:
    """What turns a matrix of ``shape`` cut as ``held`` into one cut as ``wanted``.

    ``layer`` with its ``split`` holds it. A finer cut is a slice and free; otherwise what is
    cut is gathered within the groups of that layer.
    """
    rows, columns = shape
    row_parts, column_parts = held
    gathers: list[Collective] = []
    if wanted[1] % column_parts:
        dimension = "kp1" if split.kind == "CR" else "kp2"
        message = float(precision * ceil_div(rows, row_parts) * columns)
        gathers.append(Collective(name, "all_gather", f"{layer}.{dimension}", message))
        column_parts = 1
    if wanted[0] % row_parts:
        message = float(precision * rows * ceil_div(columns, column_parts))
        gathers.append(Collective(name, "all_gather", f"{layer}.kp1", message))
    return tuple(gathers)


def _forward_product(
    product: Gemm, layer: str, split: KernelSplit, precision: float
) -> tuple[Gemm, tuple[Collective, ...]]:
    m, k, n = product.m, product.k, product.n
    if split.kind == "CR":
        whole = 1.0 * precision * m * n
        reduce = Collective(f"{product.name}.reduce", "reduce_scatter", f"{layer}.kp1", whole)
        return replace(product, k=ceil_div(k, split.kp1)), (reduce,)
    if split.kind == "RC":
        rows = ceil_div(m, split.kp1)
        gather = Collective(
            f"{product.name}.gather", "all_gather", f"{layer}.kp2", 1.0 * precision * rows * n
        )
        return replace(product, m=rows, n=ceil_div(n, split.kp2)), (gather,)
    return product, ()


def _backward_product(
    product: Gemm, layer: str, split: KernelSplit, precision: float
) -> tuple[Operator, ...]:
    m, k, n, name = product.m, product.k, product.n, product.name
    if split.kind != "RC":
        inner = ceil_div(k, split.kp1)
        products = (
            Gemm(f"{name}.input_gradient", m, n, inner),
            Gemm(f"{name}.weight_gradient", inner, m, n),
        )
        if split.kind == "none":
            return products
        whole = 1.0 * precision * m * n
        gather = Collective(f"{name}.gradient_gather", "all_gather", f"{layer}.kp1", whole)
        return (gather, *products)
    rows, columns = split.outputs(m, n)
    first, second = ceil_div(k, split.kp1), ceil_div(k, split.kp2)
    collected = (
        ("input_gather", "kp1", m * first),
        ("gradient_columns_gather", "kp1", m * columns),
        ("gradient_rows_gather", "kp2", rows * n),
        ("weight_gather", "kp2", second * n),
    )
    return (
        *(
            Collective(f"{name}.{what}", "all_gather", f"{layer}.{group}", 1.0 * precision * size)
            for what, group, size in collected
        ),
        Gemm(f"{name}.weight_gradient", first, m, columns),
        Gemm(f"{name}.input_gradient", rows, n, second),
    )
