"""Recurrences that a file writes in parallel over all steps become recurrences again.

    h = exp(a) * cumsum(u * exp(-a)), a = cumsum(l)                 h[t] = exp(l[t]) * h[t-1] + u[t]
    y = (mask * decay * (q @ k')) @ v                               S[t] = decay[t] * S[t-1] + k[t] v[t]';  y = q S

forms     what is known of a value: a product (or a sum of logarithms) of powers of running sums and of plain values
algebra   sums, products, moves of forms; the nodes that they need
read      graph nodes -> forms
write     a form whose powers cancel -> the nodes of the recurrence
proof     the recurrence and the file's nodes give the same numbers in float64, at several lengths

As the file writes it, such a value grows or shrinks exponentially with the steps and leaves the range of float32. The
recurrence keeps every digit, has no largest length, and streams.
"""

from .find import recurrences_of_parallel_forms

__all__ = ["recurrences_of_parallel_forms"]
