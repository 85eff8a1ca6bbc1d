#include <cstdio>

#include "check.h"

int main() {
  for (const check::Test& test : check::tests()) {
    const int before = check::failures();
    std::printf("%s\n", test.name);
    test.run();
    if (check::failures() > before) std::printf("%s FAILED\n", test.name);
  }
  std::printf("%zu tests, %d checks failed\n", check::tests().size(), check::failures());
  return check::failures() > 0;
}
