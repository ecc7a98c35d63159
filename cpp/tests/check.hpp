// A minimal test harness: CHECK counts and prints failures, main returns their number.
#pragma once

#include <cstdio>

namespace delfsearch_test {
inline int& failures() {
  static int count = 0;
  return count;
}
inline int& checks() {
  static int count = 0;
  return count;
}
inline int report(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks(), failures());
  return failures() == 0 && checks() > 0 ? 0 : 1;
}
}  // namespace delfsearch_test

#define CHECK(condition)                                                        \
  do {                                                                          \
    ++delfsearch_test::checks();                                                \
    if (!(condition)) {                                                         \
      ++delfsearch_test::failures();                                            \
      std::printf("%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (0)

#define CHECK_THROWS(expression, exception)                                                \
  do {                                                                                     \
    ++delfsearch_test::checks();                                                           \
    bool thrown = false;                                                                   \
    try {                                                                                  \
      (void)(expression);                                                                  \
    } catch (const exception&) {                                                           \
      thrown = true;                                                                       \
    }                                                                                      \
    if (!thrown) {                                                                         \
      ++delfsearch_test::failures();                                                       \
      std::printf("%s:%d: no %s from: %s\n", __FILE__, __LINE__, #exception, #expression); \
    }                                                                                      \
  } while (0)
