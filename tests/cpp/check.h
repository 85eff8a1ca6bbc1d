// A test framework of one page. TEST(name) { CHECK(...); } registers a test. main.cpp runs all tests and counts the failed
// checks.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void report(bool ok, const char* file, int line, const char* what) {
  if (ok) return;
  if (++failures() <= 20) std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
}

// Returns the distance of `got` from `exact` in units of T's last place at `exact`, or at the smallest normal number if `exact`
// is below it.
template <class T>
double ulps(T got, long double exact) {
  if (std::isnan(got) || std::isnan(exact)) return std::isnan(got) && std::isnan(exact) ? 0.0 : INFINITY;
  if (std::isinf(got) || std::fabs(exact) > std::numeric_limits<T>::max()) {
    return static_cast<T>(exact) == got ? 0.0 : INFINITY;
  }
  const long double size = std::fmax(std::fabs(exact), static_cast<long double>(std::numeric_limits<T>::min()));
  int exponent;
  std::frexp(size, &exponent);
  return double(std::fabs(got - exact) / std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits));
}

// Keeps the largest of many errors and where it was, and checks in the end that it is within a limit.
struct Worst {
  const char* what;
  double limit;
  double error = 0;
  long double at = 0;

  void add(double e, long double x) {
    if (e > error || std::isnan(e)) error = e, at = x;
  }
  ~Worst() {
    std::printf("  %-28s %.3f ulp at %.9Lg (limit %g)\n", what, error, at, limit);
    report(error <= limit, what, 0, "error above its limit");
  }
};

}  // namespace check

#define TEST(name)                                            \
  static void name();                                         \
  static const check::Register register_##name(#name, &name); \
  static void name()

#define CHECK(...) check::report(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
