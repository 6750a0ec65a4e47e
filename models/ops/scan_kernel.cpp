// Selective scan on a CPU: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,  y_t = sum_n C_t[n] h_t[n], or, weighted,
// y_t = sum_n C_t[n] weight[n] h_t[n] with a weight for every channel and state. Whether there are weights is a
// template argument: scans without them run the code that they would run if there were no weights at all.
//
// Lanes are channels: one vector holds state n of W neighbouring channels, so that the recurrence needs
// no horizontal sums and B and C are broadcasts. Time is cut into chunks; within a chunk all channel
// blocks are visited, which keeps the chunk's B and C in the first cache and reads x and dt once, row by row.
// The backward recomputes a chunk's states from the state saved at its start.
//
// Layouts: x, dt, y are (B, L, D) and B, C are (B, L, N) with unit last stride; "blocked" arrays are
// (blocks, N, W) with W = lanes, padded to kPad channels. All memory is the caller's (scan_kernel.py
// documents the sizes), so that whoever predicts memory sees all of it. No libtorch: plain C ABI, quick build.

#include <omp.h>

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kMaxStates = 16;  // sixteen states, constants and temporaries fill 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kMaxStates = 4;
#else
constexpr int kBytes = 16, kMaxStates = 4;
#endif
constexpr int64_t kPad = 16;    // channels that blocked arrays are padded to; a multiple of every W
constexpr int64_t kGroup = 16;  // states that the backward keeps a chunk's history of at a time
constexpr int kTile = 2;        // channel blocks that the backward handles together: halves the traffic of dB, dC

template <class T>
struct Simd {
  static constexpr int64_t W = kBytes / sizeof(T);
  typedef T V __attribute__((vector_size(kBytes)));
};
template <class T>
using Vec = typename Simd<T>::V;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// Denormals cost a hundred cycles each on some machines and decayed states are full of them. The mode
// is set for the kernel alone and put back: linking with -ffast-math would set it for the whole process.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

// 2^x for x = n + f, n integer, |f| <= 1/2, as p(f) 2^n with p(0) = 1 and p'(0) = ln 2 exact, so that slow
// decays (x near 0) keep their precision. p alone errs by 1.2e-7 (float32) and 8e-18 (float64), relatively.
inline Vec<float> poly(Vec<float> f) {
  Vec<float> p = f * 0.0013387578863f + 0.0096727124371f;
  p = p * f + 0.05550368019484f;
  p = p * f + 0.24022217698188f;
  p = p * f + 0.69314718055995f;
  return p * f + 1.0f;
}
inline Vec<double> poly(Vec<double> f) {
  Vec<double> p = f * 4.45496059818651839e-10 + 7.0725859492692237e-9;
  p = p * f + 1.01780624458457735e-7;
  p = p * f + 1.32154425879216897e-6;
  p = p * f + 0.0000152527338298361184;
  p = p * f + 0.000154035304417360502;
  p = p * f + 0.00133335581464169353;
  p = p * f + 0.00961812910760688853;
  p = p * f + 0.0555041086648215943;
  p = p * f + 0.240226506959100982;
  p = p * f + 0.693147180559945309;
  return p * f + 1.0;
}
#if defined(__AVX512F__)
inline Vec<float> exp2v(Vec<float> x) {
  Vec<float> n = (Vec<float>)_mm512_roundscale_ps((__m512)x, 8);
  return (Vec<float>)_mm512_scalef_ps((__m512)poly(Vec<float>(x - n)), (__m512)n);
}
inline Vec<double> exp2v(Vec<double> x) {
  Vec<double> n = (Vec<double>)_mm512_roundscale_pd((__m512d)x, 8);
  return (Vec<double>)_mm512_scalef_pd((__m512d)poly(Vec<double>(x - n)), (__m512d)n);
}
#else
// Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits, whence it becomes an exponent.
// The final product (not an integer addition to the exponent) is what lets a NaN through.
template <class T, class I>
inline Vec<T> exp2_portable(Vec<T> x, T low, T high, T magic, int mantissa, I one) {
  typedef I VI __attribute__((vector_size(kBytes)));
  x = x < low ? x - x + low : x;  // a comparison with NaN is false: NaN stays
  x = x > high ? x - x + high : x;
  Vec<T> shifted = x + magic, n = shifted - magic;
  VI bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << mantissa) + one;
  Vec<T> scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return poly(Vec<T>(x - n)) * scale;
}
inline Vec<float> exp2v(Vec<float> x) {
  return exp2_portable<float, int32_t>(x, -126.f, 128.f, 12582912.f, 23, 0x3f800000);
}
inline Vec<double> exp2v(Vec<double> x) {
  return exp2_portable<double, int64_t>(x, -1022., 1024., 6755399441055744., 52, 0x3ff0000000000000);
}
#endif

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

}  // namespace

// Mirrored field by field by scan_kernel.py.
struct ScanArgs {
  int64_t batch, len, channels, states, chunk, splits, threads, segment_chunks, scratch_size, keep_states;
  int64_t x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, gy_b, gy_t;  // strides of batch and time, in elements
  const void *x, *dt, *A, *B, *C, *h0, *weight, *gy, *gh_last;   // h0, weight and gh_last may be null
  void *y, *h_last, *A_blocked, *weight_blocked, *boundary, *scratch;
  void *dx, *ddt, *dA, *dB, *dC, *dh0, *dweight, *gh_blocked, *dA_blocked, *dweight_blocked, *partial;
};

namespace {

inline int64_t padded(const ScanArgs& a) { return (a.channels + kPad - 1) / kPad * kPad; }
inline int64_t num_blocks(const ScanArgs& a, int64_t W) { return (a.channels + W - 1) / W; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// (D, N) <-> blocked, for blocks [k0, k1); `from` null means zeros. Lanes beyond D are zeros: exp(0) = 1, and
// their dt and x are zeros too, so that they stay at 0.
template <class T>
void to_blocked(const ScanArgs& a, const T* from, T* to, int64_t k0, int64_t k1, T scale) {
  constexpr int64_t W = Simd<T>::W;
  for (int64_t d = k0 * W; d < k1 * W; ++d)
    for (int64_t n = 0; n < a.states; ++n)
      to[(d / W * a.states + n) * W + d % W] = from && d < a.channels ? from[d * a.states + n] * scale : T(0);
}
template <class T>
void from_blocked(const ScanArgs& a, const T* from, T* to, int64_t k0, int64_t k1) {
  constexpr int64_t W = Simd<T>::W;
  for (int64_t d = k0 * W; d < smaller(k1 * W, a.channels); ++d)
    for (int64_t n = 0; n < a.states; ++n) to[d * a.states + n] = from[(d / W * a.states + n) * W + d % W];
}

// Rows of a (time, channel) array, whole vectors wide. Rows of the last block may not be: they are copied
// to `buffer` with zeros behind them.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};
template <class T>
Rows<T> rows(const T* from, int64_t stride, int64_t steps, int64_t width, int64_t full, T* buffer) {
  if (width == full) return {from, stride};
  std::memset(buffer, 0, sizeof(T) * steps * full);
  for (int64_t t = 0; t < steps; ++t) std::memcpy(buffer + t * full, from + t * stride, sizeof(T) * width);
  return {buffer, full};
}
template <class T>
void unpack(const T* buffer, int64_t full, T* to, int64_t stride, int64_t steps, int64_t width) {
  for (int64_t t = 0; t < steps; ++t) std::memcpy(to + t * stride, buffer + t * full, sizeof(T) * width);
}

// NB states of one channel block over one chunk, the states in registers.
template <class T, bool kWeighted, int NB>
void forward_states(int64_t steps, Rows<T> x, Rows<T> dt, const T* B, int64_t B_t, const T* C, int64_t C_t, const T* A,
                    const T* weight, const T* h_in, T* h_out, T* y, int64_t y_t, bool first) {
  constexpr int64_t W = Simd<T>::W;
  Vec<T> h[NB];
  for (int n = 0; n < NB; ++n) h[n] = load(h_in + n * W);
  for (int64_t t = 0; t < steps; ++t) {
    // Rows are D apart, often more than the hardware prefetcher follows.
    __builtin_prefetch(x.data + (t + 8) * x.stride);
    __builtin_prefetch(dt.data + (t + 8) * dt.stride);
    const Vec<T> dt_v = load(dt.data + t * dt.stride), u = dt_v * load(x.data + t * x.stride);
    Vec<T> sum[2] = {first ? Vec<T>{} : load(y + t * y_t), Vec<T>{}};
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      h[n] = exp2v(Vec<T>(dt_v * load(A + n * W))) * h[n] + u * B[t * B_t + n];
      if constexpr (kWeighted) sum[n % 2] += h[n] * Vec<T>(load(weight + n * W) * C[t * C_t + n]);
      else sum[n % 2] += h[n] * C[t * C_t + n];
    }
    store(y + t * y_t, Vec<T>(sum[0] + sum[1]));
  }
  for (int n = 0; n < NB; ++n) store(h_out + n * W, h[n]);
}

template <class T, bool kWeighted>
void forward(const ScanArgs& a) {
  constexpr int64_t W = Simd<T>::W;
  const int64_t N = a.states, blocks = num_blocks(a, W), plane = padded(a) * N;
  const int64_t chunks = (a.len + a.chunk - 1) / a.chunk, kept = a.keep_states ? chunks + 1 : 1;
  T *A = (T*)a.A_blocked, *weights = (T*)a.weight_blocked;
  to_blocked<T>(a, (const T*)a.A, A, 0, blocks, T(kLog2e));
  if (kWeighted) to_blocked<T>(a, (const T*)a.weight, weights, 0, blocks, T(1));
#pragma omp parallel for num_threads(a.threads) if (a.threads > 1) schedule(static)
  for (int64_t item = 0; item < a.batch * a.splits; ++item) {
    FlushDenormals mode;
    const int64_t b = item / a.splits, s = item % a.splits;
    const int64_t k0 = blocks * s / a.splits, k1 = blocks * (s + 1) / a.splits;
    T* scratch = (T*)a.scratch + omp_get_thread_num() * a.scratch_size;
    T* states = (T*)a.boundary + b * kept * plane;
    to_blocked<T>(a, a.h0 ? (const T*)a.h0 + b * a.channels * N : nullptr, states, k0, k1, T(1));
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t t0 = c * a.chunk, steps = smaller(a.chunk, a.len - t0);
      const T* B = (const T*)a.B + b * a.B_b + t0 * a.B_t;
      const T* C = (const T*)a.C + b * a.C_b + t0 * a.C_t;
      T* next = a.keep_states ? states + plane : states;
      for (int64_t k = k0; k < k1; ++k) {
        const int64_t d = k * W, width = smaller(W, a.channels - d);
        const auto x = rows((const T*)a.x + b * a.x_b + t0 * a.x_t + d, a.x_t, steps, width, W, scratch);
        const auto dt = rows((const T*)a.dt + b * a.dt_b + t0 * a.dt_t + d, a.dt_t, steps, width, W,
                             scratch + a.chunk * W);
        T* out = (T*)a.y + (b * a.len + t0) * a.channels + d;
        T* y = width == W ? out : scratch + 2 * a.chunk * W;
        const int64_t y_t = width == W ? a.channels : W;
        for (int64_t n = 0; n < N;) {
          const int64_t at = (k * N + n) * W;
          auto run = [&](auto kernel, int64_t count) {
            const T* weight = kWeighted ? weights + at : nullptr;
            kernel(steps, x, dt, B + n, a.B_t, C + n, a.C_t, A + at, weight, states + at, next + at, y, y_t, n == 0);
            n += count;
          };
          if (N - n >= kMaxStates) run(forward_states<T, kWeighted, kMaxStates>, kMaxStates);
          else if (N - n >= 8) run(forward_states<T, kWeighted, 8>, 8);
          else if (N - n >= 4) run(forward_states<T, kWeighted, 4>, 4);
          else run(forward_states<T, kWeighted, 1>, 1);
        }
        if (width < W) unpack(y, W, out, a.channels, steps, width);
      }
      states = next;
    }
    from_blocked<T>(a, states, (T*)a.h_last + b * a.channels * N, k0, k1);
  }
}

// The backward of K channel blocks over one chunk. Histories are (time, state of the group, K, W).
template <class T, bool kWeighted, int K>
struct Tile {
  static constexpr int64_t W = Simd<T>::W, R = K * W;
  int64_t steps, N, n0, count;
  bool first, last;  // of the groups of states
  Rows<T> x, dt, gy;
  const T *B, *C;
  int64_t B_t, C_t;
  const T *A, *weight, *h_start;  // blocked, at the tile's first block
  T *gh, *dA, *dweight;           // blocked, likewise
  T *h, *decay, *u, *gu, *gw, *B_lanes, *C_lanes;
  T *dx, *ddt;
  int64_t out_t;

  int64_t at(int64_t n, int k) const { return (k * N + n0 + n) * W; }

  void recompute() {
    for (int64_t n = 0; n < count; ++n)
      for (int k = 0; k < K; ++k) store(h + n * R + k * W, load(h_start + at(n, k)));
    for (int64_t t = 0; t < steps; ++t) {
      Vec<T> dt_v[K], u_v[K];
      for (int k = 0; k < K; ++k) {
        dt_v[k] = load(dt.data + t * dt.stride + k * W);
        u_v[k] = dt_v[k] * load(x.data + t * x.stride + k * W);
        store(u + t * R + k * W, u_v[k]);
      }
      T *now = h + t * count * R, *next = now + count * R, *decay_t = decay + t * count * R;
      for (int64_t n = 0; n < count; ++n)
        for (int k = 0; k < K; ++k) {
          const int64_t i = n * R + k * W;
          const Vec<T> a_v = exp2v(Vec<T>(dt_v[k] * load(A + at(n, k))));
          store(decay_t + i, a_v);
          store(next + i, Vec<T>(a_v * load(now + i) + u_v[k] * B[t * B_t + n0 + n]));
        }
    }
  }

  // Steps t, t-1, ... t-U+1 together, so that gh and dA travel to memory once for U steps.
  template <int U>
  void reverse(int64_t t) {
    Vec<T> dt_v[U][K], u_v[U][K], gy_v[U][K], gu_v[U][K], gw_v[U][K];
    for (int j = 0; j < U; ++j)
      for (int k = 0; k < K; ++k) {
        const int64_t i = (t - j) * R + k * W;
        dt_v[j][k] = load(dt.data + (t - j) * dt.stride + k * W);
        gy_v[j][k] = load(gy.data + (t - j) * gy.stride + k * W);
        u_v[j][k] = load(u + i);
        gu_v[j][k] = first ? Vec<T>{} : load(gu + i);
        gw_v[j][k] = first ? Vec<T>{} : load(gw + i);
      }
    for (int64_t n = 0; n < count; ++n) {
      Vec<T> B_sum[U], C_sum[U];
      for (int j = 0; j < U; ++j) {
        B_sum[j] = load(B_lanes + ((t - j) * N + n0 + n) * W);
        C_sum[j] = load(C_lanes + ((t - j) * N + n0 + n) * W);
      }
      for (int k = 0; k < K; ++k) {
        Vec<T> g = load(gh + at(n, k)), dA_v = load(dA + at(n, k));
        const Vec<T> A_v = load(A + at(n, k));
        Vec<T> weight_v, dweight_v;
        if constexpr (kWeighted) weight_v = load(weight + at(n, k)), dweight_v = load(dweight + at(n, k));
        for (int j = 0; j < U; ++j) {
          const int64_t i = ((t - j) * count + n) * R + k * W;
          const T C_n = C[(t - j) * C_t + n0 + n];
          const Vec<T> h_v = load(h + i + count * R);
          if constexpr (kWeighted) {
            const Vec<T> read = gy_v[j][k] * h_v;
            g += gy_v[j][k] * C_n * weight_v;
            C_sum[j] += read * weight_v;
            dweight_v += read * C_n;
          } else {
            g += gy_v[j][k] * C_n;
            C_sum[j] += gy_v[j][k] * h_v;
          }
          gu_v[j][k] += g * B[(t - j) * B_t + n0 + n];
          B_sum[j] += g * u_v[j][k];
          g *= load(decay + i);
          const Vec<T> w = g * load(h + i);
          gw_v[j][k] += w * A_v;
          dA_v += w * dt_v[j][k];
        }
        store(gh + at(n, k), g);
        store(dA + at(n, k), dA_v);
        if constexpr (kWeighted) store(dweight + at(n, k), dweight_v);
      }
      for (int j = 0; j < U; ++j) {
        store(B_lanes + ((t - j) * N + n0 + n) * W, B_sum[j]);
        store(C_lanes + ((t - j) * N + n0 + n) * W, C_sum[j]);
      }
    }
    for (int j = 0; j < U; ++j)
      for (int k = 0; k < K; ++k) {
        const int64_t i = (t - j) * R + k * W, out = (t - j) * out_t + k * W;
        if (last) {  // A was scaled by log2(e) for exp2
          store(dx + out, Vec<T>(gu_v[j][k] * dt_v[j][k]));
          store(ddt + out,
                Vec<T>(gw_v[j][k] * T(kLn2) + gu_v[j][k] * load(x.data + (t - j) * x.stride + k * W)));
        } else {
          store(gu + i, gu_v[j][k]);
          store(gw + i, gw_v[j][k]);
        }
      }
  }

  void run() {
    for (n0 = 0; n0 < N; n0 += count) {
      count = smaller(kGroup, N - n0);
      first = n0 == 0, last = n0 + count == N;
      recompute();
      int64_t t = steps - 1;
      for (; t >= 1; t -= 2) reverse<2>(t);
      if (t == 0) reverse<1>(0);
    }
  }
};

// Scratch of a thread, in elements, T = chunk, R = kTile * W: h (T+1, 16, R), decay (T, 16, R), B and C lanes
// (T, N, W) each, and eight (T, R) arrays.
template <class T, bool kWeighted, int K>
void backward_tile(const ScanArgs& a, int64_t b, int64_t c, int64_t k, T* scratch) {
  constexpr int64_t W = Simd<T>::W, R = K * W, full = kTile * W;
  const int64_t N = a.states, t0 = c * a.chunk, steps = smaller(a.chunk, a.len - t0), plane = padded(a) * N;
  const int64_t chunks = (a.len + a.chunk - 1) / a.chunk, d = k * W, width = smaller(R, a.channels - d), at = d * N;
  Tile<T, kWeighted, K> tile;
  tile.steps = steps, tile.N = N;
  tile.B_lanes = scratch, tile.C_lanes = scratch + a.chunk * N * W;
  tile.h = scratch + 2 * a.chunk * N * W, tile.decay = tile.h + (a.chunk + 1) * kGroup * full;
  T* rest = tile.decay + a.chunk * kGroup * full;
  const int64_t array = a.chunk * full;
  tile.u = rest, tile.gu = rest + array, tile.gw = rest + 2 * array;
  tile.x = rows((const T*)a.x + b * a.x_b + t0 * a.x_t + d, a.x_t, steps, width, R, rest + 3 * array);
  tile.dt = rows((const T*)a.dt + b * a.dt_b + t0 * a.dt_t + d, a.dt_t, steps, width, R, rest + 4 * array);
  tile.gy = rows((const T*)a.gy + b * a.gy_b + t0 * a.gy_t + d, a.gy_t, steps, width, R, rest + 5 * array);
  tile.B = (const T*)a.B + b * a.B_b + t0 * a.B_t, tile.B_t = a.B_t;
  tile.C = (const T*)a.C + b * a.C_b + t0 * a.C_t, tile.C_t = a.C_t;
  tile.A = (const T*)a.A_blocked + at;
  tile.h_start = (const T*)a.boundary + (b * (chunks + 1) + c) * plane + at;
  tile.gh = (T*)a.gh_blocked + b * plane + at, tile.dA = (T*)a.dA_blocked + b * plane + at;
  tile.weight = kWeighted ? (const T*)a.weight_blocked + at : nullptr;
  tile.dweight = kWeighted ? (T*)a.dweight_blocked + b * plane + at : nullptr;
  T *dx = (T*)a.dx + (b * a.len + t0) * a.channels + d, *ddt = (T*)a.ddt + (b * a.len + t0) * a.channels + d;
  const bool whole = width == R;
  tile.dx = whole ? dx : rest + 6 * array, tile.ddt = whole ? ddt : rest + 7 * array;
  tile.out_t = whole ? a.channels : R;
  tile.run();
  if (!whole) {
    unpack(tile.dx, R, dx, a.channels, steps, width);
    unpack(tile.ddt, R, ddt, a.channels, steps, width);
  }
}

// Sums each (row, lane) over lanes, halving so that the compiler keeps to vectors.
template <class T>
void sum_lanes(T* lanes, int64_t count, T* out) {
  constexpr int64_t W = Simd<T>::W;
  for (int64_t i = 0; i < count; ++i) {
    T* v = lanes + i * W;
    T part[W];
    std::memcpy(part, v, sizeof part);
#pragma GCC unroll 4
    for (int64_t half = W / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) part[j] += part[j + half];
    out[i] = part[0];
  }
}

// Adds up what the sequences of a batch gave, and unblocks it.
template <class T>
void sum_batch(const ScanArgs& a, T* blocked, T* to) {
  const int64_t plane = padded(a) * a.states;
  for (int64_t b = 1; b < a.batch; ++b)
    for (int64_t i = 0; i < plane; ++i) blocked[i] += blocked[b * plane + i];
  from_blocked<T>(a, blocked, to, 0, num_blocks(a, Simd<T>::W));
}

template <class T, bool kWeighted>
void backward(const ScanArgs& a) {
  constexpr int64_t W = Simd<T>::W;
  const int64_t N = a.states, blocks = num_blocks(a, W), plane = padded(a) * N, states = a.channels * N;
  const int64_t chunks = (a.len + a.chunk - 1) / a.chunk, segment_len = a.segment_chunks * a.chunk;
  const int64_t segments = (chunks + a.segment_chunks - 1) / a.segment_chunks;
  T *dB = (T*)a.dB, *dC = (T*)a.dC, *B_partial = (T*)a.partial;
  T* C_partial = B_partial + a.batch * a.splits * segment_len * N;
  to_blocked<T>(a, (const T*)a.A, (T*)a.A_blocked, 0, blocks, T(kLog2e));
  if (kWeighted) to_blocked<T>(a, (const T*)a.weight, (T*)a.weight_blocked, 0, blocks, T(1));
  // Threads that share a sequence meet after each segment to add up dB and dC: their partial sums stay small.
  for (int64_t segment = segments - 1; segment >= 0; --segment) {
    const int64_t c0 = segment * a.segment_chunks, c1 = smaller(c0 + a.segment_chunks, chunks), start = c0 * a.chunk;
#pragma omp parallel for num_threads(a.threads) if (a.threads > 1) schedule(static)
    for (int64_t item = 0; item < a.batch * a.splits; ++item) {
      FlushDenormals mode;
      const int64_t b = item / a.splits, s = item % a.splits;
      const int64_t k0 = blocks * s / a.splits, k1 = blocks * (s + 1) / a.splits;
      T* scratch = (T*)a.scratch + omp_get_thread_num() * a.scratch_size;
      T *gh = (T*)a.gh_blocked + b * plane, *dA = (T*)a.dA_blocked + b * plane;
      if (segment == segments - 1) {
        to_blocked<T>(a, a.gh_last ? (const T*)a.gh_last + b * states : nullptr, gh, k0, k1, T(1));
        to_blocked<T>(a, nullptr, dA, k0, k1, T(1));
        if (kWeighted) to_blocked<T>(a, nullptr, (T*)a.dweight_blocked + b * plane, k0, k1, T(1));
      }
      for (int64_t c = c1 - 1; c >= c0; --c) {
        const int64_t t0 = c * a.chunk, steps = smaller(a.chunk, a.len - t0);
        std::memset(scratch, 0, sizeof(T) * 2 * a.chunk * N * W);
        int64_t k = k0;
        for (; k + kTile <= k1; k += kTile) backward_tile<T, kWeighted, kTile>(a, b, c, k, scratch);
        for (; k < k1; ++k) backward_tile<T, kWeighted, 1>(a, b, c, k, scratch);
        const bool alone = a.splits == 1;
        const int64_t row = alone ? b * a.len + t0 : item * segment_len + t0 - start;
        sum_lanes(scratch, steps * N, (alone ? dB : B_partial) + row * N);
        sum_lanes(scratch + a.chunk * N * W, steps * N, (alone ? dC : C_partial) + row * N);
      }
      if (segment == 0 && a.dh0) from_blocked<T>(a, gh, (T*)a.dh0 + b * states, k0, k1);
    }
    if (a.splits == 1) continue;
    const int64_t len = smaller(segment_len, a.len - start);
#pragma omp parallel for num_threads(a.threads) if (a.threads > 1) schedule(static)
    for (int64_t row = 0; row < a.batch * len; ++row) {
      const int64_t b = row / len, t = row % len;
      for (int64_t n = 0; n < N; ++n) {
        T B_sum = 0, C_sum = 0;
        for (int64_t s = 0; s < a.splits; ++s) {
          const int64_t i = ((b * a.splits + s) * segment_len + t) * N + n;
          B_sum += B_partial[i], C_sum += C_partial[i];
        }
        dB[(b * a.len + start + t) * N + n] = B_sum, dC[(b * a.len + start + t) * N + n] = C_sum;
      }
    }
  }
  sum_batch<T>(a, (T*)a.dA_blocked, (T*)a.dA);
  if (kWeighted) sum_batch<T>(a, (T*)a.dweight_blocked, (T*)a.dweight);
}

}  // namespace

extern "C" {
#define SCAN(direction, type, suffix)                      \
  void scan_##direction##_##suffix(const ScanArgs* a) {    \
    if (a->weight) direction<type, true>(*a);              \
    else direction<type, false>(*a);                       \
  }
SCAN(forward, float, float32)
SCAN(forward, double, float64)
SCAN(backward, float, float32)
SCAN(backward, double, float64)
}
