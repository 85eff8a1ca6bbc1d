// `with_isa ISA PROGRAM` runs a program that may use every instruction of that set. If the processor lacks the set, it exits with
// 77 instead, which makes ctest skip the test.
#include <unistd.h>

#include <cstdio>

#include "kernels/kernel.h"

int main(int count, char** arguments) {
  if (count != 3) return 2;
  try {
    dgmfast::isa_by_name(arguments[1]);
  } catch (const std::invalid_argument&) {
    std::printf("this processor has no %s\n", arguments[1]);
    return 77;
  }
  execv(arguments[2], arguments + 2);
  std::perror(arguments[2]);
  return 1;
}
