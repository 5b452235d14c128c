"""One matrix product on one device or over a grid of ranks, with its gradients if asked for.

Operators run one after another. Each of ``data`` replicas multiplies its own M rows, so the
work grows with their number; backward, they average the weight's gradient and update the
weight. Without replicas there is nobody to agree with, and gradients are where it ends.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import GemmModel
from deepflow.cost.operators import OperatorCost, block_cost
from deepflow.hardware import Hardware
from deepflow.mapping.kernel import KernelMapping, KernelSplit, map_kernels, shard_product
from deepflow.record import record
from deepflow.schedule.simulated import FLATTENED, machine_chain_time, simulated_mode
from deepflow.workload.operators import Block, Gemm


@record(frozen=True)
class GemmRun:
    """Costs on one rank: both passes, the reduction of the gradient, the update.

    ``footprint``: bytes of the rank's shards of A, B and C, and of their gradients.
    ``simulated_time``: seconds of all operators where the whole machine is simulated.
    """

    mapping: KernelMapping
    compute: tuple[OperatorCost, ...]
    reduction: tuple[OperatorCost, ...]
    update: tuple[OperatorCost, ...]
    footprint: float
    simulated_time: float | None = None


@record(frozen=True)
class RankWork:
    """What one rank runs of a product: all passes, then the reduction and the update."""

    compute: Block
    reduction: Block
    update: Block
    footprint: float


def rank_work(
    model: GemmModel, split: KernelSplit, precision: float, *, replicated: bool
) -> RankWork:
    """A rank's share of the product in ``model``, whose sides may be arrays of many products.

    ``replicated``: others have the same weight, with which it has to agree.
    """
    whole = Block("gemm", (Gemm("gemm", model.M, model.K, model.N),))
    blocks = shard_product(whole, "gemm", split, precision)
    compute = blocks.forward.operators
    if model.backward:
        compute += blocks.backward.operators
    trains = model.backward and replicated
    shard = next(item for item in blocks.forward.operators if isinstance(item, Gemm))
    weight_rows, weight_columns = split.weights(model.K, model.N)
    elements = shard.m * shard.k + weight_rows * weight_columns + shard.m * model.N
    nothing = Block("gemm", ())
    return RankWork(
        Block("gemm", compute),
        blocks.reduction if trains else nothing,
        blocks.update if trains else nothing,
        1.0 * elements * precision * (2 if model.backward else 1),
    )


def map_gemm(hardware: Hardware) -> KernelMapping:
    """Kernel parallelism is that of the hidden layers.

    A pipeline does not change the product: the other stages hold other layers and are not counted.
    Raises InfeasiblePoint as ``map_kernels`` does.
    """
    mapping = map_kernels(hardware, {"gemm": "hidden"}, data_fills_machine=False)
    return replace(mapping, pipeline=1)


def run_gemm(hardware: Hardware, model: GemmModel) -> GemmRun:
    """Shards and costs the product.

    Raises:
        InfeasiblePoint: degrees contradict each other or the machine, or have no network.
    """
    mapping = map_gemm(hardware)
    split = mapping.splits["gemm"]
    work = rank_work(model, split, hardware.config.sw_param.precision, replicated=mapping.data > 1)
    run = GemmRun(
        mapping,
        block_cost(work.compute, hardware, mapping.groups),
        block_cost(work.reduction, hardware, mapping.groups),
        block_cost(work.update, hardware, mapping.groups),
        work.footprint,
    )
    if simulated_mode(hardware) != FLATTENED or mapping.num_devices == 1:
        return run
    distances = {"gemm.kp1": 1, "gemm.kp2": split.kp1, "data": mapping.kernel}
    time = machine_chain_time(
        (*run.compute, *run.reduction, *run.update),
        hardware,
        {name: (mapping.groups[name], distance) for name, distance in distances.items()},
        mapping.num_devices,
    )
    return replace(run, simulated_time=time)
