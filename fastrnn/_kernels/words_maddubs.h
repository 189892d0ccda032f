/* vec_dot of 8 and of 4 lanes without VNNI, for AVX2 and AVX-512. The instruction multiplies unsigned bytes by signed
 * ones, so w's sign goes to a, which is never -128. A pair of products is at most 2 * 127 * 128: it does not
 * saturate. */
FRNN_INLINE vec_int_8 vec_dot_8(vec_int_8 sums, vec_int_8 a, vec_int_8 w) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)a, (__m256i)w));
    return sums + (vec_int_8)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
    __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8((__m128i)w), _mm_sign_epi8((__m128i)a, (__m128i)w));
    return sums + (vec_int_4)_mm_madd_epi16(pairs, _mm_set1_epi16(1));
}
