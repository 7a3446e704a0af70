/* Everything between a linear layer's two products, one row at a time: norm and cosines of y, loss and its
 * derivative, dL/dz and its column sums. A row is read once, while it is in the first cache.
 *
 * Optional: `cpu.py` does the same by operators of torch where this was not built or does not fit. float32,
 * rows packed; the caller (`compiled.py`) has checked shapes, strides and labels.
 * Axes: B batch, O out, C classes. Source: spec section 3.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* One body, compiled for the widest vectors that the processor has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

/* Partial sums that do not wait for each other: one float alone would not be vectorised. */
#define LANES 64

/* The functions over j stay apart from the loop over rows: inlined there, GCC interleaves rows before it
 * vectorises, and the pass takes thirty times as long. */
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

FOR_EVERY_PROCESSOR
void spela_add(const float *restrict v, int64_t size, float factor, float *restrict total)
{
    for (int64_t j = 0; j < size; j++)
        total[j] += factor * v[j];
}

/* dz_j = phi'(y_j) dy_j in place, phi' being 1 above zero and `slope` elsewhere; summed over the batch. */
FOR_EVERY_PROCESSOR
void spela_activate(const float *restrict y, int64_t size, float slope, float *restrict dz, float *restrict dbias)
{
    for (int64_t j = 0; j < size; j++) {
        float derivative = y[j] > 0 ? 1.0f : slope;
        dz[j] *= derivative;
        dbias[j] += dz[j];
    }
}

/* Objectives: spec section 3's table, under the codes of `compiled.py`. */
enum { LOG, COSINE, ANGULAR, EUCLIDEAN, MSE, SOFTMAX };
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

/* Cross-entropy of scale * cosines; `cosines` (C,) become its derivative, `along` = sum_k q_k c_k. */
static double softmax_loss(float *cosines, int64_t classes, int64_t label, double scale, double *along)
{
    double largest = -INFINITY, sum = 0, loss, mean = 0;
    for (int64_t k = 0; k < classes; k++)
        if (!(scale * cosines[k] <= largest)) /* NaN stays NaN */
            largest = scale * cosines[k];
    for (int64_t k = 0; k < classes; k++)
        sum += exp(scale * cosines[k] - largest);
    loss = log(sum) + largest - scale * cosines[label];
    for (int64_t k = 0; k < classes; k++) {
        double q = scale * (exp(scale * cosines[k] - largest) / sum - (k == label));
        mean += q * cosines[k];
        cosines[k] = (float)q;
    }
    *along = mean;
    return loss;
}

struct rows {
    const float *y, *vectors; /* (B, O), (C, O) */
    const int64_t *target;    /* (B,) */
    int64_t batch, outputs, classes;
    int objective;
    double scale, slope, eps, margin;
    float *loss, *dz, *dbias; /* (), (B, O), (O,) */
};

static void one_row(const struct rows *r, int64_t i, float *cosines, double *loss)
{
    const float *y = r->y + i * r->outputs, *own = r->vectors + r->target[i] * r->outputs;
    float *dz = r->dz + i * r->outputs;
    double norm = sqrt(spela_dot(y, y, r->outputs));
    double inverse = norm <= r->eps ? 0 : 1 / norm; /* a row that short has no direction */
    if (r->objective == SOFTMAX) {
        double along;
        for (int64_t k = 0; k < r->classes; k++)
            cosines[k] = (float)(spela_dot(y, r->vectors + k * r->outputs, r->outputs) * inverse);
        *loss += softmax_loss(cosines, r->classes, r->target[i], r->scale, &along);
        inverse /= r->batch;
        along *= inverse * (norm <= r->eps ? 0 : 1 / norm);
        spela_turn(y, r->vectors, r->outputs, (float)(cosines[0] * inverse), (float)along, dz);
        for (int64_t k = 1; k < r->classes; k++)
            spela_add(r->vectors + k * r->outputs, r->outputs, (float)(cosines[k] * inverse), dz);
    } else {
        double derivative, cosine = spela_dot(y, own, r->outputs) * inverse;
        *loss += label_loss(r->objective, cosine, r->margin, &derivative);
        double pull = derivative * inverse / r->batch;
        spela_turn(y, own, r->outputs, (float)pull, (float)(pull * cosine * inverse), dz);
    }
    spela_activate(y, r->outputs, (float)r->slope, dz, r->dbias);
}

static void *address(PyObject *number) { return PyLong_AsVoidPtr(number); }

/* step_rows(y (B, O), vectors (C, O), target (B,), B, O, C, objective, scale, slope, eps, margin,
 *           loss (), dz (B, O), dbias (O,)): addresses and numbers; the last three are written. */
static PyObject *step_rows(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 14)
        return PyErr_Format(PyExc_TypeError, "step_rows takes 14 arguments, got %zd", count);
    struct rows r = {
        address(args[0]), address(args[1]), address(args[2]),
        PyLong_AsLongLong(args[3]), PyLong_AsLongLong(args[4]), PyLong_AsLongLong(args[5]),
        (int)PyLong_AsLong(args[6]),
        PyFloat_AsDouble(args[7]), PyFloat_AsDouble(args[8]), PyFloat_AsDouble(args[9]), PyFloat_AsDouble(args[10]),
        address(args[11]), address(args[12]), address(args[13]),
    };
    if (PyErr_Occurred())
        return NULL;
    float *cosines = malloc((size_t)r.classes * sizeof *cosines);
    if (cosines == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    double loss = 0;
    for (int64_t j = 0; j < r.outputs; j++)
        r.dbias[j] = 0;
    for (int64_t i = 0; i < r.batch; i++)
        one_row(&r, i, cosines, &loss);
    *r.loss = (float)(loss / r.batch);
    Py_END_ALLOW_THREADS
    free(cosines);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"step_rows", (PyCFunction)(void (*)(void))step_rows, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_rows", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&definition); }
