"""Peak memory of one rank of each stage, in GiB, by what uses it.

What the process itself takes (a CUDA context, communication buffers, fragmentation) is not in here: the cluster file's
``device.memory_gib`` is what remains after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.family import kv_dim, q_dim
from trainsys.models.geometry import family_of, resolve, tensors
from trainsys.planner.precision import GIB, Precision
from trainsys.planner.sizes import StageSizes, block_elements, team_tokens
from trainsys.planner.stages import Stages
from trainsys.schedule.problem import BARRIERS

WAITING = 6  # steps, at most, that wait to be replayed on a layout that is made beside them


@dataclass(frozen=True)
class Memory:
    """GiB on one rank."""

    parameters: float
    gradients: float
    optimizer: float  # master copy and both Adam moments
    mirror: float  # the same of a peer
    activations: float
    logits: float
    transition: float = 0.0  # what a change of layout needs beyond all that

    @property
    def total(self) -> float:
        held = self.parameters + self.gradients + self.optimizer + self.mirror
        return held + self.activations + self.logits + self.transition


def stage_memory(config: RunConfig, stages: Stages, sizes: StageSizes, in_flight: Sequence[int]) -> tuple[Memory, ...]:
    """Peak memory of a rank of each stage.

    Args:
        in_flight: per stage, most microbatches of a run whose activations are alive at once, from the schedule.

    Parameters, gradients and optimizer: Rajbhandari et al. 2020 (arXiv:1910.02054), §3.1. Activations: `layer_bytes`.
    """
    memories = []
    for stage in range(stages.count):
        step = replace(
            state_memory(config, stages, sizes, stage),
            activations=activation_bytes(config, stages, stage, in_flight[stage]) / GIB,
            logits=logit_bytes(config, stages, stage) / GIB,
        )
        changing = preparing_gib(step) if config.elastic.move == "beside" else changing_gib(step, config)
        memories.append(replace(step, transition=max(0.0, changing - step.total)))
    return tuple(memories)


def state_memory(config: RunConfig, stages: Stages, sizes: StageSizes, stage: int) -> Memory:
    """What a rank of `stage` holds whatever it computes."""
    precision = Precision.of(config.train.dtype)
    return Memory(
        parameters=parameter_elements(config, stages, sizes, stage) * precision.parameter / GIB,
        gradients=gradient_elements(config, stages, sizes, stage) * precision.gradient / GIB
        + aside_elements(config, sizes, stage) * precision.state / GIB,
        optimizer=sizes.owned[stage] * 3 * precision.state / GIB,
        mirror=sizes.mirrored[stage] * 3 * precision.state / GIB,
        activations=0.0,
        logits=0.0,
    )


def aside_elements(config: RunConfig, sizes: StageSizes, stage: int) -> int:
    """Elements of the state that a step makes beside the present one, for peers that are sent it (`elastic.snapshot`).

    With `optim.post_validation` a second one may be under way.
    """
    if config.elastic.snapshot == "replay" or not any(sizes.mirrored):
        return 0
    return 3 * (sizes.owned[stage] + sizes.mirrored[stage]) * (1 + config.optim.post_validation)


def changing_gib(state: Memory, config: RunConfig) -> float:
    """While the layout changes, the state stands twice, before and after (taken for equal), and nothing else does.

    Once and the staging budget with `elastic.release=progressive`.
    """
    kept = state.optimizer + state.mirror
    return 2 * kept if config.elastic.release == "commit" else kept + config.elastic.staging_mib / 1024


def preparing_gib(step: Memory) -> float:
    """While the next layout is made beside the steps (`elastic/beside.py`): what a step needs, the state twice more,
    copied and as it will be (taken for equal), and gradients that wait to be replayed, of a third of the state each."""
    kept = step.optimizer + step.mirror
    return step.total - step.transition + (2 + WAITING / 3) * kept


def parameter_elements(config: RunConfig, stages: Stages, sizes: StageSizes, stage: int) -> int:
    """Elements of weights in compute precision on a rank of `stage`.

    Under ZeRO 3 (Rajbhandari et al. 2020, §5.3) the share owned here, a whole block, and the next one arriving
    (`parallel/weights.py`).
    """
    if config.parallel.zero == 3 and stages.copies(stage) > 1:
        return sizes.owned[stage] + 2 * _largest_block(config, stages, stage)
    return sizes.held[stage]


def _largest_block(config: RunConfig, stages: Stages, stage: int) -> int:
    blocks = block_elements(config.model, stages.tp, stages.ep)
    return max(blocks.get(block, 0) for block in stages.blocks(stage))


def gradient_elements(config: RunConfig, stages: Stages, sizes: StageSizes, stage: int) -> int:
    """Elements of gradients alive at once on a rank of `stage`.

    Under ZeRO 2 (Rajbhandari et al. 2020, §5.2) two whole ones, of which one is on its way to its owners, and of the
    share owned here the sums of the tree and a slice that arrives from each peer (`parallel/stream.py`). Under ZeRO 3
    the two, and what arrives, are of one block. Under cp each part of the sequences has sums of its own. Under ep a
    rank has its experts' gradients of a microbatch of each team of its ep group (`parallel/expert.py`).
    """
    held, owned, copies = sizes.held[stage], sizes.owned[stage], stages.copies(stage)
    others = (stages.ep - 1) * sizes.experts[stage]
    if config.parallel.zero >= 2 and copies > 1:
        made = held
        if config.parallel.zero == 3:
            made, others = _largest_block(config, stages, stage), others // stages.layers[stage]
        sums = stages.cp * _most_subtrees(config.batch.global_size // config.batch.microbatch_size, 1)
        return 2 * made + owned * sums + -(-made // copies) * (copies - 1) + others
    if config.parallel.reduction == "fast":
        return held + others
    return (held + others) * gradient_buffers(config, stages, stage)


def gradient_buffers(config: RunConfig, stages: Stages, stage: int) -> int:
    """Gradients of the whole stage alive at once: 1 when they are added up in place.

    The canonical reduction adds them in one binary tree over the step's microbatches: while a replica computes the next
    gradient, its finished subtrees wait, like the digits of a binary counter (log2 m of them for aligned m).
    """
    if config.parallel.reduction == "fast":
        return 1
    return _most_subtrees(config.batch.global_size // config.batch.microbatch_size, stages.replicas[stage])


@lru_cache(maxsize=256)
def _most_subtrees(microbatches: int, replicas: int) -> int:
    """Most partial sums alive on any replica, the newest gradient included, when it adds its block in order."""
    most = 1
    for replica in range(replicas):
        waiting: list[tuple[int, int]] = []  # (first microbatch, size) of finished aligned subtrees
        for leaf in range(replica * microbatches // replicas, (replica + 1) * microbatches // replicas):
            most = max(most, len(waiting) + 1)
            start, size = leaf, 1
            while waiting and waiting[-1] == (start - size, size) and (start - size) % (2 * size) == 0:
                start, size = waiting.pop()[0], 2 * size
            waiting.append((start, size))
        most = max(most, len(waiting))
    return most


def layer_bytes(config: RunConfig, tp: int) -> float:
    """Bytes that one layer keeps of one microbatch for its backward pass.

    Korthikanti et al. 2022 (arXiv:2205.05198), eq. 2 and 4, written in elements for any dtype and feed-forward. Only
    sequence parallelism splits what surrounds the matrices: inputs and outputs of both norms (RMSNorm also keeps the
    normalised values) and two dropout masks. tp splits queries, keys and values (repeated to all heads), attention's
    output, what norms of query and key heads keep, and the feed-forward's intermediates (two ffn-wide, four when
    gated). Attention is fused (Dao et al. 2022, arXiv:2205.14135): in place of the 5·a·s/h term it keeps one float32
    row and head. Under cp a team has its part of the tokens; what attention keeps of them: `_attention_width`.
    """
    model = resolve(config.model)
    size = Precision.of(config.train.dtype).activation
    widths, biased, head_norms = _layer_kinds(model)
    per_norm = 2 if biased else 3
    whole = 2 * per_norm * model.dim * size + (2 * model.dim * size if model.dropout else 0)
    shared = max(1, tp // model.num_kv_heads)  # tp ranks that compute the same key/value head
    normed = 2 * (q_dim(model) + shared * kv_dim(model)) if head_norms else 0  # their inputs and normalised values
    softmax = _attention_width(model, config.parallel.cp) * size + 4.0 * model.num_heads
    split = family_of(model).mixing_bytes(model, size, softmax) + (normed + 2 * widths) * size
    if model.num_experts:  # rows to and from the experts, in both orders, whole on every tp rank; scores and choices
        split += tp * (4 * model.experts_per_token * model.dim * size + 8 * model.num_experts)
    per_token = split / tp + whole / (tp if config.parallel.sequence_parallel else 1)
    return team_tokens(config) * per_token


def _attention_width(model: ModelConfig, cp: int) -> int:
    """Elements that attention keeps per token of a team: queries, keys, values (repeated to all heads) and its output.

    Under cp keys and values are not repeated, and the output is kept twice: as the kernel and as the next matrix wants
    it. Nothing is kept of other teams.
    """
    return 4 * q_dim(model) if cp == 1 else 3 * q_dim(model) + 2 * kv_dim(model)


@lru_cache(maxsize=64)
def _layer_kinds(model: ModelConfig) -> tuple[int, bool, bool]:
    """Width of what a token's feed-forwards keep; are there biases (LayerNorm)? norms of heads?

    Every matrix but the last is as wide as its output, and the gated product or the activation is as wide again.
    """
    layer = [t for t in tensors(model) if t.block == 0]
    biased, head_norms = (
        any(t.name.endswith(".bias") for t in layer),
        any(".q_norm." in t.name for t in layer),
    )
    if model.num_experts:
        return 2 * (model.experts_per_token * model.expert_ffn_dim + model.shared_ffn_dim), biased, head_norms
    matrices = sum(".feed_forward." in t.name and len(t.shape) == 2 for t in layer)
    return (matrices - 1) * model.ffn_dim, biased, head_norms


def activation_bytes(config: RunConfig, stages: Stages, stage: int, in_flight: int) -> float:
    """Bytes of activations on a rank of `stage` with `in_flight` microbatches alive, under vp of a mean run each."""
    each, always = activation_parts(config, stages, stage)
    return in_flight / stages.vp * each + always


def activation_parts(config: RunConfig, stages: Stages, stage: int) -> tuple[float, float]:
    """Bytes that a rank of `stage` keeps of one microbatch, and those of the layer at work.

    The latter stand beside what is kept where a layer is computed again in the backward, or where the host keeps it;
    under cp also the keys of other teams.
    """
    each, always = _activation_parts(config, stages, stage)
    return each, always + travelling_bytes(config, stages)


def travelling_bytes(config: RunConfig, stages: Stages) -> float:
    """Keys and values of other teams that are here at once, at most, and in the backward a team's gradients in float32:
    canonical merging may have to keep all until their turn comes (`parallel/sequence/in_turn.py`)."""
    if stages.cp == 1:
        return 0.0
    model, size = resolve(config.model), Precision.of(config.train.dtype).activation
    width = 2 * kv_dim(model) // min(stages.tp, model.num_kv_heads)
    return team_tokens(config) * width * ((stages.cp - 1) * size + 2 * max(4, size))


def _activation_parts(config: RunConfig, stages: Stages, stage: int) -> tuple[float, float]:
    parallel, last = config.parallel, stage == stages.head
    layer, whole = layer_bytes(config, stages.tp), kept_bytes(config, stages, stages.layers[stage], last)
    if parallel.offload == "activations":
        return 0.0, layer + kept_bytes(config, stages, 0, last)
    if parallel.offload == "scheduled":  # on the device: what leaves, what comes back, what is computed with
        return _of_last_run(config, stages, stage), 3 * whole / stages.vp
    if parallel.recompute == "stage":
        return stages.vp * boundary_kept(config, stages) + _of_last_run(config, stages, stage), whole / stages.vp
    return whole, layer if parallel.recompute == "full" else 0.0


def _of_last_run(config: RunConfig, stages: Stages, stage: int) -> float:
    """What the last run of layers keeps, whose backward follows its forward at once; 0 elsewhere."""
    return kept_bytes(config, stages, stages.runs[-1], True) if stage == stages.head else 0.0


def boundary_kept(config: RunConfig, stages: Stages) -> float:
    """Bytes of a layer's input of one microbatch on a rank."""
    shards = stages.tp if config.parallel.sequence_parallel else 1
    return team_tokens(config) * config.model.dim * Precision.of(config.train.dtype).activation / shards


def kept_bytes(config: RunConfig, stages: Stages, layers: int, last: bool) -> float:
    """Bytes that `layers` layers keep of one microbatch until its backward, on the device or with the host.

    Full recomputation keeps each layer's input only (Korthikanti et al. 2022, §5; Chen et al. 2016, arXiv:1604.06174).
    The stage with the head also keeps the inputs of the final norm and of the head.
    """
    boundary = boundary_kept(config, stages)
    layer = boundary if config.parallel.recompute == "full" else layer_bytes(config, stages.tp)
    return layers * layer + (2 * boundary if last else 0.0)


def logit_bytes(config: RunConfig, stages: Stages, stage: int) -> float:
    """Bytes of logits where the head is: float32 (or wider) values and their gradient, split over the vocabulary.

    With the vocabulary on all stages each has its part, of the microbatches between S and T.
    """
    size = max(4, Precision.of(config.train.dtype).activation)
    if config.parallel.vocabulary != "ends":
        waiting = 1 + BARRIERS[config.parallel.vocabulary]
        return team_tokens(config) * config.model.vocab_size / (stages.count * stages.tp) * waiting * size
    if stage != stages.head:
        return 0.0
    return team_tokens(config) * config.model.vocab_size / stages.tp * 2 * size
