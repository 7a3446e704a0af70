"""The fixed directions that layers turn their outputs to: a vector a class, or one a group of classes."""

from spela.vectors.further import further_vectors
from spela.vectors.grouping import (
    Groups,
    class_grouping,
    codes_problem,
    decode_groups,
    encode_groups,
    group_vectors,
    most_groups,
)
from spela.vectors.symmetric import (
    VECTOR_KINDS,
    as_size,
    check_directions,
    check_vector_kind,
    check_vectors,
    class_vectors,
    coulomb_energy,
    directions_of,
    placed_vectors,
    random_vectors,
    symmetric_vectors,
)

__all__ = [
    "VECTOR_KINDS",
    "Groups",
    "as_size",
    "check_directions",
    "check_vector_kind",
    "check_vectors",
    "class_grouping",
    "class_vectors",
    "codes_problem",
    "coulomb_energy",
    "decode_groups",
    "directions_of",
    "encode_groups",
    "further_vectors",
    "group_vectors",
    "most_groups",
    "placed_vectors",
    "random_vectors",
    "symmetric_vectors",
]
