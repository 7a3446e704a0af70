/* What lies between a linear layer's two products, one row at a time: norm and cosines of y, loss and its
 * derivative, dL/dz and its column sums. For objectives of the label's cosine alone it is one pass, `label_rows`;
 * for softmax there are two, around a product with all class vectors: `class_factors` and `class_rows`.
 *
 * Optional: `cpu.py` does the same by operators of torch where this was not built or does not fit. float32,
 * rows packed; the caller (`compiled.py`) has checked shapes, strides and labels.
 * Axes: B batch, O out, C classes. Source: `reference.py`, whose mathematics this is.
 */
#include "../cpu/passes.h"
#include <math.h>

/* Partial sums that do not wait for each other: one float alone would not be vectorised. */
#define LANES 64

/* The functions over j stay apart from the loop over rows: inlined there, GCC interleaves rows before it
 * vectorises, and the pass takes many times as long. */
FOR_EVERY_PROCESSOR
float spela_dot(const float *restrict a, const float *restrict b, int64_t size)
{
    float sums[LANES] = {0}, total = 0;
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += a[j + lane] * b[j + lane];
    for (int lane = 0; lane < LANES; lane++)
        total += sums[lane];
    for (; j < size; j++)
        total += a[j] * b[j];
    return total;
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

/* Fewer numbers than this, some 0.1 ms, are not worth a second thread, for which a busy machine waits long. */
#define WORTH 131072

static int useful(int64_t threads, int64_t batch, int64_t outputs)
{
    return batch * outputs < WORTH ? 1 : (int)threads;
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

/* Cross-entropy of scale * dots * inverse (C,). Writes the factors of the class vectors in dL/dy, `share` of the
 * batch, to every `stride`th float; `along` is the factor of y. */
static double softmax_loss(const float *dots, int64_t classes, int64_t label, double inverse, double scale,
                           double share, float *factors, int64_t stride, float *along)
{
    double largest = -INFINITY, sum = 0, mean = 0, sharp = scale * inverse;
    for (int64_t k = 0; k < classes; k++)
        if (!(sharp * dots[k] <= largest)) /* NaN stays NaN */
            largest = sharp * dots[k];
    for (int64_t k = 0; k < classes; k++)
        sum += factors[k * stride] = expf((float)(sharp * dots[k] - largest));
    for (int64_t k = 0; k < classes; k++) {
        double q = share * scale * (factors[k * stride] / sum - (k == label));
        mean += q * dots[k] * inverse;
        factors[k * stride] = (float)(q * inverse);
    }
    *along = (float)(mean * inverse * inverse);
    return log(sum) + largest - sharp * dots[label];
}

/* 1 / |y|, and 0 for a row that is too short to have a direction. */
static double inverse_norm(const float *y, int64_t outputs, double eps)
{
    double norm = sqrt(spela_dot(y, y, outputs));
    return norm <= eps ? 0 : 1 / norm; /* NaN stays NaN */
}

/* label_rows(y (B, O), vectors (C, O), target (B,), B, O, objective, slope, eps, margin, threads,
 *            loss (), dz (B, O), dbias (O,)): addresses and numbers; the last three are written. */
static PyObject *label_rows(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 13))
        return NULL;
    const float *y = address(args[0]), *vectors = address(args[1]);
    const int64_t *target = address(args[2]);
    int64_t batch = integer(args[3]), outputs = integer(args[4]), objective = integer(args[5]);
    double slope = real(args[6]), eps = real(args[7]), margin = real(args[8]), total = 0, *losses;
    int threads = useful(integer(args[9]), batch, outputs);
    float *loss = address(args[10]), *dz = address(args[11]), *dbias = address(args[12]);
    if (PyErr_Occurred())
        return NULL;
    losses = PyMem_RawMalloc((size_t)batch * sizeof *losses);
    if (!losses)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch; i++) {
        const float *own = vectors + target[i] * outputs, *row = y + i * outputs;
        double inverse = inverse_norm(row, outputs, eps), cosine = spela_dot(row, own, outputs) * inverse;
        double derivative, pull;
        losses[i] = label_loss((int)objective, cosine, margin, &derivative);
        pull = derivative * inverse / batch;
        spela_turn(row, own, outputs, (float)pull, (float)(pull * cosine * inverse), dz + i * outputs);
        spela_activate(row, outputs, (float)slope, dz + i * outputs);
    }
    sum_rows(dz, batch, outputs, threads, dbias);
    for (int64_t i = 0; i < batch; i++) /* in order, whatever the threads */
        total += losses[i];
    *loss = (float)(total / batch);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(losses);
    Py_RETURN_NONE;
}

/* class_factors(y (B, O), dots (B, C), target (B,), B, O, C, scale, eps,
 *               loss (), factors (C, B), along (B,)): with them, dL/dy = factors^T vectors - along y. */
static PyObject *class_factors(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 11))
        return NULL;
    const float *y = address(args[0]), *dots = address(args[1]);
    const int64_t *target = address(args[2]);
    int64_t batch = integer(args[3]), outputs = integer(args[4]), classes = integer(args[5]);
    double scale = real(args[6]), eps = real(args[7]), total = 0;
    float *loss = address(args[8]), *factors = address(args[9]), *along = address(args[10]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < batch; i++)
        total += softmax_loss(dots + i * classes, classes, target[i], inverse_norm(y + i * outputs, outputs, eps),
                              scale, 1.0 / batch, factors + i, batch, along + i);
    *loss = (float)(total / batch);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* class_rows(y (B, O), along (B,), B, O, slope, threads, dz (B, O), dbias (O,)): dz comes as factors^T vectors. */
static PyObject *class_rows(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 8))
        return NULL;
    const float *y = address(args[0]), *along = address(args[1]);
    int64_t batch = integer(args[2]), outputs = integer(args[3]);
    double slope = real(args[4]);
    int threads = useful(integer(args[5]), batch, outputs);
    float *dz = address(args[6]), *dbias = address(args[7]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch; i++) {
        spela_take(y + i * outputs, outputs, along[i], dz + i * outputs);
        spela_activate(y + i * outputs, outputs, (float)slope, dz + i * outputs);
    }
    sum_rows(dz, batch, outputs, threads, dbias);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    METHOD(label_rows),
    METHOD(class_factors),
    METHOD(class_rows),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_rows", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&definition); }
