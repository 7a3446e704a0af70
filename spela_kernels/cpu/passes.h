/* What the compiled passes share: versions for every processor, and reading the arguments of Python's calls. */
#ifndef SPELA_PASSES_H
#define SPELA_PASSES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* One body, compiled once for every width of vectors; the processor's widest runs. A parallel loop that
 * OpenMP takes out of a function has no such clones: loops over rows or images call functions that do.
 * Static: a program may share the symbols of all that it loads, and modules have functions of the same name. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR static __attribute__((unused, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR static inline
#endif

static inline void *address(PyObject *number) { return PyLong_AsVoidPtr(number); }
static inline int64_t integer(PyObject *number) { return PyLong_AsLongLong(number); }
static inline double real(PyObject *number) { return PyFloat_AsDouble(number); }

static inline int has(Py_ssize_t count, Py_ssize_t expected)
{
    if (count != expected)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
    return count == expected;
}

/* A module that says which sources it was built from (`sources.py`), to be compared with those beside it. */
static inline PyObject *module_of(struct PyModuleDef *definition)
{
    PyObject *module = PyModule_Create(definition);
    if (module && PyModule_AddIntConstant(module, "SOURCES", SOURCES) < 0)
        Py_CLEAR(module);
    return module;
}

#endif
