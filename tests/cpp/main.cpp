#include <cstdio>

#include "check.h"
#include "kernels/kernel.h"

int main() {
#ifdef DGMFAST_TEST_ISA
  try {
    dgmfast::isa_by_name(DGMFAST_TEST_ISA);
  } catch (const std::invalid_argument&) {
    std::printf("this processor has no %s\n", DGMFAST_TEST_ISA);
    return 77;
  }
#endif
  for (const check::Test& test : check::tests()) {
    const int before = check::failures();
    std::printf("%s\n", test.name);
    test.run();
    if (check::failures() > before) std::printf("%s FAILED\n", test.name);
  }
  std::printf("%zu tests, %d checks failed\n", check::tests().size(), check::failures());
  return check::failures() > 0;
}
