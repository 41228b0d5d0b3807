// SPDX-License-Identifier: MIT
//
// plan > for each wave of (batch, key head) pairs: run the parts, then merge their private sums.
// One part a head needs no merge afterwards: its task writes the gradients itself.
#include "sdpa/cpu/backward.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "sdpa/cpu/backward_pair.h"
#include "sdpa/cpu/decode_plan.h"
#include "sdpa/cpu/plan.h"
#include "sdpa/cpu/scratch.h"
#include "sdpa/element.h"
#include "sdpa/reference.h"
#include "sdpa/threads.h"

namespace sdpa::cpu {
namespace {

constexpr std::size_t kCacheLine = 64;

struct FreeFloats {
  void operator()(float* data) const { std::free(data); }
};

using Floats = std::unique_ptr<float[], FreeFloats>;

/// Scratch memory up to this size is kept by its thread from call to call: a small problem would
/// spend more time on fresh pages than on its gradients. Larger ones are given back.
constexpr std::int64_t kKeptFloats = std::int64_t{1} << 19;

/// Enough for threads to end a wave together.
constexpr std::int64_t kTasksPerThread = 4;

/// Memory for `count` floats on a cache line of its own, not initialized.
Floats allocate(std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  auto* data = static_cast<float*>(
      std::aligned_alloc(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine));
  if (data == nullptr && bytes > 0) throw std::bad_alloc();
  return Floats(data);
}

BackwardLayout lay_out(const Problem& s, std::int64_t rows, std::int64_t own_floats) {
  BackwardLayout m{.qk_stride = padded_columns(s.qk_dim), .v_stride = padded_columns(s.v_dim)};
  const auto take = [&m](std::int64_t& piece, std::int64_t floats) {
    piece = m.size;
    m.size += padded_columns(floats);
  };
  take(m.query, rows * spread_columns(m.qk_stride));
  take(m.query_t, rows * m.qk_stride);
  take(m.grad_out, rows * spread_columns(m.v_stride));
  take(m.grad_out_t, rows * m.v_stride);
  take(m.out, rows * m.v_stride);
  take(m.grad_query, rows * m.qk_stride);
  take(m.key, kKeyStep * spread_columns(m.qk_stride));
  take(m.value, kKeyStep * m.v_stride);
  const std::int64_t slab = std::min(rows, kSlabRows);
  take(m.p, kKeyStep * slab * 3 / 2);  // as floats and as halves
  take(m.ds, kKeyStep * slab);
  if (s.softcap > 0) take(m.slope, kKeyStep * slab);
  take(m.lse, rows);
  take(m.lse_rest, rows);
  take(m.grad_lse, rows);
  take(m.delta, rows);
  take(m.own, own_floats);
  return m;
}

/// The first row of a head that the forward pass took as decode; behind all lanes where it took
/// none.
std::int64_t first_decoded_row(const Problem& problem, KernelShape shape) {
  if (is_decode(problem, shape)) return 0;
  const std::int64_t rows = problem.q_len * problem.group();
  const std::int64_t decoded = plan_forward(problem, shape).last_rows.rows;
  return decoded > 0 ? rows - decoded : padded_columns(rows);
}

/// The tasks of one backward pass and the memory they share.
class Pass {
 public:
  Pass(const Problem& problem, const BackwardTensors& tensors, const Kernels& kernels)
      : s_(problem), t_(tensors), kernels_(kernels.backward), plan_(plan_backward(problem)) {
    job_ = {
        .problem = &problem,
        .tensors = &tensors,
        .layout = lay_out(problem, plan_.unit_rows, kernels_.own_floats(problem, plan_.unit_rows)),
        .parts = plan_.parts.data(),
        .part_count = static_cast<std::int64_t>(plan_.parts.size()),
        .unit_rows = plan_.unit_rows,
        .query_slots = plan_.query_slots,
        .first_dotted_row = first_decoded_row(problem, kernels.shape)};
    const BackwardLayout& m = job_.layout;
    head_key_floats_ = plan_.key_rows * (m.qk_stride + m.v_stride);
    if (plan_.query_slots > 1)
      head_query_floats_ = plan_.query_slots * s_.group() * s_.q_len * m.qk_stride;
    worker_floats_ = m.size + (plan_.is_split() ? 0 : head_key_floats_);
    if (worker_floats_ > kKeptFloats) workers_ = allocate(thread_count() * worker_floats_);
  }

  void run() {
    if (t_.grad_sinks.is_present()) prepare_sinks();
    if (needs_parts()) run_parts();
    if (t_.grad_sinks.is_present()) add_grad_sinks();
    if (t_.grad_mask.is_present()) add_grad_mask();
  }

 private:
  bool needs_parts() const {
    return t_.grad_query.is_present() || t_.grad_key.is_present() || t_.grad_value.is_present() ||
           t_.grad_sinks.is_present();
  }

  void run_parts() {
    const std::int64_t heads = s_.batch * s_.kv_heads;
    if (!plan_.is_split())
      return parallel_for(heads, [&](std::int64_t head, int worker) { run_whole(head, worker); });
    const std::int64_t at_once = heads_at_once();
    const KeptMemory sums(at_once * (head_key_floats_ + head_query_floats_));
    key_sums_ = sums.floats();
    query_sums_ = key_sums_ + at_once * head_key_floats_;
    for (std::int64_t first = 0; first < heads; first += at_once)
      run_wave(first, std::min(at_once, heads - first));
  }

  /// A wave has no more heads than keep the threads busy: private sums are merged while they are in
  /// cache, and the next wave takes their memory again, instead of fresh pages. One Zen 4 core,
  /// from all heads at once: D128 L2048 dense fp32 from 81 to 89 % of the peak, causal bf16 from 65
  /// to 79 %. No bit of the results depends on it.
  std::int64_t heads_at_once() const {
    const std::int64_t busy = ceil_div(kTasksPerThread * thread_count_, job_.part_count);
    return std::min(plan_.heads_per_wave, busy);
  }

  float* scratch(int worker) const {
    if (workers_ != nullptr) return workers_.get() + worker * worker_floats_;
    return reinterpret_cast<float*>(
        thread_scratch(static_cast<std::size_t>(worker_floats_) * sizeof(float)));
  }

  /// One task a head; dK and dV gather in the worker's own memory.
  void run_whole(std::int64_t head, int worker) const {
    const std::int64_t batch = head / s_.kv_heads, kv_head = head % s_.kv_heads;
    float* sums = scratch(worker) + job_.layout.size;
    const std::int64_t next = head + thread_count_;
    kernels_.run_part({&job_, job_.parts, batch, kv_head, sums, nullptr, scratch(worker),
                       next < s_.batch * s_.kv_heads ? next : -1});
    const BackwardMerge merge{&job_, batch, kv_head, sums, nullptr, scratch(worker)};
    for (std::int64_t block = 0; block < key_blocks(); ++block) kernels_.merge_keys(merge, block);
  }

  void run_wave(std::int64_t first, std::int64_t heads) const {
    parallel_for(heads * job_.part_count, [&](std::int64_t task, int worker) {
      run_part(first, plan_.head_of(task, heads), plan_.part_of(task, heads), worker);
    });
    const std::int64_t queries = plan_.query_slots > 1 ? plan_.units : 0;
    const std::int64_t merges = key_blocks() + queries;
    parallel_for(heads * merges, [&](std::int64_t task, int worker) {
      const BackwardMerge merge = merge_of(first, task / merges, worker);
      const std::int64_t n = task % merges;
      n < queries ? kernels_.merge_queries(merge, n) : kernels_.merge_keys(merge, n - queries);
    });
  }

  void run_part(std::int64_t first, std::int64_t index, const BackwardPart& part,
                int worker) const {
    const std::int64_t head = first + index;
    const std::int64_t columns = job_.layout.qk_stride + job_.layout.v_stride;
    float* query_sums = nullptr;
    if (plan_.query_slots > 1)
      query_sums = query_sums_ + index * head_query_floats_ +
                   part.query_slot * (head_query_floats_ / plan_.query_slots);
    kernels_.run_part({&job_, &part, head / s_.kv_heads, head % s_.kv_heads,
                       key_sums_ + index * head_key_floats_ + part.key_offset * columns, query_sums,
                       scratch(worker)});
  }

  BackwardMerge merge_of(std::int64_t first, std::int64_t index, int worker) const {
    const std::int64_t head = first + index;
    return {&job_,
            head / s_.kv_heads,
            head % s_.kv_heads,
            key_sums_ + index * head_key_floats_,
            query_sums_ + index * head_query_floats_,
            scratch(worker)};
  }

  void prepare_sinks() {
    sinks_ = allocate(s_.q_heads);
    sink_terms_ = allocate(s_.batch * s_.q_heads * s_.q_len);
    for (std::int64_t head = 0; head < s_.q_heads; ++head)
      sinks_[head] = sink_logit(t_.sinks, head);
    job_.sinks = sinks_.get();
    job_.sink_terms = sink_terms_.get();
  }

  /// Rows of a key head are [query][head of the group].
  void add_grad_sinks() const {
    parallel_for(s_.q_heads, [&](std::int64_t head, int) {
      double sum = 0;
      for (std::int64_t batch = 0; batch < s_.batch; ++batch) {
        const float* term = sink_terms_.get() + head % s_.group() +
                            (batch * s_.kv_heads + head / s_.group()) * s_.q_len * s_.group();
        for (std::int64_t query = 0; query < s_.q_len; ++query) sum += term[query * s_.group()];
      }
      write(t_.grad_sinks, 0, head, 0, 0, read(t_.grad_sinks, 0, head, 0, 0) + sum);
    });
  }

  /// A task a block of keys of each mask that differs from the others: no element has two owners.
  void add_grad_mask() const {
    const auto& strides = t_.grad_mask.strides;
    const std::int64_t batches = strides[0] == 0 ? 1 : s_.batch;
    const std::int64_t heads = strides[1] == 0 ? 1 : s_.kv_heads;
    const std::int64_t blocks = strides[3] == 0 ? 1 : key_blocks();
    parallel_for(batches * heads * blocks, [&](std::int64_t task, int worker) {
      const std::int64_t block = task % blocks, head = task / blocks % heads;
      const std::int64_t batch = task / blocks / heads;
      kernels_.add_mask_gradient({.job = &job_,
                                  .first_batch = batch,
                                  .last_batch = batches == 1 ? s_.batch : batch + 1,
                                  .first_head = head,
                                  .last_head = heads == 1 ? s_.kv_heads : head + 1,
                                  .first_block = block,
                                  .last_block = blocks == 1 ? key_blocks() : block + 1,
                                  .scratch = scratch(worker)});
    });
  }

  std::int64_t key_blocks() const { return ceil_div(s_.kv_len, kKeyBlock); }

  const Problem& s_;
  const BackwardTensors& t_;
  const BackwardKernels& kernels_;
  BackwardPlan plan_;
  BackwardJob job_;
  const std::int64_t thread_count_ = thread_count();
  std::int64_t head_key_floats_ = 0, head_query_floats_ = 0, worker_floats_ = 0;
  float *key_sums_ = nullptr, *query_sums_ = nullptr;
  Floats workers_, sinks_, sink_terms_;
};

/// One head of a view; an absent one stays absent.
TensorView slice_head(TensorView view, std::int64_t batch, std::int64_t head, std::int64_t heads) {
  if (!view.is_present()) return view;
  view.data = static_cast<char*>(view.data) +
              size_bytes(view.dtype) * (batch * view.strides[0] + head * view.strides[1]);
  view.shape[0] = 1;
  view.shape[1] = heads;
  return view;
}

/// The oracle on one (batch, key head).
void run_reference_head(Problem s, BackwardTensors t, std::int64_t batch, std::int64_t kv_head) {
  const std::int64_t group = s.group(), head = kv_head * group;
  for (TensorView* view :
       {&t.query, &t.mask, &t.out, &t.lse, &t.grad_out, &t.grad_lse, &t.grad_query})
    *view = slice_head(*view, batch, head, group);
  for (TensorView* view : {&t.key, &t.value, &t.grad_key, &t.grad_value})
    *view = slice_head(*view, batch, kv_head, 1);
  t.sinks = slice_head(t.sinks, 0, head, group);
  s.dropout.first_head += batch * s.q_heads + head;
  s.batch = s.kv_heads = 1;
  s.q_heads = group;
  reference::backward(s, t);
}

/// float64: the oracle, over heads where no two of them add to the same gradient.
void backward_in_double(const Problem& s, const BackwardTensors& t) {
  if (t.grad_mask.is_present() || t.grad_sinks.is_present()) return reference::backward(s, t);
  parallel_for(s.batch * s.kv_heads, [&](std::int64_t head, int) {
    run_reference_head(s, t, head / s.kv_heads, head % s.kv_heads);
  });
}

/// Addresses are left for the caller to fill in: zeros for all that there might be would cost a
/// short head more than its own.
TensorRows no_rows(const TensorView& view, std::int64_t count) {
  TensorRows rows;
  rows.dtype = view.dtype;
  rows.step = view.strides[3];
  rows.rows = static_cast<int>(count);
  rows.columns = static_cast<int>(view.shape[3]);
  return rows;
}

char* head_address(const TensorView& view, std::int64_t batch, std::int64_t head) {
  return static_cast<char*>(view.data) +
         size_bytes(view.dtype) * (batch * view.strides[0] + head * view.strides[1]);
}

}  // namespace

TensorRows head_rows(const TensorView& view, std::int64_t batch, std::int64_t head,
                     std::int64_t first, std::int64_t count) {
  TensorRows rows = no_rows(view, count);
  const std::int64_t stride = size_bytes(view.dtype) * view.strides[2];
  char* row = head_address(view, batch, head) + first * stride;
  for (int i = 0; i < rows.rows; ++i, row += stride) rows.row[i] = row;
  return rows;
}

TensorRows group_rows(const TensorView& view, const Problem& s, std::int64_t batch,
                      std::int64_t kv_head, std::int64_t first, std::int64_t count) {
  TensorRows rows = no_rows(view, count);
  const std::int64_t size = size_bytes(view.dtype);
  const std::int64_t head = size * view.strides[1], query = size * view.strides[2];
  char* const group = head_address(view, batch, kv_head * s.group());
  RowCursor at(s.group(), first);
  for (int i = 0; i < rows.rows; ++i, at.advance())
    rows.row[i] = group + at.head * head + at.query * query;
  return rows;
}

void backward(const Problem& problem, const BackwardTensors& tensors, const Kernels& kernels) {
  if (problem.dtype == DType::kFloat64) return backward_in_double(problem, tensors);
  if (is_pair(problem)) return backward_pairs(problem, tensors);
  Pass(problem, tensors, kernels).run();
}

}  // namespace sdpa::cpu
