"""A rank's rows of both vocabulary matrices, and what it computes with them (Yeung et al. 2024, arXiv:2411.05288, §4).

With X the last hidden states, W_j the rows of part j and l = X W_jᵀ, S makes per token the maximum m_j, the sum s_j of
exp(l - m_j) and the target's logit y_j, 0 where it is another's. Of all parts together follow M, S and y, the loss
M + log S - y, and the gradient of the logits, (exp(l - M) / S - onehot) / tokens.

    two barriers: T makes that gradient, and with it those of X and W_j (algorithm 1)
    one barrier: S also makes A_j = exp(l - m_j) W_j / s_j and G_j = W_j[target]. The gradient of X is linear in them,
        (Σ_j a_j A_j - G_j) / tokens with a_j = s_j exp(m_j - M) / S, so that T makes only that of W_j (algorithm 2)

Parts are computed one by one and merged in one binary tree over all of them, wherever they are: a change of pp does not
change a bit.

    T = tokens of a microbatch here, D = hidden size, N = parts, a *row* = (m, s, y) or, in one barrier, (m, s, y, A, G)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainsys.comm.tree import Tree, TreeSum
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.parallel.stage import Batch
from trainsys.parallel.tensor import TensorParallel

STATISTICS = 3  # columns m, s and y
aten = torch.ops.aten


@dataclass(frozen=True)
class Rows:
    """The rows of one part on one rank.

    Attributes:
        part: its number.
        first: the first row's token.
        table, output: names and values [rows, D] of input table and head; of a tied pair the same values.
    """

    part: int
    first: int
    table: tuple[str, Tensor]
    output: tuple[str, Tensor]

    def local(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(which of the tokens are here, their rows), of any others 0."""
        rows = tokens - self.first
        inside = (rows >= 0) & (rows < len(self.table[1]))
        return inside, rows.masked_fill(~inside, 0)


class VocabularyParts:
    """The passes of one rank.

    Args:
        rows: of this rank, in order of parts.
        tree: over all parts.
        one_barrier: the form.
        length: tokens of each sequence of a microbatch.
        total_tokens: of the global batch.
        on_grads: called with (microbatch, gradient per name).
    """

    def __init__(
        self, rows: Sequence[Rows], tree: Tree, one_barrier: bool, length: Callable[[int], int], total_tokens: int,
        tp: TensorParallel | None, cp: ContextParallel | None, on_grads: Callable[[int, dict[str, Tensor]], None],
    ) -> None:  # fmt: skip
        self.rows, self.tree, self.one_barrier, self.total_tokens = rows, tree, one_barrier, total_tokens
        self.tp, self.cp, self._length, self._on_grads = tp, cp, length, on_grads
        self.dtype = torch.promote_types(rows[0].table[1].dtype, torch.float32)  # of statistics and sums
        self.dim = rows[0].table[1].shape[1]
        self.batch = Batch(0, {})
        self.losses: dict[int, float] = {}
        self._kept: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}  # X, and per part softmax and (m, s)

    @property
    def params(self) -> dict[str, Tensor]:
        """All of its values by name."""
        return dict(values for rows in self.rows for values in (rows.table, rows.output))

    def begin(self, batch: Batch) -> None:
        """Start a step; whatever an abandoned step left is dropped."""
        self.batch, self.losses = batch, {}
        self._kept.clear()

    def tokens(self, microbatch: int) -> Tensor:
        """int64 [B, S] of this rank's part of the sequences."""
        tokens = self.batch.microbatches[microbatch][0][:, : self._length(microbatch)]
        return tokens if self.cp is None else self.cp.cut(tokens)

    def targets(self, microbatch: int) -> Tensor:
        """int64 [T]."""
        targets = self.batch.microbatches[microbatch][1][:, : self._length(microbatch)]
        return (targets if self.cp is None else self.cp.cut(targets)).flatten()

    # -- the input -----------------------------------------------------------------------------------------------

    def lookup(self, microbatch: int) -> Tensor:
        """E: [B, S, D], zeros where the token's row is elsewhere."""
        tokens = self.tokens(microbatch)
        table = self.rows[0].table[1]
        out = torch.zeros(*tokens.shape, self.dim, dtype=table.dtype, device=table.device)
        for rows in self.rows:
            inside, local = rows.local(tokens)
            out[inside] = rows.table[1][local[inside]]
        return out if self.tp is None else self.tp.all_reduce(out)

    def lookup_backward(self, microbatch: int, grad: Tensor) -> None:
        """G: the gradient of what all lookups add up to, [B, S, D], to its rows."""
        tokens, grads = self.tokens(microbatch), {}
        for rows in self.rows:
            inside, local = rows.local(tokens)
            name, table = rows.table
            grads[name] = aten.embedding_dense_backward(grad[inside], local[inside], len(table), -1, False)
        self._on_grads(microbatch, grads)

    # -- the head ------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Columns of a row that the last stage gets."""
        return STATISTICS + (2 * self.dim if self.one_barrier else 0)

    def score(self, microbatch: int, x: Tensor) -> list[Tensor]:
        """S: the rows [T, width] of this rank's nodes of the tree, in its order.

        Args:
            x: the output of the last stage, [B, S, D], under sequence parallelism [B, S/tp, D].
        """
        if self.tp is not None and self.tp.sequence_parallel:
            x = self.tp.gather_sequence(x)
        x, targets = x.detach().flatten(0, -2), self.targets(microbatch)
        kept: list[tuple[Tensor, Tensor]] = []
        total: TreeSum[Tensor] = TreeSum(self.tree, merged)
        for rows in self.rows:
            row, softmax = self._score_part(rows, x, targets)
            kept.append((softmax, row[:, :2].clone()))
            total.push(self.tree.leaf(rows.part), row if self.tp is None else self._over_tp(row))
        self._kept[microbatch] = x, kept
        return nodes_in_order(total)

    def _score_part(self, rows: Rows, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A row [T, width], and the softmax over this rank's part alone, [T, rows]."""
        weight = rows.output[1]
        logits = (x @ weight.t()).to(self.dtype)
        inside, local = rows.local(targets)
        top = logits.amax(dim=-1)
        wanted = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~inside, 0.0)
        softmax = logits.sub_(top.unsqueeze(-1)).exp_()
        sums = softmax.sum(dim=-1)
        softmax /= sums.unsqueeze(-1)
        row = torch.empty(len(x), self.width, dtype=self.dtype, device=x.device)
        row[:, 0], row[:, 1], row[:, 2] = top, sums, wanted
        if self.one_barrier:
            row[:, STATISTICS : STATISTICS + self.dim] = softmax.to(x.dtype) @ weight
            row[:, STATISTICS + self.dim :] = weight[local].masked_fill(~inside.unsqueeze(-1), 0.0)
        return row, softmax

    def _over_tp(self, row: Tensor) -> Tensor:
        """The row of a part whose rows lie on several tp ranks; the same on all of them."""
        assert self.tp is not None
        shards = self.tp.all_gather(row[:, :STATISTICS])
        whole = shards[0]
        for shard in shards[1:]:
            whole = merged(whole, shard)
        if not self.one_barrier:
            return whole
        row[:, STATISTICS : STATISTICS + self.dim] *= share(row, whole)
        return torch.cat([whole, self.tp.all_reduce(row[:, STATISTICS:].contiguous())], dim=1)

    def finish(self, microbatch: int, whole: Tensor) -> list[Tensor]:
        """T: the gradients of this rank's rows of the head, and in two barriers its nodes of that of X, [T, D] each.

        Args:
            whole: of all parts together, [T, 3 or more].
        """
        x, kept = self._kept.pop(microbatch)
        targets, grads = self.targets(microbatch), {}
        total: TreeSum[Tensor] = TreeSum(self.tree, Tensor.add_)
        for rows, (softmax, own) in zip(self.rows, kept, strict=True):
            inside, local = rows.local(targets)
            name, weight = rows.output
            softmax *= share(own, whole)
            softmax.scatter_add_(-1, local.unsqueeze(-1), -inside.to(self.dtype).unsqueeze(-1))
            softmax /= self.total_tokens
            grad = softmax.to(x.dtype)
            grads[name] = grad.t() @ x
            if not self.one_barrier:
                of_x = (grad @ weight).to(self.dtype)
                total.push(self.tree.leaf(rows.part), of_x if self.tp is None else self.tp.all_reduce(of_x))
        self._on_grads(microbatch, grads)
        return nodes_in_order(total)

    # -- on the last stage ---------------------------------------------------------------------------------------

    def conclude(self, microbatch: int, whole: Tensor, of_x: Tensor | None) -> Tensor:
        """Note the loss; the gradient of the last stage's output, of its shape.

        Args:
            whole: the row of all parts together.
            of_x: in two barriers the sum of what all T made, [T, D].
        """
        self.losses[microbatch] = (whole[:, 0] + whole[:, 1].log() - whole[:, 2]).sum().item() / self.total_tokens
        if of_x is None:
            average, wanted = whole[:, STATISTICS:].split(self.dim, dim=1)
            of_x = (average - wanted) / self.total_tokens
        grad = of_x.to(self.rows[0].table[1].dtype).view(*self.tokens(microbatch).shape, self.dim)
        return self.tp.slice_sequence(grad) if self.tp is not None and self.tp.sequence_parallel else grad


def share(row: Tensor, whole: Tensor) -> Tensor:
    """The part that the sum of a row has in that of the whole, [T, 1]."""
    return (row[:, 1] * (row[:, 0] - whole[:, 0]).exp() / whole[:, 1]).unsqueeze(-1)


def merged(left: Tensor, right: Tensor) -> Tensor:
    """The row of two sets of parts together (Milakov and Gimelshein 2018, arXiv:1805.02867, §3.1)."""
    out = torch.empty_like(left)
    out[:, 0] = torch.maximum(left[:, 0], right[:, 0])
    sums = [row[:, 1] * (row[:, 0] - out[:, 0]).exp() for row in (left, right)]
    out[:, 1] = sums[0] + sums[1]
    out[:, 2] = left[:, 2] + right[:, 2]
    width = (left.shape[1] - STATISTICS) // 2
    if width:
        averages = slice(STATISTICS, STATISTICS + width)
        out[:, averages] = share(left, out) * left[:, averages] + share(right, out) * right[:, averages]
        out[:, STATISTICS + width :] = left[:, STATISTICS + width :] + right[:, STATISTICS + width :]
    return out


def nodes_in_order(total: TreeSum[Tensor]) -> list[Tensor]:
    """What it holds, in the order of `Tree.roots`."""
    return [total.nodes[node] for node in sorted(total.nodes, key=lambda n: n[1] << n[0])]


def total_of(tree: Tree, nodes: Mapping[tuple[int, int], Tensor], add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The sum of nodes that make up the whole tree."""
    total: TreeSum[Tensor] = TreeSum(tree, add)
    for node, value in nodes.items():
        total.push(node, value)
    return total.total()
