"""Causal attention in Triton, forward and backward: FlashAttention-2's arithmetic (Dao 2023, arXiv 2307.08691).

Scores exist one tile at a time. The forward keeps a running maximum and sum per query and stores their logarithm; the
backward remakes each tile's weights from it. Two backward kernels, one that owns queries (dq) and one that owns keys
(dk, dv), so that every output element is summed by one program in one order: repeated runs give equal bits. Each
computes the transposition it needs as a product of its own (k·qᵀ beside q·kᵀ): transposing a product's result gives
wrong numbers on Hopper with Triton 3.4 to 3.7.0.

What a query sees is an interval of keys: from its first visible one, which window and document set, to itself. So
tiles fall into those that nobody sees, never visited; those that everybody sees, computed without a mask; and edges.
Document ids must not decrease along T for that; `kernels.attention` turns them into `starts` and `ends`.

Products accumulate in fp32, of fp32 inputs at full precision ("ieee", not TF32). Softmax is in base 2, log₂e being
folded into the scale. Head dimensions up to 128 are padded to a power of two, at least 16, inside the kernels. Offsets
of whole sequences are 64 bits wide, those within a tile 32.

Shape suffixes: B batch, T tokens, H query heads, K key/value heads, D head dimension; of a tile, Q queries, S keys.
"""

import triton
import triton.language as tl


@triton.jit
def forward(
    q, k, v, starts, out, lse,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    T, H, G, window, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGES: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """out_BTHD, and lse_BHT: the base-2 logarithm of each query's sum. One program per head and tile of queries.

    G = H/K; `window` is T where there is none; EDGES: window or documents hide keys.
    """
    q0, b, h = _tile_of_queries(T, H, BLOCK_Q)
    k += _offset(b, k_b) + _offset(h // G, k_h)
    v += _offset(b, v_b) + _offset(h // G, v_h)
    starts += _offset(b, T)
    t_Q = q0 + tl.arange(0, BLOCK_Q)
    q_QD = _load(q + _offset(b, q_b) + _offset(h, q_h), q0, q_t, q_d, T, D, BLOCK_Q, BLOCK_D, True)
    first_Q = _first_visible(t_Q, starts, T, window, DOCUMENTS)
    lo, full_lo, full_hi, hi = _visible_keys(q0, starts, T, window, BLOCK_Q, BLOCK_K, EDGES, DOCUMENTS)
    acc_QD = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    sum_Q = tl.zeros([BLOCK_Q], tl.float32)
    max_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    if EDGES:
        acc_QD, sum_Q, max_Q = _attend(
            acc_QD, sum_Q, max_Q, q_QD, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, lo, full_lo, T, scale_log2,
            D, BLOCK_D, BLOCK_K, True,
        )  # fmt: skip
    acc_QD, sum_Q, max_Q = _attend(
        acc_QD, sum_Q, max_Q, q_QD, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, full_lo, full_hi, T, scale_log2,
        D, BLOCK_D, BLOCK_K, False,
    )  # fmt: skip
    acc_QD, sum_Q, max_Q = _attend(
        acc_QD, sum_Q, max_Q, q_QD, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, full_hi, hi, T, scale_log2,
        D, BLOCK_D, BLOCK_K, True,
    )  # fmt: skip
    _store(out, acc_QD / sum_Q[:, None], b, q0, h, T, H, D, BLOCK_Q, BLOCK_D)
    tl.store(lse + _offset(b * H + h, T) + t_Q, max_Q + tl.log2(sum_Q), mask=t_Q < T)


@triton.jit
def _attend(
    acc_QD, sum_Q, max_Q, q_QD, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, lo, hi, T, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the keys from `lo` to `hi` into a tile of queries' running output, sum and maximum."""
    for s0 in range(lo, hi, BLOCK_K):
        k_SD = _load(k, s0, k_t, k_d, T, D, BLOCK_K, BLOCK_D, MASKED)
        scores_QS = tl.dot(q_QD, tl.trans(k_SD), input_precision="ieee")
        if MASKED:
            s_S = s0 + tl.arange(0, BLOCK_K)
            visible_QS = (s_S[None, :] <= t_Q[:, None]) & (s_S[None, :] >= first_Q[:, None])
            scores_QS = tl.where(visible_QS, scores_QS, float("-inf"))
        new_max_Q = tl.maximum(max_Q, tl.max(scores_QS, 1) * scale_log2)
        if MASKED:  # a query that has seen nothing yet: -inf less -inf is not a number
            subtracted_Q = tl.where(new_max_Q == float("-inf"), 0.0, new_max_Q)
        else:
            subtracted_Q = new_max_Q
        weights_QS = tl.exp2(scores_QS * scale_log2 - subtracted_Q[:, None])
        decay_Q = tl.exp2(max_Q - subtracted_Q)
        sum_Q = sum_Q * decay_Q + tl.sum(weights_QS, 1)
        v_SD = _load(v, s0, v_t, v_d, T, D, BLOCK_K, BLOCK_D, MASKED)
        acc_QD = tl.dot(weights_QS.to(v_SD.dtype), v_SD, acc_QD * decay_Q[:, None], input_precision="ieee")
        max_Q = new_max_Q
    return acc_QD, sum_Q, max_Q


@triton.jit
def backward_q(
    q, k, v, starts, out, lse, dout, dq, delta,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, dout_b, dout_t, dout_h, dout_d,
    T, H, G, window, scale, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGES: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """dq_BTHD; and delta_BHT = Σ_D out·dout, which `backward_kv` reads. Programs and arguments as in `forward`."""
    q0, b, h = _tile_of_queries(T, H, BLOCK_Q)
    k += _offset(b, k_b) + _offset(h // G, k_h)
    v += _offset(b, v_b) + _offset(h // G, v_h)
    starts += _offset(b, T)
    t_Q = q0 + tl.arange(0, BLOCK_Q)
    q_QD = _load(q + _offset(b, q_b) + _offset(h, q_h), q0, q_t, q_d, T, D, BLOCK_Q, BLOCK_D, True)
    dout_QD = _load(dout + _offset(b, dout_b) + _offset(h, dout_h), q0, dout_t, dout_d, T, D, BLOCK_Q, BLOCK_D, True)
    out_QD = _load(out + _offset(b * T, H * D) + h * D, q0, H * D, 1, T, D, BLOCK_Q, BLOCK_D, True)
    delta_Q = tl.sum(out_QD.to(tl.float32) * dout_QD.to(tl.float32), 1)
    row_Q = _offset(b * H + h, T) + t_Q
    tl.store(delta + row_Q, delta_Q, mask=t_Q < T)
    lse_Q = tl.load(lse + row_Q, mask=t_Q < T, other=float("inf"))  # weights of queries beyond T are then zero
    first_Q = _first_visible(t_Q, starts, T, window, DOCUMENTS)
    lo, full_lo, full_hi, hi = _visible_keys(q0, starts, T, window, BLOCK_Q, BLOCK_K, EDGES, DOCUMENTS)
    dq_QD = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if EDGES:
        dq_QD = _gather_dq(
            dq_QD, q_QD, dout_QD, lse_Q, delta_Q, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, lo, full_lo, T, scale_log2,
            D, BLOCK_D, BLOCK_K, True,
        )  # fmt: skip
    dq_QD = _gather_dq(
        dq_QD, q_QD, dout_QD, lse_Q, delta_Q, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, full_lo, full_hi, T, scale_log2,
        D, BLOCK_D, BLOCK_K, False,
    )  # fmt: skip
    dq_QD = _gather_dq(
        dq_QD, q_QD, dout_QD, lse_Q, delta_Q, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, full_hi, hi, T, scale_log2,
        D, BLOCK_D, BLOCK_K, True,
    )  # fmt: skip
    _store(dq, dq_QD * scale, b, q0, h, T, H, D, BLOCK_Q, BLOCK_D)


@triton.jit
def _gather_dq(
    dq_QD, q_QD, dout_QD, lse_Q, delta_Q, t_Q, first_Q, k, v, k_t, k_d, v_t, v_d, lo, hi, T, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add to dq what the keys from `lo` to `hi` contribute, the scale left out."""
    for s0 in range(lo, hi, BLOCK_K):
        k_SD = _load(k, s0, k_t, k_d, T, D, BLOCK_K, BLOCK_D, MASKED)
        v_SD = _load(v, s0, v_t, v_d, T, D, BLOCK_K, BLOCK_D, MASKED)
        scores_QS = tl.dot(q_QD, tl.trans(k_SD), input_precision="ieee")
        weights_QS = tl.exp2(scores_QS * scale_log2 - lse_Q[:, None])
        if MASKED:
            s_S = s0 + tl.arange(0, BLOCK_K)
            visible_QS = (s_S[None, :] <= t_Q[:, None]) & (s_S[None, :] >= first_Q[:, None])
            weights_QS = tl.where(visible_QS, weights_QS, 0.0)
        dweights_QS = tl.dot(dout_QD, tl.trans(v_SD), input_precision="ieee")
        dscores_QS = weights_QS * (dweights_QS - delta_Q[:, None])
        dq_QD = tl.dot(dscores_QS.to(k_SD.dtype), k_SD, dq_QD, input_precision="ieee")
    return dq_QD


@triton.jit
def backward_kv(
    q, k, v, starts, ends, lse, dout, delta, dk, dv,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, dout_b, dout_t, dout_h, dout_d,
    T, K, G, window, scale, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGES: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """dk_BTKD and dv_BTKD. One program per key/value head and tile of keys; it sums over the head's G query heads.

    EDGES: window or documents hide keys, or T is not a multiple of BLOCK_Q. BLOCK_Q must divide BLOCK_K.
    """
    tl.static_assert(BLOCK_K % BLOCK_Q == 0)
    tiles = tl.cdiv(T, BLOCK_K)
    program = tl.program_id(0)
    s0 = program % tiles * BLOCK_K  # the first keys have the most queries: longest first
    b = program // tiles // K
    kv_head = program // tiles % K
    starts += _offset(b, T)
    s_S = s0 + tl.arange(0, BLOCK_K)
    k_SD = _load(k + _offset(b, k_b) + _offset(kv_head, k_h), s0, k_t, k_d, T, D, BLOCK_K, BLOCK_D, True)
    v_SD = _load(v + _offset(b, v_b) + _offset(kv_head, v_h), s0, v_t, v_d, T, D, BLOCK_K, BLOCK_D, True)
    diagonal_hi = s0 + BLOCK_K  # queries from here on come after every key of the tile,
    full_hi = _last_query(s0, ends + _offset(b, T), T, window, DOCUMENTS) + 1  # and up to here see all of them
    full_hi = diagonal_hi + tl.maximum(full_hi - diagonal_hi, 0) // BLOCK_Q * BLOCK_Q
    hi = _last_query(tl.minimum(diagonal_hi, T) - 1, ends + _offset(b, T), T, window, DOCUMENTS) + 1
    dk_SD = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv_SD = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for g in range(G):
        h = kv_head * G + g
        row = _offset(b * K * G + h, T)
        q_head = q + _offset(b, q_b) + _offset(h, q_h)
        dout_head = dout + _offset(b, dout_b) + _offset(h, dout_h)
        dk_SD, dv_SD = _gather_dkv(
            dk_SD, dv_SD, k_SD, v_SD, s_S, q_head, dout_head, q_t, q_d, dout_t, dout_d, lse + row, delta + row, starts,
            s0, tl.minimum(diagonal_hi, hi), T, window, scale_log2, D, BLOCK_D, BLOCK_Q, True, DOCUMENTS,
        )  # fmt: skip
        dk_SD, dv_SD = _gather_dkv(
            dk_SD, dv_SD, k_SD, v_SD, s_S, q_head, dout_head, q_t, q_d, dout_t, dout_d, lse + row, delta + row, starts,
            diagonal_hi, full_hi, T, window, scale_log2, D, BLOCK_D, BLOCK_Q, False, DOCUMENTS,
        )  # fmt: skip
        if EDGES:
            dk_SD, dv_SD = _gather_dkv(
                dk_SD, dv_SD, k_SD, v_SD, s_S, q_head, dout_head, q_t, q_d, dout_t, dout_d, lse + row, delta + row,
                starts, full_hi, hi, T, window, scale_log2, D, BLOCK_D, BLOCK_Q, True, DOCUMENTS,
            )  # fmt: skip
    _store(dk, dk_SD * scale, b, s0, kv_head, T, K, D, BLOCK_K, BLOCK_D)
    _store(dv, dv_SD, b, s0, kv_head, T, K, D, BLOCK_K, BLOCK_D)


@triton.jit
def _gather_dkv(
    dk_SD, dv_SD, k_SD, v_SD, s_S, q, dout, q_t, q_d, dout_t, dout_d, lse, delta, starts, lo, hi, T, window, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv what one head's queries from `lo` to `hi` contribute, dk's scale left out."""
    for q0 in range(lo, hi, BLOCK_Q):
        t_Q = q0 + tl.arange(0, BLOCK_Q)
        q_QD = _load(q, q0, q_t, q_d, T, D, BLOCK_Q, BLOCK_D, MASKED)
        dout_QD = _load(dout, q0, dout_t, dout_d, T, D, BLOCK_Q, BLOCK_D, MASKED)
        if MASKED:
            lse_Q = tl.load(lse + t_Q, mask=t_Q < T, other=float("inf"))
            delta_Q = tl.load(delta + t_Q, mask=t_Q < T, other=0.0)
        else:
            lse_Q = tl.load(lse + t_Q)
            delta_Q = tl.load(delta + t_Q)
        scores_SQ = tl.dot(k_SD, tl.trans(q_QD), input_precision="ieee")
        weights_SQ = tl.exp2(scores_SQ * scale_log2 - lse_Q[None, :])
        if MASKED:
            first_Q = _first_visible(t_Q, starts, T, window, DOCUMENTS)
            visible_SQ = (s_S[:, None] <= t_Q[None, :]) & (s_S[:, None] >= first_Q[None, :])
            weights_SQ = tl.where(visible_SQ, weights_SQ, 0.0)
        dv_SD = tl.dot(weights_SQ.to(dout_QD.dtype), dout_QD, dv_SD, input_precision="ieee")
        dweights_SQ = tl.dot(v_SD, tl.trans(dout_QD), input_precision="ieee")
        dscores_SQ = weights_SQ * (dweights_SQ - delta_Q[None, :])
        dk_SD = tl.dot(dscores_SQ.to(q_QD.dtype), q_QD, dk_SD, input_precision="ieee")
    return dk_SD, dv_SD


@triton.jit
def _tile_of_queries(T, H, BLOCK_Q: tl.constexpr):
    """This program's first query, sequence and head: a head's tiles are neighbours, which share its keys in the L2
    cache, and start with the last one, which sees the most."""
    tiles = tl.cdiv(T, BLOCK_Q)
    program = tl.program_id(0)
    q0 = (tiles - 1 - program % tiles) * BLOCK_Q
    return q0, program // tiles // H, program // tiles % H


@triton.jit
def _visible_keys(
    q0, starts, T, window,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EDGES: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """lo ≤ full_lo ≤ full_hi < hi: some query of the tile sees keys of [lo, hi), all see all of [full_lo, full_hi)."""
    full_hi = q0 // BLOCK_K * BLOCK_K
    hi = tl.minimum(q0 + BLOCK_Q, T)
    lo = 0
    full_lo = 0
    if EDGES:
        lo = _first_visible(q0, starts, T, window, DOCUMENTS) // BLOCK_K * BLOCK_K
        all_see = _first_visible(hi - 1, starts, T, window, DOCUMENTS)
        full_lo = tl.minimum(tl.cdiv(all_see, BLOCK_K) * BLOCK_K, full_hi)
    return lo, full_lo, full_hi, hi


@triton.jit
def _first_visible(t, starts, T, window, DOCUMENTS: tl.constexpr):
    """The first key that query `t` sees; it does not decrease with `t`."""
    first = tl.maximum(t - window + 1, 0)
    if DOCUMENTS:
        first = tl.maximum(first, tl.load(starts + t, mask=t < T, other=0))
    return first


@triton.jit
def _last_query(s, ends, T, window, DOCUMENTS: tl.constexpr):
    """The last query that sees key `s` < T; it does not decrease with `s`."""
    last = tl.minimum(s - 1 + window, T - 1)
    if DOCUMENTS:
        last = tl.minimum(last, tl.load(ends + s))
    return last


@triton.jit
def _load(
    base, row, stride_t, stride_d, T,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of a head from `row` on; zeros beyond D, and, when BOUNDED, beyond T."""
    r = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    pointers = base + _offset(row, stride_t) + (r[:, None] * stride_t + d[None, :] * stride_d)
    if BOUNDED:
        return tl.load(pointers, mask=(row + r < T)[:, None] & (d < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _store(
    base, x_RD, b, row, head, T, HEADS, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Into a contiguous (B, T, HEADS, D), what lies within T and D."""
    r = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    tile = base + _offset(b * T + row, HEADS * D) + head * D
    inside = (row + r < T)[:, None] & (d < D)[None, :]
    tl.store(tile + (r[:, None] * (HEADS * D) + d[None, :]), x_RD.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _offset(index, stride):
    """Elements, in 64 bits."""
    return tl.cast(index, tl.int64) * stride
