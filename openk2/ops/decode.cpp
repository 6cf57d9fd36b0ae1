// One decoding step of some sequences on a CPU: the whole model in one call, one parallel region.
//
// What it is: `Model.extend` for single tokens, written for what decoding is bound by: each weight is read once from
// memory, and little else costs anything. Sixteen rows of a matrix are a thread's work at a time, read one after the
// other for few sequences, which is what memory is fastest at; of many, four rows times four sequences stay in
// registers. An expert is read once for all sequences that chose it; the latent cache is
// read through the block table, where it lies, once for four heads; between two sums threads meet at a barrier, which
// is a hundred times cheaper than a call from outside.
// Invariants: values are rounded to bf16 where the torch path rounds them (sums are fp32, in another order); a
// sequence's bits do not depend on which others there are, for each sum has one order. The slow twin is `Model.extend`; a
// test holds the two together. Left out: 8-bit caches, groups of experts, the bits of training's forward pass.
//
// Shapes: B rows, D model, H heads, n nope, r rope, v value, C latent, E experts, K chosen, F expert width, V vocabulary.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

using bf16 = uint16_t;
using Integer = int64_t;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
static const Integer LANES = 16, RUN = 16, TOGETHER = 4;  // RUN rows are one thread's at a time
static const Integer AHEAD = 8;               // rows that are fetched from memory before they are needed, if several are read at once
static const Integer FEW = 8;                 // vectors: for fewer, rows are read one after the other

struct Layer {
    const bf16 *input_norm, *q_a, *q_a_norm, *q_b, *kv_a, *kv_a_norm, *kv_b, *o, *post_norm;
    const float *router, *router_bias;        // null in a dense layer
    const bf16 *experts_gate_up, *experts_down;
    const bf16 *gate_up, *down;               // of the dense layer or the shared expert; null where there is none
    bf16 *cache;                              // [slots, C + r]
    Integer width;                            // of gate_up's activation
};

struct Model {
    Integer layers, hidden, heads, nope, rope, value, latent, q_rank, experts, chosen, expert_width, vocabulary, block;
    Integer normalise_weights;                // of the chosen experts
    float eps, inner_eps, scale, routed_scale;
    const bf16 *embedding, *norm, *head;
    const float *turns;                       // [positions, r / 2, 2]: cosine and sine
    const Layer *layer;
};

// Numbers --------------------------------------------------------------------------------------------

static inline float wide(bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline Floats wide16(const bf16 *x) {
    Halves halves;
    std::memcpy(&halves, x, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Bits) << 16);
}

static inline bf16 narrow(float x) {          // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float rounded(float x) { return wide(narrow(x)); }

static inline float across(Floats x) {        // the sum of its lanes, by halves
    float half[8], quarter[4];
    for (int i = 0; i < 8; i++) half[i] = x[i] + x[i + 8];
    for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Products -------------------------------------------------------------------------------------------

// Sixteen sums that products of bf16 are added to, STEP of them of each vector at a time.
#ifdef __AVX512BF16__
static const Integer STEP = 32;
typedef __m512bh Values;
static inline Values values(const bf16 *x) {
    Values loaded;
    std::memcpy(&loaded, x, sizeof loaded);
    return loaded;
}
static inline Floats added(Floats sums, Values w, Values x) { return (Floats)_mm512_dpbf16_ps((__m512)sums, w, x); }
#else
static const Integer STEP = LANES;
typedef Floats Values;
static inline Values values(const bf16 *x) { return wide16(x); }
static inline Floats added(Floats sums, Values w, Values x) { return sums + w * x; }
#endif

// W rows of a matrix, `stride` apart, times X vectors of n: sums[row][vector].
template <int W, int X>
static inline void products(const bf16 *w, Integer stride, const bf16 *const *x, Integer n, float (*sums)[TOGETHER]) {
    Floats total[W][X] = {};
    Integer i = 0;
    for (; i + STEP <= n; i += STEP) {
        Values vectors[X];
        for (int c = 0; c < X; c++) vectors[c] = values(x[c] + i);
        for (int a = 0; a < W; a++) {
            const bf16 *row = w + a * stride + i;
            if (W > 1) __builtin_prefetch(row + AHEAD * stride);
            const Values loaded = values(row);
            for (int c = 0; c < X; c++) total[a][c] = added(total[a][c], loaded, vectors[c]);
        }
    }
    for (int a = 0; a < W; a++)
        for (int c = 0; c < X; c++) {
            float sum = across(total[a][c]);
            for (Integer rest = i; rest < n; rest++) sum += wide(w[a * stride + rest]) * wide(x[c][rest]);
            sums[a][c] = sum;
        }
}

template <int W, int X, class Put>
static inline void matrix_times(const bf16 *w, Integer n, Integer first, Integer last, const bf16 *const *x, Integer at, Put put) {
    Integer row = first;
    float sums[TOGETHER][TOGETHER];
    for (; row + W <= last; row += W) {
        products<W, X>(w + row * n, n, x, n, sums);
        for (int a = 0; a < W; a++)
            for (int c = 0; c < X; c++) put(row + a, at + c, sums[a][c]);
    }
    for (; row < last; row++) {
        products<1, X>(w + row * n, n, x, n, sums);
        for (int c = 0; c < X; c++) put(row, at + c, sums[0][c]);
    }
}

template <int W, class Put>
static inline void times_in(const bf16 *w, Integer n, Integer first, Integer last, const std::vector<const bf16 *> &x, Put put) {
    const Integer count = x.size();
    for (Integer at = 0; at < count; at += TOGETHER) {
        switch (std::min(count - at, TOGETHER)) {
            case 4: matrix_times<W, 4>(w, n, first, last, &x[at], at, put); break;
            case 3: matrix_times<W, 3>(w, n, first, last, &x[at], at, put); break;
            case 2: matrix_times<W, 2>(w, n, first, last, &x[at], at, put); break;
            default: matrix_times<W, 1>(w, n, first, last, &x[at], at, put);
        }
    }
}

// Rows first to last of w [., n] times each vector; each sum is handed to `put(row, vector, sum)`.
template <class Put>
static inline void times(const bf16 *w, Integer n, Integer first, Integer last, const std::vector<const bf16 *> &x, Put put) {
    if (Integer(x.size()) < FEW)
        times_in<1>(w, n, first, last, x, put);
    else
        times_in<TOGETHER>(w, n, first, last, x, put);
}

// Rows of a tensor [., width] as vectors.
static std::vector<const bf16 *> rows_of(const std::vector<bf16> &x, Integer count, Integer width) {
    std::vector<const bf16 *> rows(count);
    for (Integer b = 0; b < count; b++) rows[b] = x.data() + b * width;
    return rows;
}

// Row by row ------------------------------------------------------------------------------------------

static void rms_norm(const float *x, const bf16 *weight, Integer n, float eps, bf16 *out) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Integer i = 0; i < n; i++) sum += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(sum / n + eps);
#pragma omp simd
    for (Integer i = 0; i < n; i++) out[i] = narrow(x[i] * inverse * wide(weight[i]));
}

static void turn(const float *pairs, const float *turns, Integer rope, bf16 *out) {
    for (Integer i = 0; i < rope; i += 2) {
        const float a = pairs[i], b = pairs[i + 1], cosine = turns[i], sine = turns[i + 1];
        out[i] = narrow(a * cosine - b * sine);
        out[i + 1] = narrow(a * sine + b * cosine);
    }
}

static inline bf16 swiglu(float gate, float up) {
    gate = rounded(gate), up = rounded(up);
    return narrow(gate / (1.0f + std::exp(-gate)) * up);
}

// Activations first to last of a SwiGLU [2F, D] for each vector, handed to `put(place, vector, value)`.
template <class Put>
static void activations(const bf16 *gate_up, Integer width, Integer hidden, Integer first, Integer last,
                        const std::vector<const bf16 *> &x, std::vector<float> &gates, Put put) {
    gates.resize(RUN * x.size());
    times(gate_up, hidden, first, last, x, [&](Integer f, Integer b, float sum) { gates[b * RUN + f - first] = sum; });
    times(gate_up + width * hidden, hidden, first, last, x,
          [&](Integer f, Integer b, float sum) { put(f, b, swiglu(gates[b * RUN + f - first], sum)); });
}

// Some heads, from `head` on, of one sequence whose cached tokens are 0 to `last`; q [count, n + r], its last r turned
// by `turns`. Writes their values [count, v].
struct Room {
    std::vector<float> sums, scores;
    std::vector<bf16> queries;
    std::vector<const bf16 *> vectors;
};

static void attend(const Model &m, const Layer &l, Integer head, Integer count, const float *q, const float *turns,
                   const Integer *blocks, Integer last, Room &room, bf16 *out) {
    const Integer C = m.latent, width = C + m.rope, tokens = last + 1;
    room.sums.resize(count * C), room.scores.resize(count * tokens), room.queries.resize(count * width);
    room.vectors.resize(count);
    float *sums = room.sums.data(), *scores = room.scores.data();
    for (Integer a = 0; a < count; a++) {
        float *into = sums + a * C;
        const float *own = q + a * (m.nope + m.rope);
        bf16 *query = &room.queries[a * width];
        std::fill(into, into + C, 0.0f);
        for (Integer i = 0; i < m.nope; i++) {
            const bf16 *row = l.kv_b + ((head + a) * (m.nope + m.value) + i) * C;
#pragma omp simd
            for (Integer c = 0; c < C; c++) into[c] += own[i] * wide(row[c]);
        }
        for (Integer c = 0; c < C; c++) query[c] = narrow(into[c]);
        turn(own + m.nope, turns, m.rope, query + C);
        room.vectors[a] = query;
    }
    for (Integer first = 0; first < tokens; first += m.block) {
        const bf16 *rows = l.cache + blocks[first / m.block] * m.block * width;
        times(rows, width, 0, std::min(m.block, tokens - first), room.vectors, [&](Integer row, Integer a, float sum) {
            scores[a * tokens + first + row] = rounded(sum) * m.scale;
        });
    }
    for (Integer a = 0; a < count; a++) {
        float *row = scores + a * tokens, peak = row[0], total = 0;
        for (Integer s = 1; s < tokens; s++) peak = std::max(peak, row[s]);
#pragma omp simd reduction(+ : total)
        for (Integer s = 0; s < tokens; s++) total += row[s] = std::exp(row[s] - peak);
        for (Integer s = 0; s < tokens; s++) row[s] = rounded(row[s] / total);
    }
    std::fill(sums, sums + count * C, 0.0f);
    for (Integer s = 0; s < tokens; s++) {
        const bf16 *row = l.cache + (blocks[s / m.block] * m.block + s % m.block) * width;
        for (Integer a = 0; a < count; a++) {
            float *into = sums + a * C;
            const float share = scores[a * tokens + s];
#pragma omp simd
            for (Integer c = 0; c < C; c++) into[c] += share * wide(row[c]);
        }
    }
    for (Integer a = 0; a < count; a++) {
        bf16 *mixed = &room.queries[a * width];
        for (Integer c = 0; c < C; c++) mixed[c] = narrow(sums[a * C + c]);
        const bf16 *to_value = l.kv_b + ((head + a) * (m.nope + m.value) + m.nope) * C;
        room.vectors.assign(1, mixed);
        times(to_value, C, 0, m.value, room.vectors,
              [&](Integer row, Integer, float sum) { out[a * m.value + row] = narrow(sum); });
    }
}

// Experts ---------------------------------------------------------------------------------------------

// The chosen experts of one row and their weights, from its sigmoid scores [E].
static void choose(const Model &m, const Layer &l, const float *scores, Integer *chosen, float *weights) {
    std::vector<Integer> order(m.experts);
    for (Integer e = 0; e < m.experts; e++) order[e] = e;
    std::partial_sort(order.begin(), order.begin() + m.chosen, order.end(), [&](Integer a, Integer b) {
        const float left = scores[a] + l.router_bias[a], right = scores[b] + l.router_bias[b];
        return left > right || (left == right && a < b);
    });
    float sum = 0;
    for (Integer k = 0; k < m.chosen; k++) {
        chosen[k] = order[k];
        sum += weights[k] = scores[order[k]];
    }
    for (Integer k = 0; k < m.chosen; k++)
        weights[k] = (m.normalise_weights ? weights[k] / (sum + 1e-20f) : weights[k]) * m.routed_scale;
}

// An expert and the pairs (row * K + choice) that it is for.
struct Load {
    Integer expert;
    std::vector<Integer> pairs;
};

static std::vector<Load> loads(const Integer *chosen, Integer pairs, Integer experts) {
    std::vector<Integer> place(experts, -1);
    std::vector<Load> found;
    for (Integer pair = 0; pair < pairs; pair++) {
        Integer &at = place[chosen[pair]];
        if (at < 0) at = found.size(), found.push_back({chosen[pair], {}});
        found[at].pairs.push_back(pair);
    }
    return found;
}

// A loop over `count` rows in runs, each `first` to `last`, shared by the threads; nobody waits at its end.
#define FOR_RUNS(count, first, last)                                                                            \
    _Pragma("omp for schedule(static) nowait") for (Integer run = 0; run < ((count) + RUN - 1) / RUN; run++)    \
        if (const Integer first = run * RUN, last = std::min<Integer>(first + RUN, (count)); true)

// tokens, positions [B]; blocks [B, max_blocks]; logits bf16 [B, V]; chosen [L_moe, B, K].
extern "C" void openk2_decode(const Model *model, Integer threads, Integer rows, const Integer *tokens,
                              const Integer *positions, const Integer *blocks, Integer max_blocks, bf16 *logits,
                              Integer *chosen) {
    const Model &m = *model;
    const Integer D = m.hidden, C = m.latent, r = m.rope, H = m.heads, K = m.chosen, F = m.expert_width;
    const Integer query_width = H * (m.nope + r), query_rank = m.q_rank ? m.q_rank : query_width;
    Integer widest = 1;
    for (Integer i = 0; i < m.layers; i++) widest = std::max(widest, m.layer[i].width);
    // Sums before and vectors after what is done row by row between two products.
    std::vector<float> x(rows * D), query_sums(rows * query_rank), latent_sums(rows * (C + r)), q(rows * query_width),
        scores(rows * m.experts), weights(rows * K), expert_out(rows * K * D), dense_out(rows * D);
    std::vector<bf16> h(rows * D), query_latent(rows * query_rank), heads(rows * H * m.value), activation(rows * K * F),
        dense_activation(rows * widest);
    std::vector<Load> work;
    const auto h_rows = rows_of(h, rows, D), heads_rows = rows_of(heads, rows, H * m.value),
               query_rows = rows_of(query_latent, rows, query_rank), dense_rows = rows_of(dense_activation, rows, widest);
    for (Integer b = 0; b < rows; b++)
        for (Integer d = 0; d < D; d++) x[b * D + d] = wide(m.embedding[tokens[b] * D + d]);
    // As many heads of a sequence at a time as leave every thread something to do.
    const Integer group = std::clamp<Integer>(rows * H / (2 * threads), 1, TOGETHER), groups = (H + group - 1) / group;

#pragma omp parallel num_threads(threads)
    {
        Room room;
        std::vector<const bf16 *> vectors;
        std::vector<float> gates;
        Integer moe = 0;
        for (Integer i = 0; i < m.layers; i++) {
            const Layer &l = m.layer[i];
#pragma omp for schedule(static)
            for (Integer b = 0; b < rows; b++) rms_norm(&x[b * D], l.input_norm, D, m.eps, &h[b * D]);
            std::vector<float> &first_sums = m.q_rank ? query_sums : q;
            FOR_RUNS(query_rank, first, last)
            times(m.q_rank ? l.q_a : l.q_b, D, first, last, h_rows,
                  [&](Integer row, Integer b, float sum) { first_sums[b * query_rank + row] = rounded(sum); });
            FOR_RUNS(C + r, first, last)
            times(l.kv_a, D, first, last, h_rows,
                  [&](Integer row, Integer b, float sum) { latent_sums[b * (C + r) + row] = rounded(sum); });
#pragma omp barrier
#pragma omp for schedule(static)
            for (Integer b = 0; b < rows; b++) {
                const float *own = &latent_sums[b * (C + r)];
                const Integer slot = blocks[b * max_blocks + positions[b] / m.block] * m.block + positions[b] % m.block;
                rms_norm(own, l.kv_a_norm, C, m.inner_eps, l.cache + slot * (C + r));
                turn(own + C, m.turns + positions[b] * r, r, l.cache + slot * (C + r) + C);
                if (m.q_rank)
                    rms_norm(&query_sums[b * query_rank], l.q_a_norm, query_rank, m.inner_eps, &query_latent[b * query_rank]);
            }
            if (m.q_rank) {
                FOR_RUNS(query_width, first, last)
                times(l.q_b, query_rank, first, last, query_rows,
                      [&](Integer row, Integer b, float sum) { q[b * query_width + row] = rounded(sum); });
#pragma omp barrier
            }
#pragma omp for schedule(dynamic)
            for (Integer at = 0; at < rows * groups; at++) {
                const Integer b = at / groups, head = at % groups * group;
                attend(m, l, head, std::min(group, H - head), &q[b * query_width + head * (m.nope + r)],
                       m.turns + positions[b] * r, blocks + b * max_blocks, positions[b], room,
                       &heads[(b * H + head) * m.value]);
            }
            FOR_RUNS(D, first, last)
            times(l.o, H * m.value, first, last, heads_rows, [&](Integer row, Integer b, float sum) {
                x[b * D + row] = rounded(x[b * D + row] + rounded(sum));
            });
#pragma omp barrier
#pragma omp for schedule(static)
            for (Integer b = 0; b < rows; b++) rms_norm(&x[b * D], l.post_norm, D, m.eps, &h[b * D]);
            if (l.router) {
#pragma omp for schedule(static)
                for (Integer at = 0; at < rows * m.experts; at++) {
                    const float *w = l.router + at % m.experts * D;
                    const bf16 *row = &h[at / m.experts * D];
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (Integer d = 0; d < D; d++) sum += w[d] * wide(row[d]);
                    scores[at] = 1.0f / (1.0f + std::exp(-sum));
                }
#pragma omp single
                {
                    Integer *picked = chosen + moe * rows * K;
                    for (Integer b = 0; b < rows; b++)
                        choose(m, l, &scores[b * m.experts], picked + b * K, &weights[b * K]);
                    work = loads(picked, rows * K, m.experts);
                }
            }
            const Integer busy = l.router ? work.size() : 0, width = l.width;
            const Integer runs_F = (F + RUN - 1) / RUN, runs_D = (D + RUN - 1) / RUN;
#pragma omp for schedule(dynamic) nowait
            for (Integer task = 0; task < busy * runs_F; task++) {
                const Load &load = work[task / runs_F];
                const Integer first = task % runs_F * RUN, last = std::min(first + RUN, F);
                vectors.clear();
                for (const Integer pair : load.pairs) vectors.push_back(&h[pair / K * D]);
                activations(l.experts_gate_up + load.expert * 2 * F * D, F, D, first, last, vectors, gates,
                            [&](Integer f, Integer at, bf16 value) { activation[load.pairs[at] * F + f] = value; });
            }
            FOR_RUNS(width, first, last)
            activations(l.gate_up, width, D, first, last, h_rows, gates,
                        [&](Integer f, Integer b, bf16 value) { dense_activation[b * widest + f] = value; });
#pragma omp barrier
#pragma omp for schedule(dynamic) nowait
            for (Integer task = 0; task < busy * runs_D; task++) {
                const Load &load = work[task / runs_D];
                const Integer first = task % runs_D * RUN, last = std::min(first + RUN, D);
                vectors.clear();
                for (const Integer pair : load.pairs) vectors.push_back(&activation[pair * F]);
                times(l.experts_down + load.expert * D * F, F, first, last, vectors,
                      [&](Integer d, Integer at, float sum) { expert_out[load.pairs[at] * D + d] = rounded(sum); });
            }
            FOR_RUNS(width ? D : 0, first, last)
            times(l.down, width, first, last, dense_rows,
                  [&](Integer d, Integer b, float sum) { dense_out[b * D + d] = rounded(sum); });
#pragma omp barrier
#pragma omp for schedule(static)
            for (Integer b = 0; b < rows; b++)
                for (Integer d = 0; d < D; d++) {
                    float sum = 0;
                    for (Integer k = 0; k < (busy ? K : 0); k++) sum += weights[b * K + k] * expert_out[(b * K + k) * D + d];
                    const float dense = width ? dense_out[b * D + d] : 0.0f;
                    x[b * D + d] = rounded(x[b * D + d] + (busy ? rounded(rounded(sum) + dense) : dense));
                }
            moe += l.router != nullptr;
        }
#pragma omp for schedule(static)
        for (Integer b = 0; b < rows; b++) rms_norm(&x[b * D], m.norm, D, m.eps, &h[b * D]);
        FOR_RUNS(m.vocabulary, first, last)
        times(m.head, D, first, last, h_rows,
              [&](Integer row, Integer b, float sum) { logits[b * m.vocabulary + row] = narrow(sum); });
    }
}
