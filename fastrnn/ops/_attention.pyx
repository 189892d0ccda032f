# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Attention over the keys of a call, or over those that a stream keeps.

For each attention over time, a stream's slab row holds the last `capacity` keys and values of every head, [heads,
capacity, features]. Those of step p are at place p % capacity. The row also holds, once for all ops, how many steps the
stream has seen.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from fastrnn.machine._isa cimport fpu_enter, fpu_leave, frnn_attention, frnn_keys, team_for, team_size
from fastrnn.ops._frame cimport CHUNKS, Frame, at, state_row, steps_seen
from fastrnn.ops._walk cimport DONE, add_op, number

cdef enum:
    PARTS = 16  # concurrent pieces of work; each has its own room for scores

cdef struct AttentionArgs:
    int64_t batch, heads, group, rows, keys, d, dv  # heads: of the keys; group: heads of q that read one of them
    int64_t q_buffer, q_offset, q_batch, q_head, q_row
    int64_t k_buffer, k_offset, k_batch, k_head, k_step
    int64_t v_buffer, v_offset, v_batch, v_head, v_step
    int64_t y_buffer, y_offset, y_batch, y_head, y_row
    int64_t bias_buffer, bias_offset, bias_batch, bias_head, bias_row, bias_step  # bias_buffer -1: none
    int64_t mask_buffer, mask_offset, mask_batch, mask_head, mask_row, mask_step  # as bias; 0: the score is replaced
    int64_t how, causal, window, offset, safe, scratch, room  # how: scale and softcap; room: floats per part of scratch
    int64_t capacity, per_slot, k_state, v_state, position  # capacity 0: the keys are those of this call


def attention_scratch(keys):
    """Floats of scratch for scores over this many keys (an int or dim)."""
    return keys * PARTS


cdef struct AttentionLoop:
    const AttentionArgs *a
    Frame *f
    frnn_attention how


cdef inline const float *of_query(Frame *f, int64_t buffer, int64_t offset) noexcept nogil:
    """The start of a bias or mask; NULL if absent."""
    return <const float *> NULL if buffer < 0 else <const float *> at(f, buffer, offset)


cdef void attend_to_given(const AttentionLoop *s, int64_t unit, float *scores) noexcept nogil:
    """One query of one head, over the keys of this call that it sees."""
    cdef const AttentionArgs *a = s.a
    cdef Frame *f = s.f
    cdef int64_t heads = a.heads * a.group, i = unit % a.rows, head = unit // a.rows % heads
    cdef int64_t b = unit // a.rows // heads, at_ = i + a.offset, first = 0, end = a.keys
    cdef const float *bias = of_query(f, a.bias_buffer, a.bias_offset)
    cdef const float *mask = of_query(f, a.mask_buffer, a.mask_offset)
    cdef frnn_keys keys
    if a.causal:
        end = max(min(at_ + 1, end), 0)
    if a.window > 0:
        first = min(max(at_ - a.window + 1, 0), end)
    keys.k[0] = at(f, a.k_buffer, a.k_offset) + b * a.k_batch + head // a.group * a.k_head + first * a.k_step
    keys.v[0] = at(f, a.v_buffer, a.v_offset) + b * a.v_batch + head // a.group * a.v_head + first * a.v_step
    keys.k[1], keys.v[1], keys.n[0], keys.n[1] = keys.k[0], keys.v[0], end - first, 0
    keys.k_step, keys.v_step = a.k_step, a.v_step
    if bias != NULL:
        bias += b * a.bias_batch + head * a.bias_head + i * a.bias_row + first * a.bias_step
    if mask != NULL:
        mask += b * a.mask_batch + head * a.mask_head + i * a.mask_row + first * a.mask_step
    f.table.attend(a.d, a.dv, &s.how, at(f, a.q_buffer, a.q_offset) + b * a.q_batch + head * a.q_head + i * a.q_row,
                   &keys, bias, a.bias_step, mask, a.mask_step, scores,
                   at(f, a.y_buffer, a.y_offset) + b * a.y_batch + head * a.y_head + i * a.y_row)


cdef void attend_to_kept(const AttentionLoop *s, int64_t unit, float *scores) noexcept nogil:
    """All steps of one head of keys. Each key and value is stored in the slab. Then the queries of its step read the
    slab, oldest first. This is the order of a whole run, so the bits are the same."""
    cdef const AttentionArgs *a = s.a
    cdef Frame *f = s.f
    cdef int64_t head = unit % a.heads, b = unit // a.heads, t, g, place, seen, first
    cdef float *k_kept = state_row(f, a.per_slot, a.k_state, a.heads * a.capacity * a.d, b) + head * a.capacity * a.d
    cdef float *v_kept = state_row(f, a.per_slot, a.v_state, a.heads * a.capacity * a.dv, b) + head * a.capacity * a.dv
    cdef const float *k = at(f, a.k_buffer, a.k_offset) + b * a.k_batch + head * a.k_head
    cdef const float *v = at(f, a.v_buffer, a.v_offset) + b * a.v_batch + head * a.v_head
    cdef int64_t before = steps_seen(f, a.position, b // a.per_slot)
    cdef const float *bias = of_query(f, a.bias_buffer, a.bias_offset)
    cdef const float *mask = of_query(f, a.mask_buffer, a.mask_offset)
    cdef frnn_keys keys
    keys.k_step, keys.v_step = a.d, a.dv
    if bias != NULL:  # for each row and head, one number for all steps
        bias += b * a.bias_batch
    if mask != NULL:
        mask += b * a.mask_batch
    for t in range(a.rows):
        place = (before + t) % a.capacity
        memcpy(k_kept + place * a.d, k + t * a.k_step, a.d * sizeof(float))
        memcpy(v_kept + place * a.dv, v + t * a.v_step, a.dv * sizeof(float))
        seen = min(before + t + 1, a.capacity)
        first = place + 1 - seen
        if first < 0:
            first += a.capacity
        keys.n[0] = min(seen, a.capacity - first)
        keys.n[1] = seen - keys.n[0]
        keys.k[0], keys.k[1] = k_kept + first * a.d, k_kept
        keys.v[0], keys.v[1] = v_kept + first * a.dv, v_kept
        for g in range(head * a.group, (head + 1) * a.group):
            f.table.attend(a.d, a.dv, &s.how,
                           at(f, a.q_buffer, a.q_offset) + b * a.q_batch + g * a.q_head + t * a.q_row, &keys,
                           bias + g * a.bias_head if bias != NULL else NULL, 0,
                           mask + g * a.mask_head if mask != NULL else NULL, 0,
                           scores, at(f, a.y_buffer, a.y_offset) + b * a.y_batch + g * a.y_head + t * a.y_row)


cdef void attention_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const AttentionLoop *s = <const AttentionLoop *> context
    cdef const AttentionArgs *a = s.a
    cdef int64_t units = a.batch * a.heads * (1 if a.capacity > 0 else a.group * a.rows), u
    cdef float *scores = (<float *> s.f.base[a.scratch]) + chunk * a.room
    cdef uint64_t token = fpu_enter()
    for u in range(units * chunk // chunks, units * (chunk + 1) // chunks):
        if a.capacity > 0:
            attend_to_kept(s, u, scores)
        else:
            attend_to_given(s, u, scores)
    fpu_leave(token)


cdef int run_attention(const int64_t *args, Frame *f) noexcept nogil:
    cdef const AttentionArgs *a = <const AttentionArgs *> args
    cdef AttentionLoop s
    cdef const float *how = <const float *> f.base[a.how]
    cdef int64_t units = a.batch * a.heads * (1 if a.capacity > 0 else a.group * a.rows)
    cdef int64_t threads = team_size(f.team)
    s.a, s.f, s.how.scale, s.how.softcap, s.how.safe = a, f, how[0], how[1], <int32_t> a.safe
    if threads == 1:
        attention_chunk(&s, 0, 1)
    else:
        team_for(f.team, min(min(CHUNKS * threads, PARTS), units), attention_chunk, &s)
    return DONE


cdef union Args:
    AttentionArgs attention

cdef Args args
number(&args, sizeof(args))
add_op("attention", args.attention, run_attention, NULL)
