/* Passes over rows between a linear layer's two products; `rows.c` offers them to Python, `steps.c` runs them
 * inside a whole step. float32, rows packed.
 * Axes: B batch, O out, C classes. Source: `reference.py`, whose mathematics this is.
 */
#ifndef SPELA_ROWS_H
#define SPELA_ROWS_H

#include "../cpu/passes.h"
#include <math.h>

/* Partial sums that do not wait for each other: one float alone would not be vectorised. */
#define LANES 32

/* The functions over j stay apart from the loop over rows: inlined there, GCC interleaves rows before it
 * vectorises, and the pass takes many times as long. */
FOR_EVERY_PROCESSOR
float spela_dot(const float *restrict a, const float *restrict b, int64_t size)
{
    float sums[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += a[j + lane] * b[j + lane];
    for (int lane = 0; j + lane < size; lane++)
        sums[lane] += a[j + lane] * b[j + lane];
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            sums[lane] += sums[lane + half];
    return sums[0];
}

/* dy_j = pull v_j - along y_j */
FOR_EVERY_PROCESSOR
void spela_turn(const float *restrict y, const float *restrict v, int64_t size, float pull, float along,
                float *restrict dy)
{
    for (int64_t j = 0; j < size; j++)
        dy[j] = pull * v[j] - along * y[j];
}

/* dy_j -= along y_j */
FOR_EVERY_PROCESSOR
void spela_take(const float *restrict y, int64_t size, float along, float *restrict dy)
{
    for (int64_t j = 0; j < size; j++)
        dy[j] -= along * y[j];
}

/* dz_j = phi'(y_j) dy_j in place, phi' being 1 above zero and `slope` elsewhere. */
FOR_EVERY_PROCESSOR
void spela_activate(const float *restrict y, int64_t size, float slope, float *restrict dz)
{
    for (int64_t j = 0; j < size; j++)
        dz[j] *= y[j] > 0 ? 1.0f : slope;
}

/* sums_j += row_j */
FOR_EVERY_PROCESSOR
void spela_add(const float *restrict row, int64_t size, float *restrict sums)
{
    for (int64_t j = 0; j < size; j++)
        sums[j] += row[j];
}

/* Columns that are summed at once. */
#define STRIP 256

/* total (O,) = sum of rows (B, O) */
static void sum_rows(const float *rows, int64_t batch, int64_t outputs, int threads, float *total)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < outputs; j += STRIP) {
        int64_t size = outputs - j < STRIP ? outputs - j : STRIP;
        for (int64_t k = j; k < j + size; k++)
            total[k] = 0;
        for (int64_t i = 0; i < batch; i++)
            spela_add(rows + i * outputs + j, size, total + j);
    }
}

/* Objectives of `objectives.py`, under the codes of `compiled.py`. */
enum { LOG, COSINE, ANGULAR, EUCLIDEAN, MSE };
#define PI 3.14159265358979323846

static double inside(double c, double margin)
{
    return c > 1 - margin ? 1 - margin : c < margin - 1 ? margin - 1 : c; /* NaN stays NaN */
}

/* f(c) and f'(c) of the objectives that see the label's cosine alone. */
static double label_loss(int objective, double c, double margin, double *derivative)
{
    double near = inside(c, margin), gap;
    switch (objective) {
    case COSINE:
        *derivative = -1;
        return -c;
    case ANGULAR:
        *derivative = -1 / ((1 + acos(near) / PI) * PI * sqrt(1 - near * near));
        return log(1 + acos(inside(c, 0)) / PI);
    case EUCLIDEAN:
        gap = sqrt(2 - 2 * near);
        *derivative = -1 / ((1 + gap) * gap);
        return log(1 + sqrt(2 - 2 * inside(c, 0)));
    case MSE:
        *derivative = -2 * (1 - c);
        return (1 - c) * (1 - c);
    default:
        *derivative = 1 / (c - 2);
        return log(2 - c);
    }
}

/* exp(-a) for a in 0..87, to rounding: 2^-k times a polynomial of what is left. */
static inline float exp_minus(float a)
{
    union {
        int32_t bits;
        float value;
    } power;
    float k = (a * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest whole number */
    float r = (a - k * 0.693359375f) + k * 2.12194440e-4f;
    float sum = 1 / 720.0f - r / 5040;
    sum = 1 / 24.0f + r * (-1 / 120.0f + r * sum);
    sum = 1 + r * (-1 + r * (0.5f + r * (-1 / 6.0f + r * sum)));
    power.bits = (127 - (int32_t)k) << 23;
    return sum * power.value;
}

/* powers_k = exp(sharp (dots_k - top)) */
FOR_EVERY_PROCESSOR
void spela_powers(const float *restrict dots, int64_t classes, float sharp, float top, float *restrict powers)
{
    for (int64_t k = 0; k < classes; k++) {
        float a = sharp * (top - dots[k]);
        powers[k] = exp_minus(a < 87 ? a : 87);
    }
}

/* sums = sum of powers_k and of powers_k (dots_k - own) */
FOR_EVERY_PROCESSOR
void spela_moments(const float *restrict powers, const float *restrict dots, int64_t classes, float own, float sums[2])
{
    float plain[LANES] = {0}, apart[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= classes; k += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            plain[lane] += powers[k + lane];
            apart[lane] += powers[k + lane] * (dots[k + lane] - own);
        }
    for (int lane = 0; k + lane < classes; lane++) {
        plain[lane] += powers[k + lane];
        apart[lane] += powers[k + lane] * (dots[k + lane] - own);
    }
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) {
            plain[lane] += plain[lane + half];
            apart[lane] += apart[lane + half];
        }
    sums[0] = plain[0];
    sums[1] = apart[0];
}

/* Cross-entropy of scale * dots * inverse (C,). Writes the factors of the class vectors in dL/dy, `share` of the
 * batch, to every `stride`th float; `along` is the factor of y; `powers` (C,) is scratch memory. */
static double softmax_loss(const float *dots, int64_t classes, int64_t label, double inverse, double scale,
                           double share, float *powers, float *factors, int64_t stride, float *along)
{
    float top = dots[0], others[2];
    double sharp = scale * inverse, own, sum, pull;
    for (int64_t k = 1; k < classes; k++)
        if (dots[k] > top)
            top = dots[k];
    spela_powers(dots, classes, (float)sharp, top, powers);
    own = powers[label];
    powers[label] = 0; /* the others' sum, not 1 less the label's share: of a sure sample little would be left */
    spela_moments(powers, dots, classes, dots[label], others);
    sum = others[1] - others[1] == 0 ? own + others[0] : NAN; /* where any of dots is no number */
    pull = share * sharp / sum;
    for (int64_t k = 0; k < classes; k++)
        factors[k * stride] = (float)(pull * powers[k]);
    factors[label * stride] = (float)(-pull * others[0]);
    *along = (float)(pull * others[1] * inverse * inverse);
    return log(sum) + sharp * ((double)top - dots[label]);
}

/* 1 / |y|, and 0 for a row that is too short to have a direction. */
static double inverse_norm(const float *y, int64_t outputs, double eps)
{
    double norm = sqrt(spela_dot(y, y, outputs));
    return norm <= eps ? 0 : 1 / norm; /* NaN stays NaN */
}

/* One row of `label_rows`: its loss. dz (O,) is written. */
static double label_row(const float *y, const float *own, int64_t outputs, int objective, double share, double slope,
                        double eps, double margin, float *dz)
{
    double inverse = inverse_norm(y, outputs, eps), cosine = spela_dot(y, own, outputs) * inverse;
    double derivative, loss = label_loss(objective, cosine, margin, &derivative);
    double pull = derivative * inverse * share;
    spela_turn(y, own, outputs, (float)pull, (float)(pull * cosine * inverse), dz);
    spela_activate(y, outputs, (float)slope, dz);
    return loss;
}

#endif
