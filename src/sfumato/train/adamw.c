/* The step of adamw.py for one tensor of n numbers, float32. */

#include <math.h>
#include <stdint.h>

#define MOST 8
#define ALONE 16384 /* numbers below which starting threads costs more than the work */

void descend(float *restrict w, const float *restrict g, float *restrict m, float *restrict v, float *const *averages,
             const double *shares, int64_t tracks, int64_t n, double scale, double rate, double decay, double beta1,
             double beta2, double eps, double correction1, double correction2) {
    const float by = (float)scale, keep = (float)(1 - rate * decay), towards = (float)(1 - beta1);
    const float old = (float)beta2, new = (float)(1 - beta2), small = (float)eps;
    const float size = (float)(rate / correction1), root = (float)(1 / sqrt(correction2));
    float *track[MOST] = {0}, share[MOST] = {0};
    for (int64_t i = 0; i < tracks && i < MOST; i++) track[i] = averages[i], share[i] = (float)shares[i];
    _Pragma("omp parallel for schedule(static) if (n > ALONE)")
    for (int64_t start = 0; start < n; start += 1024) { /* short enough to be still in the cache for the averages */
        const int64_t end = start + 1024 < n ? start + 1024 : n;
        for (int64_t i = start; i < end; i++) {
            const float grad = g[i] * by;
            m[i] += towards * (grad - m[i]);
            v[i] = old * v[i] + new * grad * grad;
            w[i] = w[i] * keep - size * m[i] / (sqrtf(v[i]) * root + small);
        }
        for (int64_t a = 0; a < tracks && a < MOST; a++) {
            float *restrict average = track[a];
            for (int64_t i = start; i < end; i++) average[i] += share[a] * (w[i] - average[i]);
        }
    }
}
