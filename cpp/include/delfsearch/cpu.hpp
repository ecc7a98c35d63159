// Which instruction set the kernels use. Chosen once, at the first call: the best that processor
// and operating system offer, unless the environment variable DELFSEARCH_SIMD (scalar, avx2,
// avx512, neon) names another. A name that this processor cannot run is an error, not a fallback.
#pragma once

namespace delfsearch {

enum class Simd { kScalar, kAvx2, kAvx512, kNeon };

// kAvx512 stands for F, BW, VL, DQ, VNNI and VBMI together (Ice Lake, Zen 4 and later).
Simd simd();

const char* simd_name(Simd simd);

}  // namespace delfsearch
