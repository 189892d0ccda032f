"""Recurrences that a file writes in parallel over all steps become recurrences again.

    h = exp(a) * cumsum(u * exp(-a)), a = cumsum(l)                 h[t] = exp(l[t]) * h[t-1] + u[t]
    y = (mask * decay * (q @ k')) @ v                               S[t] = decay[t] * S[t-1] + k[t] v[t]';  y = q S

forms     what is known of a value: a product (or a sum of logarithms) of powers of running sums and of plain values
algebra   sums, products, moves of forms; the nodes that they need
read      graph nodes -> forms
write     a form whose powers cancel -> the nodes of the recurrence
proof     the recurrence and the file's nodes give the same numbers in float64, at several lengths

Other ways of writing the same are found by what they do, not by how they are written (`laws_in`): recurrences in
chunks, and in as many rounds of doubling as a fixed length needs.

spread    the axis of steps, followed through a graph: values that mix steps, and what they are made of
regions   a mixed value as a function of what it is made of, in float64
laws      the recurrence that such a function is: which of its leaves decays, writes and reads, and the proof
find_laws all of a graph
recipes   how a leaf is made of values that have their steps on one axis

As the file writes it, such a value grows or shrinks exponentially with the steps and leaves the range of float32. The
recurrence keeps every digit, has no largest length, and streams.
"""

from .find import recurrences_of_parallel_forms
from .find_laws import laws_in
from .kernels import Kernel
from .laws import Law, Leaf
from .recipes import Done, Moved, NoRecipe, Read, recipe

__all__ = [
    "Done",
    "Kernel",
    "Law",
    "Leaf",
    "Moved",
    "NoRecipe",
    "Read",
    "laws_in",
    "recipe",
    "recurrences_of_parallel_forms",
]
