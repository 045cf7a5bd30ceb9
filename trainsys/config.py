"""The run's configuration: typed defaults < YAML files < ``key=value`` overrides.

This is the only file that knows OmegaConf. Everything else receives the frozen dataclasses below. A YAML file may
name others to start from under ``base:`` (paths relative to itself); one file is then one whole run:

    base: [../model/llama-tiny.yaml, ../cluster/local-4.yaml]
    train: {steps: 60}

`load` merges, checks types and names, and returns a `RunConfig`; `save` writes the resolved one into the run folder.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DType = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the model. Sizes count elements; ``num_kv_heads``/``head_dim``/``ffn_dim`` 0: derived."""

    family: str = "llama"  # a name registered in trainsys.models
    vocab_size: int = 2048  # rows of the embedding; with data.tokenizer=bpe also the size of its vocabulary
    dim: int = 128  # features of the residual stream
    num_layers: int = 4  # transformer layers
    num_heads: int = 4  # attention heads; dim is divided among them unless head_dim says otherwise
    num_kv_heads: int = 0  # 0: num_heads (no GQA); tp divides it, or is a multiple of it
    head_dim: int = 0  # features of one attention head (llama, qwen3); 0: dim / num_heads
    ffn_dim: int = 0  # 0: 4·dim for gpt2, 3·dim for qwen3, 8/3·dim rounded up to 32 for llama
    num_experts: int = 0  # feed-forwards of which each token uses a few (mixtral, qwen3_moe)
    experts_per_token: int = 2  # experts that the router chooses for a token
    expert_ffn_dim: int = 0  # hidden width of one expert; 0: ffn_dim
    shared_ffn_dim: int = 0  # hidden width of a gated expert that every token uses as well; 0: none
    window: int = 0  # positions that attention looks back at, its own among them; 0: all
    decay: Literal["none", "scalar", "diagonal", "delta"] = "scalar"  # what a linear layer forgets (linear_llama)
    softmax_every: int = 0  # every so many layers attention is softmax, the others are linear; 0: none (linear_llama)
    conv_width: int = 4  # positions that a linear layer's queries, keys and values see; 0: their own (linear_llama)
    router_norm: bool = False  # the chosen experts' probabilities are rescaled to add up to 1 (mixtral: always)
    router_aux_coef: float = 0.0  # weight of the load-balance loss; in the gradient, not in the reported loss
    max_seq_len: int = 128  # longest sequence; positions that gpt2 learns
    rope_theta: float = 10000.0  # base of the rotary frequencies (llama, qwen3)
    norm_eps: float = 1e-5  # added to the variance in every norm
    tied: bool = False  # output head shares the embedding's weight
    vocab_parts: int = 1  # tensors that share the rows of a vocabulary matrix (parallel.vocabulary); fixed for the run
    dropout: float = 0.0  # probability (gpt2)


@dataclass(frozen=True)
class DeviceConfig:
    """One accelerator (or CPU rank). Rates are peaks; ``efficiency`` is the share a real step reaches (fitted)."""

    name: str = "cpu"  # an entry of trainsys/perf/devices.yaml is costed by it (bfloat16); else shown in plans
    tflops: float = 0.0  # dense peak at the training dtype; 0: measured with one GEMM on this machine
    memory_gib: float = 2.0  # what a layout may use of one device, GiB
    efficiency: float = 0.5  # share of the peak that a step reaches, in (0, 1]; of no effect on a known device
    memory_gbps: float = 10.0  # device memory bandwidth, GB/s
    host_gbps: float = 25.0  # between the device's memory and the host's, each way, GB/s (PCIe 4 x16)
    backend: str = "gloo"  # of the process groups: gloo or nccl


@dataclass(frozen=True)
class OtherDevices:
    """The last ``nodes`` nodes of a cluster have devices of another type."""

    nodes: int
    device: DeviceConfig


@dataclass(frozen=True)
class LinkConfig:
    """α-β model of a link: time(bytes) = latency_s + bytes / (gbps · 1e9). GB/s are 1e9 bytes per second."""

    gbps: float = 1.0  # bandwidth per direction, GB/s
    latency_s: float = 2e-4  # seconds until the first byte arrives


@dataclass(frozen=True)
class LinksConfig:
    """Measured links, from rows to columns; they need not be alike both ways. A row for each rank, or for each node
    (then ranks have what their nodes have, and ``intra_node`` is within). Empty: ``intra_node`` and ``inter_node``."""

    gbps: tuple[tuple[float, ...], ...] = ()  # GB/s that one rank has to another; 0 on the diagonal
    latency_s: tuple[tuple[float, ...], ...] = ()  # seconds, in rows like gbps; empty: of intra_node and inter_node
    file: str = ""  # CSV instead of gbps; relative to the YAML that names it, on the command line to the working folder

    def __post_init__(self) -> None:
        for name in ("gbps", "latency_s"):
            rows: Any = getattr(self, name)
            try:
                rows = tuple(tuple(map(float, row)) for row in rows)
            except (TypeError, ValueError):
                raise ValueError(f"cluster.links.{name} must be rows of numbers, such as [[0, 2], [2, 0]]") from None
            object.__setattr__(self, name, rows)

    @property
    def given(self) -> bool:
        return bool(self.gbps or self.latency_s or self.file)


@dataclass(frozen=True)
class ClusterConfig:
    """What the cluster is: ``nodes`` × ``ranks_per_node`` devices, and the links among them. All devices are equal but
    for those of ``other_devices``, whose entries stand for the last nodes, in their order. Plans count with them; what
    a layout after a loss needs is still held against ``device.memory_gib`` alone."""

    name: str = "local"  # shown in plans
    nodes: int = 2  # machines
    ranks_per_node: int = 2  # devices of each
    device: DeviceConfig = field(default_factory=DeviceConfig)
    intra_node: LinkConfig = field(default_factory=LinkConfig)
    inter_node: LinkConfig = field(default_factory=LinkConfig)
    links: LinksConfig = field(default_factory=LinksConfig)
    fabric: Literal["switch", "mesh"] = "switch"  # within a node: a port for each device, or a link for every pair
    shared_cores: bool = False  # ranks share this machine's cores (a local CPU cluster)
    node_mtbf_hours: float = 0.0  # mean time between failures of one node; 0: plans take them to last for ever
    node_repair_hours: float = 2.0  # until a failed node, or one in its place, is back
    other_devices: tuple[Any, ...] = ()  # [{nodes: 2, device: {name: …}}, …]; keys left out are as in device

    def __post_init__(self) -> None:
        if self.other_devices:
            from trainsys.other_devices import other_devices

            object.__setattr__(self, "other_devices", other_devices(self.other_devices, self.device))


@dataclass(frozen=True)
class DataConfig:
    path: str = "stdlib"  # "stdlib" (the Python sources on this machine), or a .txt/.jsonl/.bin file or a folder
    tokenizer: str = "bpe"  # "bpe" (byte-level, trained once and cached), "bytes", or a tokenizer.json
    max_bytes: int = 8_000_000  # of text read from path
    cache_dir: str = "~/.cache/trainsys"  # of tokenised text and trained tokenizers


@dataclass(frozen=True)
class BatchConfig:
    global_size: int = 16  # sequences per step, whatever the layout
    microbatch_size: int = 2  # sequences per microbatch; fixed for the run, so that numbers do not depend on layout
    seq_len: int = 128  # tokens per sequence, at most
    seq_lens: tuple[int, ...] = ()  # lengths that a step's microbatches have in turn; empty: all seq_len

    def length(self, microbatch: int) -> int:
        """Tokens of each sequence of a step's microbatch: every rank knows it before anything is sent."""
        return self.seq_lens[microbatch % len(self.seq_lens)] if self.seq_lens else self.seq_len

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.microbatch_size * sum(map(self.length, range(self.global_size // self.microbatch_size)))


@dataclass(frozen=True)
class ParallelConfig:
    """The layout in one line. ``stage_layers``/``stage_replicas`` make it ragged; empty means uniform."""

    dp: int = 1  # replicas of every stage
    tp: int = 1  # ranks that share one replica of a stage, splitting its matrices
    pp: int = 1  # pipeline stages
    vp: int = 1  # runs of layers of each stage, which the stages take in turn (interleaved schedule)
    cp: int = 1  # teams of a replica, each with a part of every sequence (context parallelism)
    cp_method: str = "auto"  # of attention between cp teams, a name of trainsys.sequence.methods; auto: the fastest
    cp_layout: Literal["zigzag", "contiguous", "striped"] = "zigzag"  # which positions a cp team has
    cp_merge: Literal["canonical", "schedule"] = "canonical"  # canonical: the same bits by every method
    ep: int = 1  # classes of teams, each with its own experts
    order: str = "tp,cp,pp,dp"  # how ranks are numbered along the axes, fastest first
    zero: int = 0  # sharded over replicas and cp: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too
    sequence_parallel: bool = False  # shard norms and dropout over the sequence inside tp (not context parallelism)
    schedule: str = "1f1b"  # a name registered in trainsys.schedule, or FILE.csv in the notation of torch
    placement: Literal["auto", "loop", "v"] = "auto"  # of the runs of layers on the stages; auto: as the schedule wants
    vocabulary: Literal["ends", "one_barrier", "two_barriers"] = "ends"  # its matrices at both ends, or on all stages
    activations: float = 0.0  # most microbatches that a rank keeps, for schedules that can choose; 0: their own limit
    recompute: Literal["none", "full", "stage"] = "none"  # keep only each layer's (full) or run of layers' input
    offload: Literal["none", "activations", "scheduled"] = "none"  # to the host; scheduled: beside the computation
    reduction: Literal["canonical", "fast"] = "canonical"  # canonical: the same bits on every layout of one tp and cp
    stage_layers: tuple[int, ...] = ()  # layers of each stage (under vp of each run); empty: as even as possible
    stage_replicas: tuple[int, ...] = ()  # replicas of each stage; empty: dp everywhere
    replica_shares: tuple[int, ...] = ()  # microbatches of each replica, stage by stage; empty: as even as possible
    devices: tuple[int, ...] = ()  # rank at each place of the mesh, counted in the order above; empty: 0, 1, 2, …


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-3  # after the warm-up
    min_lr: float = 1e-4  # where the cosine ends, at the last step
    warmup_steps: int = 10  # steps of linear warm-up
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.1  # of AdamW, on every parameter
    clip: float = 1.0  # global gradient norm; 0 switches clipping off
    post_validation: bool = False  # begin a step before the last one's norm is known; the same bits, no barrier


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 50  # optimizer steps of the whole run, those before a resume included
    seed: int = 0  # of initial values, data order and dropout
    init_from: str = ""  # "KIND:PATH": start from these weights (hf, dcp, deepspeed, universal, megatron); empty: seed
    dtype: DType = "float32"  # of parameters and activations; masters and moments are float32, or float64 with it
    log_every: int = 1  # steps between lines on the screen
    trace_steps: int = 2  # last steps kept in trace.json
    emulate: bool = False  # stages sleep for as long as planned instead of computing; nothing is learned or saved
    emulate_scale: float = 1.0  # emulated seconds per planned second
    emulate_slow: str = ""  # RANK:FACTOR@FIRST-LAST, FROM>TO:SECONDS@…, or with hang; file:PATH: as that changes


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 0  # steps; 0: only at the end and on SIGTERM
    keep: int = 2  # newest checkpoints that stay
    beside: bool = False  # write a copy of the state while training goes on; the last one, and at a stop, in a pause
    dir: str = ""  # empty: <run_dir>/checkpoints
    resume: bool = True  # go on from the newest whole checkpoint, if there is one


@dataclass(frozen=True)
class ElasticConfig:
    heartbeat_limit_s: float = 1.0  # a rank silent for longer is taken for hung, and killed
    min_ranks: int = 1  # with fewer living ranks training ends
    tolerate: int = 1  # ranks that may fail at once: so many more hold every piece of state; 0: no copies are kept
    snapshot: Literal["replay", "full", "delta", "auto"] = "replay"  # how copies are kept: gradients, state, changes
    spare_delay_s: float = -1.0  # after a death start a fresh rank this much later; negative: never
    spares: int = 0  # ranks started beside the cluster's, imported and idle until one is missing
    manager_limit_s: float = 10.0  # how long ranks wait for another manager when theirs is lost
    start_limit_s: float = 120.0  # a started rank that has not joined after this is given up
    comm_timeout_s: float = 20.0  # after which a blocked operation fails by itself
    stall_limit_s: float = 300.0  # a change that takes longer is called off; who answers that no sooner is killed
    hang_limit_s: float = 0.0  # whoever's main thread is in one thing for longer is named and killed; 0: nobody
    stragglers: Literal["tell", "balance", "drain"] = "tell"  # balance: less work first; drain: without it at once
    straggler_factor: float = 1.3  # times as long as before, or as its equals, that make a rank or link a straggler
    straggler_steps: int = 3  # in a row
    release: Literal["commit", "progressive"] = "commit"  # of the old state: at the end, or in portions meanwhile
    move: Literal["auto", "pause", "beside"] = "auto"  # a planned layout is made in a pause, or beside steps
    clocks: Literal["none", "nvml", "cpufreq", "emulated"] = "none"  # who sets devices' clocks, by their stages' work
    staging_mib: float = 16.0  # MiB of buffers while the layout changes; with release=progressive, of all that is extra
    chunk: int = 16384  # elements per unit of ZeRO ownership and of the gradient norm; fixed for the run
    port: int = 0  # of the agent's store; 0: any free port
    history: bool = True  # every process writes down what it did, for trainsys check
    history_every: int = 0  # steps between hashes of the state in the history; 0: at changes and at the end only


@dataclass(frozen=True)
class FaultsConfig:
    """Faults are data: a ``schedule``, ``kills`` random ones, random times (``mtbf_s``), or a recorded ``trace``."""

    schedule: str = ""  # faults by step, rank and phase: "kill@17:2:backward,stop@30:0,cut@33:0+1,join@40"
    seed: int = 0  # of the random faults
    kills: int = 0  # random faults
    nemeses: str = "kill"  # kinds of the random faults, separated by commas; all: every kind
    rejoin_after: int = 0  # steps after a random loss at which a fresh rank joins; 0: never
    mtbf_s: float = 0.0  # mean seconds between kills of random ranks of the cluster; 0: none
    trace: str = ""  # file of a spot market: nodes come and go as it says
    trace_speed: float = 1.0  # seconds of the trace that pass in one second
    grace_s: float = 0.0  # from the notice of a removal in the trace to the kill; 0: no notice
    expect: Literal["survive", "lost", "found"] = "survive"  # or end: state lost, or found to differ


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    launcher: Literal["local", "ray"] = "local"  # of rank processes: on this machine, or as actors of a Ray cluster
    run_dir: str = "runs/default"  # folder of everything that the run writes


def load(args: Sequence[str]) -> RunConfig:
    """Merge YAML files and ``key=value`` overrides, in the order given, over the defaults.

    Raises:
        ValueError: one line naming the file or key, for an unknown key, a wrong type or an unreadable file.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from trainsys.bounds import check_bounds

    files = [a for a in args if "=" not in a]
    overrides = [_literal(a) for a in args if "=" in a]
    _check_keys([a.partition("=")[0] for a in overrides])
    merged: Any = OmegaConf.structured(RunConfig)
    OmegaConf.set_readonly(merged, False)
    try:
        for name in files:
            for part in _with_bases(Path(name)):
                merged = _merge(merged, part)
        merged = _merge(merged, OmegaConf.from_dotlist(overrides))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(_one_line(error, " ".join(a for a in args if "=" in a))) from None
    except YAMLError:
        raise ValueError(_unreadable(overrides)) from None
    assert isinstance(config, RunConfig)
    check_bounds(config)
    return config


def _literal(override: str) -> str:
    """Of a text what stands there, which YAML would read as a number or more: ``run_dir=007``. ``key=`` is empty."""
    key, _, value = override.partition("=")
    if not value:
        return f"{key}=''"
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in ("'", '"')
    if quoted or not _is_text(key):
        return override
    inside = value.replace("'", "''")
    return f"{key}='{inside}'"


def _is_text(key: str) -> bool:
    """Whether a dotted key has any text for its value; one of a few words is none."""
    part: Any = RunConfig()
    *sections, last = key.split(".")
    for name in sections:
        part = getattr(part, name, None)
    return dataclasses.is_dataclass(part) and any(f.name == last and f.type == "str" for f in dataclasses.fields(part))


def _unreadable(overrides: Sequence[str]) -> str:
    """Says which of the overrides has a value that YAML cannot read."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    for override in overrides:
        try:
            OmegaConf.from_dotlist([override])
        except YAMLError:
            return (
                f"{override} has no value that can be read; set {override.partition('=')[0]}= to another, or quote it"
            )
    raise AssertionError(overrides)


def named(args: Sequence[str]) -> set[str]:
    """The dotted keys to which the YAML files and overrides of `load` give a value, be it that of the default.

    Raises:
        ValueError: one line for an unreadable file.
    """
    from omegaconf import OmegaConf

    nodes = [part for name in args if "=" not in name for part in _with_bases(Path(name))]
    keys = {a.partition("=")[0] for a in args if "=" in a}
    for node in nodes:
        keys.update(_leaves(OmegaConf.to_container(node)))
    return keys


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else (f"{prefix}{key}",)


def save(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load` reads it back to an equal object."""
    path.write_text(to_yaml(config))


def to_yaml(config: RunConfig) -> str:
    """The text that `save` writes."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of any of the dataclasses above (for JSON)."""
    return dataclasses.asdict(config)


def _check_keys(keys: Sequence[str]) -> None:
    """Whether each override names a value rather than nothing or a whole section."""
    sections = {part.name: getattr(RunConfig(), part.name) for part in dataclasses.fields(RunConfig)}
    for key in keys:
        if not key:
            raise ValueError("an override has no key before its '='; write key=value, such as train.steps=100")
        if dataclasses.is_dataclass(sections.get(key)):
            first = dataclasses.fields(sections[key])[0].name
            raise ValueError(f"{key} is a section, not a value; set one of its keys, such as {key}.{first}=…")


def _merge(config: Any, part: Any) -> Any:
    """`part` over `config`.

    Raises:
        ValueError: naming the first key that has a mapping in place of a list.
    """
    from omegaconf import OmegaConf

    try:
        return OmegaConf.merge(config, part)
    except TypeError:  # all that OmegaConf says of it is "incompatible container types"
        for key in _keys(RunConfig()):
            had, given = OmegaConf.select(config, key), OmegaConf.select(part, key)
            if OmegaConf.is_dict(given) and not OmegaConf.is_dict(had):
                raise ValueError(f"{key}={given} must be a list, such as [1, 2]") from None
        raise


def _with_bases(path: Path, seen: tuple[Path, ...] = ()) -> list[Any]:
    """The YAML files to merge for `path`: its ``base:`` files first, itself last."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if path.resolve() in seen:
        raise ValueError(f"config {path} names itself under base:")
    try:
        node: Any = OmegaConf.load(path)
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist (overrides are written key=value)") from None
    except IsADirectoryError:
        raise ValueError(f"config file {path} is a folder; name a YAML file, such as configs/run/tiny.yaml") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"config file {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(node):
        raise ValueError(f"config file {path} must hold a mapping of sections, not a list")
    bases = OmegaConf.to_container(OmegaConf.create({"base": node.pop("base", [])}))["base"]  # type: ignore[index,call-overload]
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"config file {path}: base must be a path or a list of paths, not {bases!r}")
    parts = []
    for base in bases:
        parts += _with_bases(path.parent / base, (*seen, path.resolve()))
    _from_here(node, path.parent)
    return [*parts, node]


def _from_here(node: Any, folder: Path) -> None:
    """Make the file that a YAML names as ``cluster.links.file`` absolute, so that a saved config finds it as well."""
    from omegaconf import OmegaConf

    name = OmegaConf.select(node, "cluster.links.file", default="")
    if isinstance(name, str) and name:
        OmegaConf.update(node, "cluster.links.file", str((folder / name).resolve()))


def _one_line(error: Exception, overrides: str) -> str:
    """OmegaConf's message with the full key in front, or where it knows none the overrides; no internal lines."""
    from omegaconf.errors import ConfigKeyError

    key = getattr(error, "full_key", None)
    if key and isinstance(error, ConfigKeyError):
        return f"{key} is unknown{_suggestion(key)}"
    first = str(error).splitlines()[0]
    return f"{key or overrides}: {first}" if key or overrides else first


def _suggestion(key: str) -> str:
    """``; did you mean train.steps?``, or what its section has."""
    known = list(_keys(RunConfig()))
    section, _, last = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, known, 1, 0.75) or [k for k in known if k.endswith(f".{last}")][:1]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; {section or 'the top level'} has {', '.join(k.rpartition('.')[2] for k in siblings)}" if siblings else ""


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, sections included."""
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        yield prefix + part.name
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{part.name}.")
