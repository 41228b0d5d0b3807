# SPDX-License-Identifier: MIT
"""Mistakes in the Metal kernels of the backward pass, as those in mutations.py."""

from __future__ import annotations

from mutations import Mutation

GRADIENT_MUTATIONS = [
    # Backward.
    Mutation(
        "a row that saw nothing has probabilities",
        "backward.h",
        "lse == -INFINITY ? INFINITY : lse * kLog2OfE",
        "lse * kLog2OfE",
        witness="mask(bool heads)",
    ),
    Mutation(
        "the log-sum-exp in the wrong base",
        "backward.h",
        "lse == -INFINITY ? INFINITY : lse * kLog2OfE",
        "lse",
        0,
    ),
    Mutation(
        "a hidden pair has a gradient",
        "backward.h",
        "score == -INFINITY ? 0.0f : probability * (grad_probability - delta)",
        "probability * (grad_probability - delta)",
        witness="tail",
    ),
    Mutation("dQ without the slope of the soft cap", "backward.h", "grads[j] *= slopes[j];", "", 0),
    Mutation("dK without the slope of the soft cap", "backward.h", "grads[j] *= slopes[j];", "", 1),
    Mutation(
        "dP is not scaled up", "backward.h", "S::has(kDropout) ? r.dropout_rescale : 1.0f", "1.0f"
    ),
    Mutation("dV is not dropped", "backward.h", "keep(probability, kept_here)", "probability"),
    Mutation(
        "only the first head of a group is walked",
        "backward.h",
        "walk.head < (kv_head + 1) * heads",
        "walk.head < kv_head * heads + 1",
    ),
    Mutation(
        "dK in the place of another chunk",
        "backward.h",
        "walk.chunk * S::out_qk()",
        "0 * S::out_qk()",
        0,
        witness="D192/128",
    ),
    Mutation(
        "a key that is not there is stored",
        "backward.h",
        "walk.first_key + at.row >= p.kv_len",
        "walk.first_key + at.row > p.kv_len",
    ),
    Mutation(
        "delta of another query",
        "backward.h",
        "smaller(pair.query + 1, p.q_len - 1)",
        "smaller(pair.query, p.q_len - 1)",
    ),
    Mutation(
        "queries past the last are read",
        "backward.h",
        "smaller(pair.query, p.q_len - 1)",
        "pair.query",
    ),
    # Delta, and gradients of masks and sinks.
    Mutation(
        "the gradient of the log-sum-exp with the wrong sign",
        "delta.h",
        "sum -= grad_lse[offset(p.grad_lse, row.batch, row.head, row.query)];",
        "sum += grad_lse[offset(p.grad_lse, row.batch, row.head, row.query)];",
    ),
    Mutation("delta: lanes past the dimension", "delta.h", "d < p.v_dim", "d <= p.v_dim"),
    Mutation("every lane stores delta", "delta.h", "lane == 0", "true"),
    Mutation(
        "mask gradient: queries are not summed",
        "bias_gradients.h",
        "if (p.mask_rows == 1) sum = Fragment(sum_of_column(sum.x), sum_of_column(sum.y));",
        "",
        witness="fp16 keys",
    ),
    Mutation(
        "mask gradient: every row stores the sum",
        "bias_gradients.h",
        "(p.mask_rows == 1 && at.row != 0)",
        "false",
        witness="fp16 keys",
    ),
    Mutation(
        "mask gradient: one batch entry only",
        "bias_gradients.h",
        "batch < p.batch",
        "batch < mask_batch + 1",
        witness="matrix soft",
    ),
    Mutation(
        "mask gradient: a repeated row counts twice",
        "bias_gradients.h",
        "seen == 0 || !rows.is_mine",
        "seen == 0",
        witness="fp16 keys",
    ),
    Mutation(
        "mask gradient: a row that is not there",
        "bias_gradients.h",
        "p.mask_rows == 1 || own_query + at.row < p.q_len",
        "true",
    ),
    Mutation(
        "mask gradient: keys are not summed",
        "bias_gradients.h",
        "p.mask_columns == 1",
        "false",
        1,
        witness="fp32 rows",
    ),
    Mutation(
        "sink gradient of one batch entry", "bias_gradients.h", "batch < p.batch", "batch < 1", 1
    ),
    Mutation("sink gradient: lanes are not added up", "bias_gradients.h", "simd_sum(sum)", "sum"),
]
