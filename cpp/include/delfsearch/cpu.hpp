// Which instruction set the kernels use. Chosen once, at the first call: the best that processor
// and operating system offer, unless the environment variable DELFSEARCH_SIMD (scalar, avx2,
// avx512, amx, neon) names another. A name that this processor cannot run is an error, not a
// fallback. neon: the KD-tree's kernels need the dot product of Armv8.2 as well, and are the
// portable ones without it, as those of RANSAC are; compilers turn those into NEON.
#pragma once

namespace delfsearch {

enum class Simd { kScalar, kAvx2, kAvx512, kNeon };

// kAvx512 stands for F, BW, VL, DQ, VNNI and VBMI together (Ice Lake, Zen 4 and later).
Simd simd();

// Beside kAvx512: may AMX tiles of 8-bit products be used too? The first call asks Linux for them.
// DELFSEARCH_SIMD=avx512 means without, amx with.
bool amx();

const char* simd_name(Simd simd);

}  // namespace delfsearch
