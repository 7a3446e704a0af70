/* What lies between a linear layer's two products, one row at a time: norm and cosines of y, loss and its
 * derivative, dL/dz and its column sums. For objectives of the label's cosine alone it is one pass, `label_rows`;
 * for softmax there are two, around a product with all class vectors: `class_factors` and `class_rows`.
 *
 * Optional: `cpu.py` does the same by operators of torch where this was not built or does not fit. float32,
 * rows packed; the caller (`compiled.py`) has checked shapes, strides and labels.
 * Axes: B batch, O out, C classes. Source: `reference.py`, whose mathematics this is.
 */
#include "../cpu/forks.h"
#include "rows.h"

/* Fewer numbers than this, some 0.1 ms, are not worth a second thread, for which a busy machine waits long. */
#define WORTH 131072

static int useful(int64_t threads, int64_t batch, int64_t outputs)
{
    return batch * outputs < WORTH ? 1 : at_hand(threads);
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
        int64_t at = i * outputs;
        losses[i] = label_row(y + at, vectors + target[i] * outputs, outputs, (int)objective, 1.0 / batch, slope, eps,
                              margin, dz + at);
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
    float *powers = PyMem_RawMalloc((size_t)classes * sizeof *powers);
    if (!powers)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < batch; i++)
        total += softmax_loss(dots + i * classes, classes, target[i], inverse_norm(y + i * outputs, outputs, eps),
                              scale, 1.0 / batch, powers, factors + i, batch, along + i);
    *loss = (float)(total / batch);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(powers);
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

PyMODINIT_FUNC PyInit__rows(void) { return mind_forks() == 0 ? module_of(&definition) : PyErr_NoMemory(); }
