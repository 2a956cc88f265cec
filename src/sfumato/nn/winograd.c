/* The five linear maps of filters.py for channels that are multiples of 16: F(4x4, 3x3) in float32, or with HALF
   F(2x2, 3x3) in bfloat16, whose tiles are small since what is rounded coarsely must not be scaled much.

   Pictures are (B, H, W, C), tiles (PLACES, n, C) of which the first B down across are used, transformed weights
   (PLACES, C, K); all contiguous, in float32 or bfloat16.  Weights, biases and what is worked out are float32.
   A vector is 16 channels of one place: every map below works on 16 channels at once and keeps a tile in registers. */

#include "numbers.h"

#ifdef HALF
#define OUT 2
#else
#define OUT 4
#endif
#define IN (OUT + 2)
#define PLACES (IN * IN)

#ifdef HALF

/* r = B^T a, with a strided by s vectors and r by one */
static inline void b_t(const vec *a, int s, vec *r) {
    r[0] = a[0] - a[2 * s];
    r[1] = a[s] + a[2 * s];
    r[2] = a[2 * s] - a[s];
    r[3] = a[s] - a[3 * s];
}

/* r = A^T a */
static inline void a_t(const vec *a, int s, vec *r) {
    r[0] = a[0] + a[s] + a[2 * s];
    r[1] = a[s] - a[2 * s] - a[3 * s];
}

/* r = A a */
static inline void a(const vec *x, int s, vec *r) {
    r[0] = x[0];
    r[1] = x[0] + x[s];
    r[2] = x[0] - x[s];
    r[3] = -x[s];
}

static const float g[IN][3] = {{1, 0, 0}, {1 / 2.f, 1 / 2.f, 1 / 2.f}, {1 / 2.f, -1 / 2.f, 1 / 2.f}, {0, 0, 1}};

#else

/* r = B^T a, with a strided by s vectors and r by one */
static inline void b_t(const vec *a, int s, vec *r) {
    vec even = a[4 * s] - 4 * a[2 * s], odd = a[3 * s] - 4 * a[s];
    vec near = a[4 * s] - a[2 * s], far = 2 * (a[3 * s] - a[s]);
    r[0] = 4 * a[0] - 5 * a[2 * s] + a[4 * s];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = near + far;
    r[4] = near - far;
    r[5] = 4 * a[s] - 5 * a[3 * s] + a[5 * s];
}

/* r = A^T a */
static inline void a_t(const vec *a, int s, vec *r) {
    vec even = a[s] + a[2 * s], odd = a[s] - a[2 * s];
    vec evener = a[3 * s] + a[4 * s], odder = a[3 * s] - a[4 * s];
    r[0] = a[0] + even + evener;
    r[1] = odd + 2 * odder;
    r[2] = even + 4 * evener;
    r[3] = odd + 8 * odder + a[5 * s];
}

/* r = A a */
static inline void a(const vec *x, int s, vec *r) {
    vec even = x[0] + x[2 * s], odd = x[s] + x[3 * s];
    vec evener = x[0] + 4 * x[2 * s], odder = 2 * x[s] + 8 * x[3 * s];
    r[0] = x[0];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = evener + odder;
    r[4] = evener - odder;
    r[5] = x[3 * s];
}

static const float g[IN][3] = {{1 / 4.f, 0, 0},
                              {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                              {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                              {1 / 24.f, 1 / 12.f, 1 / 6.f},
                              {1 / 24.f, -1 / 12.f, 1 / 6.f},
                              {0, 0, 1}};

#endif

/* Every tile (b, i, j) of a picture and every 16 of its channels; `at` is its place among all tiles. */
#define EACH_TILE                                                       \
    const int64_t down = (height + OUT - 1) / OUT, across = (width + OUT - 1) / OUT; \
    const int64_t plane = n * channels;                                 \
    _Pragma("omp parallel for collapse(2) schedule(static)")            \
    for (int64_t b = 0; b < rows; b++)                                  \
    for (int64_t i = 0; i < down; i++)                                  \
    for (int64_t j = 0; j < across; j++)                                \
    for (int64_t c = 0, at = ((b * down + i) * across + j) * channels; c < channels; c += LANES)

#define PLACE(h, w) ((((b) * height + (h)) * width + (w)) * channels + c)

/* tiles = (B^T x B^T) of the places around each tile; zeros outside the picture.
   With `up` of 1 the picture is x (B, H/2, W/2, C) with every place repeated twice down and across. */
void cut(const number *x, number *tiles, int64_t rows, int64_t height, int64_t width, int64_t channels,
         int64_t n, int64_t up) {
    EACH_TILE {
        vec d[PLACES], once[PLACES], row[IN];
        for (int u = 0; u < IN; u++)
            for (int v = 0; v < IN; v++) {
                const int64_t h = OUT * i + u - 1, w = OUT * j + v - 1;
                const int inside = h >= 0 && h < height && w >= 0 && w < width;
                const int64_t from = ((b * (height >> up) + (h >> up)) * (width >> up) + (w >> up)) * channels + c;
                d[IN * u + v] = inside ? read(x + from) : (vec){0};
            }
        for (int v = 0; v < IN; v++) b_t(d + v, IN, once + IN * v);
        for (int u = 0; u < IN; u++) {
            b_t(once + u, IN, row);
            for (int v = 0; v < IN; v++) write(tiles + (IN * u + v) * plane + at + c, row[v]);
        }
    }
}

/* y = (A^T x A^T) tiles + bias + plus, where plus is another picture or NULL */
void join(const number *tiles, const float *bias, const number *plus, number *y, int64_t rows, int64_t height,
          int64_t width, int64_t channels, int64_t n) {
    EACH_TILE {
        vec once[OUT * IN], m[IN], row[OUT];
        const vec added = load(bias + c);
        for (int v = 0; v < IN; v++) {
            for (int u = 0; u < IN; u++) m[u] = read(tiles + (IN * u + v) * plane + at + c);
            a_t(m, 1, once + OUT * v);
        }
        for (int u = 0; u < OUT && OUT * i + u < height; u++) {
            a_t(once + u, OUT, row);
            for (int v = 0; v < OUT && OUT * j + v < width; v++) {
                const int64_t place = PLACE(OUT * i + u, OUT * j + v);
                write(y + place, row[v] + added + (plus ? read(plus + place) : (vec){0}));
            }
        }
    }
}

/* tiles = (A x A) of each tile of y, which is zero outside the picture: the adjoint of `join` without its bias */
void spread(const number *y, number *tiles, int64_t rows, int64_t height, int64_t width, int64_t channels,
            int64_t n) {
    EACH_TILE {
        vec d[OUT * OUT], once[OUT * IN], row[IN];
        for (int u = 0; u < OUT; u++)
            for (int v = 0; v < OUT; v++) {
                const int64_t h = OUT * i + u, w = OUT * j + v;
                d[OUT * u + v] = h < height && w < width ? read(y + PLACE(h, w)) : (vec){0};
            }
        for (int v = 0; v < OUT; v++) a(d + v, OUT, once + IN * v);
        for (int u = 0; u < IN; u++) {
            a(once + u, IN, row);
            for (int v = 0; v < IN; v++) write(tiles + (IN * u + v) * plane + at + c, row[v]);
        }
    }
}

/* u (PLACES, from, to) = (G x G) w, where w[t * to_stride + f * from_stride + place] and place runs back if `back` */
void weigh(const float *w, number *u, int64_t from, int64_t to, int64_t from_stride, int64_t to_stride, int64_t back) {
    _Pragma("omp parallel for schedule(static)")
    for (int64_t f = 0; f < from; f++)
        for (int64_t t = 0; t < to; t += LANES) {
            vec d[9], once[3 * IN];
            for (int place = 0; place < 9; place++)
                for (int lane = 0; lane < LANES; lane++)
                    d[place][lane] = w[(t + lane) * to_stride + f * from_stride + (back ? 8 - place : place)];
            for (int p = 0; p < IN; p++)
                for (int v = 0; v < 3; v++) once[3 * p + v] = g[p][0] * d[v] + g[p][1] * d[3 + v] + g[p][2] * d[6 + v];
            for (int p = 0; p < IN; p++)
                for (int q = 0; q < IN; q++)
                    write(u + ((IN * p + q) * from + f) * to + t,
                          g[q][0] * once[3 * p] + g[q][1] * once[3 * p + 1] + g[q][2] * once[3 * p + 2]);
        }
}

/* w (to, from, 9) = (G^T x G^T) u: the adjoint of `weigh` */
void unweigh(const number *u, float *w, int64_t from, int64_t to) {
    _Pragma("omp parallel for schedule(static)")
    for (int64_t f = 0; f < from; f++)
        for (int64_t t = 0; t < to; t += LANES) {
            vec once[3 * IN];
            for (int p = 0; p < IN; p++) {
                vec row[3] = {{0}, {0}, {0}};
                for (int q = 0; q < IN; q++) {
                    const vec x = read(u + ((IN * p + q) * from + f) * to + t);
                    for (int v = 0; v < 3; v++) row[v] += g[q][v] * x;
                }
                for (int v = 0; v < 3; v++) once[3 * p + v] = row[v];
            }
            for (int k = 0; k < 3; k++)
                for (int v = 0; v < 3; v++) {
                    vec sum = {0};
                    for (int p = 0; p < IN; p++) sum += g[p][k] * once[3 * p + v];
                    for (int lane = 0; lane < LANES; lane++) w[((t + lane) * from + f) * 9 + 3 * k + v] = sum[lane];
                }
        }
}
