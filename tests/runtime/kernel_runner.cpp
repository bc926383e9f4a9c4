// Runs a kernel table without Python, so that it can be tested under an emulator: records from standard
// input, results to standard output, both little endian. An array is its size in bytes (int64), then its
// bytes.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/attention.h"
#include "kernels/sparse_delta.h"

using namespace sardine;

namespace {

template <typename T>
std::vector<T> read_array() {
    int64_t bytes = 0;
    if (std::fread(&bytes, sizeof bytes, 1, stdin) != 1) std::exit(2);
    std::vector<T> out(bytes / sizeof(T));
    if (bytes && std::fread(out.data(), 1, bytes, stdin) != static_cast<size_t>(bytes)) std::exit(2);
    return out;
}

void write_array(const std::vector<float>& v) {
    const int64_t bytes = v.size() * sizeof(float);
    std::fwrite(&bytes, sizeof bytes, 1, stdout);
    std::fwrite(v.data(), 1, bytes, stdout);
}

// [n_rows, n_cols, block_columns, n_experts, type, n_tokens, k, shared type or -1, n_threads], then row_ptr,
// col, val, scale, routes, x, shared values, shared scale -> y
void run_delta(const CpuOps& ops, const std::vector<int64_t>& head) {
    const auto row_ptr = read_array<int32_t>();
    const auto col = read_array<uint16_t>();
    const auto val = read_array<uint8_t>();
    const auto scale = read_array<float>();
    const auto routes = read_array<float>();
    const auto x = read_array<float>();
    const auto shared = read_array<uint8_t>();
    const auto shared_scale = read_array<float>();
    DeltaMatrix m;
    m.n_rows = head[0], m.n_cols = head[1], m.block_columns = head[2];
    m.n_blocks = (m.n_cols + m.block_columns - 1) / m.block_columns;
    m.n_positions = static_cast<int64_t>(col.size());
    m.n_experts = static_cast<int32_t>(head[3]);
    m.row_ptr = row_ptr.data(), m.col = col.data(), m.val = val.data(), m.scale = scale.data();
    m.type = static_cast<ValueType>(head[4]);
    m.val_stride = val.size() / head[3];
    if (head[7] >= 0) m.shared = {static_cast<ValueType>(head[7]), shared.data(), shared_scale[0]};
    const int64_t n_tokens = head[5], k = head[6];
    std::vector<float> y(n_tokens * m.n_rows);
    const TileOps& tiles = tile_ops(m, ops);
    std::vector<uint8_t> packed(packed_bytes(tiles, m.n_cols, n_tokens, k, m.n_experts));
    uint8_t* const begin = packed_begin(packed.data());
    const SparseDeltaArgs args{&m,       {routes.data(), k, 2 * k}, n_tokens, x.data(),
                               m.n_cols, begin,                     y.data(), m.n_rows};
    SparseScratch scratch;
    scratch.reserve(m, n_tokens, k);
    for (int i = 0; n_tokens >= kMinTileTokens && i < head[8]; ++i)
        pack_tiles(tiles, {args.routes, n_tokens, m.n_experts}, x.data(), m.n_cols, m.n_cols, i,
                   static_cast<int>(head[8]), scratch.tiles, begin);
    for (int i = 0; i < head[8]; ++i) sparse_delta_add(args, ops, i, static_cast<int>(head[8]), scratch);
    write_array(y);
}

// [n_tokens, n_heads, n_heads_kv, dim, n_kv, type], then q, k, v, positions, scale -> out
void run_attention(const CpuOps& ops, const std::vector<int64_t>& head) {
    const auto q = read_array<float>();
    const auto k = read_array<uint8_t>();
    const auto v = read_array<uint8_t>();
    const auto positions = read_array<int32_t>();
    const auto scale = read_array<float>();
    std::vector<float> out(q.size());
    std::vector<float> scratch(attention_scratch(head[1], head[2]));
    AttentionArgs a{};
    a.q = q.data(), a.out = out.data(), a.k = k.data(), a.v = v.data();
    a.type = static_cast<KvType>(head[5]);
    a.row_bytes = k.size() / head[4];
    a.positions = positions.data();
    a.n_tokens = head[0], a.n_heads = head[1], a.n_heads_kv = head[2], a.dim = head[3];
    a.scale = scale[0];
    attention(a, ops, 0, 1, scratch.data());
    write_array(out);
}

}  // namespace

int main(int argc, char** argv) {
    const CpuOps* ops = argc == 2 ? find_cpu_ops(argv[1]) : nullptr;
    if (!ops) {
        std::fprintf(stderr, "usage: kernel_runner PATH, one that runs here\n");
        return 1;
    }
    for (int kind; (kind = std::getchar()) != EOF;) {
        const auto head = read_array<int64_t>();
        if (kind == 'd')
            run_delta(*ops, head);
        else if (kind == 'a')
            run_attention(*ops, head);
        else
            return 2;
    }
    return 0;
}
