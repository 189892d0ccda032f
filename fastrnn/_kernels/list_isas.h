/* Every instruction set, best first: ISA(name, flags, test). Its words are in words_<name>.h, kernels_<name>.c is
 * compiled with the flags, and its table is used if the test holds. LIKE(name, other, flags, test): only its products of
 * 8-bit weights are its own, the rest is the other's. TILED(name, other, flags, test): the other with a tile unit
 * (tile_unit.h). EMULATED(file, other, flags, test): the other with a tile unit in plain C (tile_emulated.c), in
 * kernels_<file>.c. The first that runs is named amx_emulated, and others amx_<file>.
 * FRNN_WITHOUT_<name>: setup.py found that the compiler or its assembler does not know the instructions of that row.
 * setup.py reads the rows that the preprocessor leaves; dispatch.c makes names, declarations and tests from them.
 *
 * CPU(feature) reads CPUID and also XGETBV: it is 0 if the OS does not save the registers. */
/* clang-format off */
#define CPU(feature) __builtin_cpu_supports(feature)
#if defined(__x86_64__)
EMULATED(emulated_16, avx512_vnni, "-Os -mavx2 -mfma -mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512vnni",
         CPU("avx2") && CPU("fma") && CPU("avx512f") && CPU("avx512vl") && CPU("avx512bw") && CPU("avx512dq") &&
             CPU("avx512vnni"))
EMULATED(emulated_8, avx2, "-Os -mavx2 -mfma", CPU("avx2") && CPU("fma"))
#ifndef FRNN_WITHOUT_amx
TILED(amx, avx512_vnni,
      "-mavx2 -mfma -mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8",
      CPU("avx2") && CPU("fma") && CPU("avx512f") && CPU("avx512vl") && CPU("avx512bw") && CPU("avx512dq") &&
          CPU("avx512vnni") && frnn_tile_unit() == FRNN_UNIT_READY)
#endif
LIKE(avx512_vnni, avx512, "-mavx2 -mfma -mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512vnni",
     CPU("avx2") && CPU("fma") && CPU("avx512f") && CPU("avx512vl") && CPU("avx512bw") && CPU("avx512dq") &&
         CPU("avx512vnni"))
ISA(avx512, "-mavx2 -mfma -mavx512f -mavx512vl -mavx512bw -mavx512dq",
    CPU("avx2") && CPU("fma") && CPU("avx512f") && CPU("avx512vl") && CPU("avx512bw") && CPU("avx512dq"))
#ifndef FRNN_WITHOUT_avx_vnni
LIKE(avx_vnni, avx2, "-mavx2 -mfma -mavxvnni", CPU("avx2") && CPU("fma") && CPU("avxvnni"))
#endif
ISA(avx2, "-mavx2 -mfma", CPU("avx2") && CPU("fma"))
#elif defined(__aarch64__)
EMULATED(emulated_4, neon, "-Os", 1)
ISA(neon, "", 1) /* every AArch64 CPU has it */
#endif
ISA(baseline, "", 1)
#undef CPU
#undef ISA
#undef LIKE
#undef EMULATED
#undef TILED
/* clang-format on */
