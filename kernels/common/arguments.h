#pragma once

// What every implementation of a kernel asserts about its arguments before it runs. The callers are
// our own engines, so a violation is a bug of ours and ends the process.

#include "kernels/cpu_kernels.h"
#include "volley/base/check.h"

namespace volley::kernels {

inline void check(const RmsNormArgs& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
}

inline void check(const RopeAppendArgs& args) {
  VOLLEY_CHECK(args.qkv.size() == args.query.size() && args.qkv.size() == args.position.size());
  VOLLEY_CHECK(args.cache.head_dim % 2 == 0 && args.cache.head_dim <= kHeadDimMax);
  VOLLEY_CHECK((args.query_norm == nullptr) == (args.key_norm == nullptr));
}

inline void check(const GemmArgs& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
  VOLLEY_CHECK(!args.add_to_output || args.output_dtype == DType::kF32);
}

inline void check(const AttentionArgs& args) {
  VOLLEY_CHECK(args.query.size() == args.output.size() && args.query.size() == args.row.size());
  VOLLEY_CHECK(args.cache.kv_heads != 0 && args.heads % args.cache.kv_heads == 0);
  VOLLEY_CHECK(args.cache.head_dim % 2 == 0 && args.cache.head_dim <= kHeadDimMax);
}

inline void check(const RouterArgs& args) {
  VOLLEY_CHECK(args.experts <= kExpertsMax);
  VOLLEY_CHECK(args.top_k >= 1 && args.top_k <= kTopkMax && args.top_k <= args.experts);
}

inline void check(const PackArgs& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
}

inline void check(const PackE4m3Args& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
  VOLLEY_CHECK(args.row_bytes % 4 == 0 && args.row_bytes >= size_t{args.width} + sizeof(float));
}

inline void check(const UnpackE4m3Args& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
  VOLLEY_CHECK(args.row_bytes % 4 == 0 && args.row_bytes >= size_t{args.width} + sizeof(float));
}

inline void check(const GroupedFfnArgs& args) {
  VOLLEY_CHECK(args.input.size() == args.output.size());
  for (const FfnGroup& group : args.groups) {
    VOLLEY_CHECK(size_t{group.first_row} + group.row_count <= args.input.size());
    VOLLEY_CHECK(group.weights.gate.rows == group.weights.up.rows &&
                 group.weights.gate.cols == group.weights.up.cols &&
                 group.weights.gate.rows == group.weights.down.cols);
    VOLLEY_CHECK(group.weights.gate.dtype == args.dtype && group.weights.up.dtype == args.dtype &&
                 group.weights.down.dtype == args.dtype);
  }
}

inline void check(const CombineArgs& args) {
  VOLLEY_CHECK(args.residual.size() * args.top_k == args.expert_row.size());
}

inline void check(const ReduceArgs& args) {
  VOLLEY_CHECK(args.first.size() == args.output.size() + 1);
  VOLLEY_CHECK(args.first.front() == 0 && args.first.back() == args.input.size());
}

inline void check(const EmbedArgs& args) {
  VOLLEY_CHECK(args.token.size() == args.output.size());
}

}  // namespace volley::kernels
