"""The specification of each kernel in plain PyTorch, a formula per line, in the precision of its inputs.

Optimized code never imports this file; tests compare the two, and the `reference` backend runs it.

Shape suffixes: B batch, T queries, S keys (S = T), H query heads, K key/value heads, G = H/K, D head size;
R rows (tokens), V vocabulary.
"""

import math

import torch
from torch import Tensor


def attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int = 0, documents_BT: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / √D) v over the visible keys (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) → out_BTHD.

    Query head h reads key/value head h // G (grouped-query attention, arXiv 2305.13245).
    """
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.shape[2]
    q_BTKGD = q_BTHD.reshape(B, T, K, H // K, D)
    scores_BKGTS = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k_BTKD) / math.sqrt(D)
    visible_BTS = visible(T, window, documents_BT, q_BTHD.device)
    scores_BKGTS = scores_BKGTS.masked_fill(~visible_BTS[:, None, None], float("-inf"))
    weights_BKGTS = scores_BKGTS.softmax(dim=-1)
    out_BTKGD = torch.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BTKD)
    return out_BTKGD.reshape(B, T, H, D)


def visible(tokens: int, window: int, documents_BT: Tensor | None, device: torch.device) -> Tensor:
    """visible_BTS (B is 1 without documents): query t sees key s when s is not later, is among the last
    `window` keys (t itself included; 0 for no limit), and belongs to the same document."""
    t_T1 = torch.arange(tokens, device=device)[:, None]
    s_1S = torch.arange(tokens, device=device)[None, :]
    seen_BTS = (s_1S <= t_T1)[None]
    if window:
        seen_BTS = seen_BTS & (t_T1 - s_1S < window)[None]
    if documents_BT is not None:
        seen_BTS = seen_BTS & (documents_BT[:, :, None] == documents_BT[:, None, :])
    return seen_BTS


def cross_entropy(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """The mean over rows of -log softmax(logits)[target], in nats."""
    log_sums_R = logits_RV.logsumexp(dim=-1)
    target_logits_R = logits_RV.gather(-1, targets_R[:, None])[:, 0]
    return (log_sums_R - target_logits_R).mean()
