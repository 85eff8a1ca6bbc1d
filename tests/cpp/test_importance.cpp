// Tests the online sums of importance weights: any order, any grouping, any value.
#include "check.h"

#include <cstdint>
#include <vector>

#include "math/importance.h"

using namespace dgmfast;

namespace {

const double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

// A small random number generator, so that the tests draw the same numbers on every machine.
struct Lcg {
  uint64_t state = 12345;
  double unit() { return double((state = state * 6364136223846793005u + 1442695040888963407u) >> 11) / 9007199254740992.0; }
};

long double log_sum(const std::vector<double>& w) {
  long double top = -std::numeric_limits<long double>::infinity(), sum = 0;
  for (const double x : w) top = std::fmax(top, static_cast<long double>(x));
  for (const double x : w) sum += std::exp(x - top);
  return top + std::log(sum);
}

bool near(double a, long double b) { return std::fabs(a - b) <= 1e-13L * (1 + std::fabs(b)); }

template <class T>
void orders_and_groups(double spread) {
  Lcg random;
  std::vector<double> w(513);
  for (double& x : w) x = T(spread * (random.unit() - 0.5));
  const long double truth = log_sum(w), tolerance = 600 * std::numeric_limits<T>::epsilon();
  for (const size_t group : {size_t(1), size_t(2), size_t(7), size_t(100), size_t(513)}) {
    for (const bool backwards : {false, true}) {
      LogSum<T> total;
      for (size_t begin = 0; begin < w.size(); begin += group) {
        LogSum<T> part;
        for (size_t i = begin; i < std::min(begin + group, w.size()); ++i) part.add(T(w[backwards ? w.size() - 1 - i : i]));
        total.merge(part);
      }
      CHECK(std::fabs(total.top + std::log(static_cast<long double>(total.sum)) - truth) <= tolerance * (1 + std::fabs(truth)));
    }
  }
}

WeightState state_of(const std::vector<double>& w) {
  WeightState s;
  for (const double x : w) s.add(x);
  return s;
}

}  // namespace

TEST(log_sum_in_any_order) {
  for (const double spread : {0.1, 30.0, 3000.0, 30000.0}) orders_and_groups<float>(spread), orders_and_groups<double>(spread);
}

TEST(log_sum_of_special_values) {
  LogSum<double> s;
  CHECK(s.sum == 0 && s.top == -kInf);
  s.add(-kInf);
  CHECK(s.sum == 0 && s.top == -kInf);
  s.merge(LogSum<double>{});
  CHECK(s.sum == 0 && s.top == -kInf);
  s.add(-1000.0);
  CHECK(s.sum == 1 && s.top == -1000.0);
  s.add(-kInf);
  CHECK(s.sum == 1 && s.top == -1000.0);
  s.add(kInf);
  CHECK(s.sum == 1 && s.top == kInf);
  s.add(kInf);
  CHECK(s.sum == 2 && s.top == kInf);
  s.add(3.0);
  CHECK(s.sum == 2 && s.top == kInf);
  for (const double first : {-kInf, 0.0, kInf}) {
    LogSum<double> nan;
    nan.add(first);
    nan.add(kNan);
    CHECK(std::isnan(nan.sum));
    nan.add(1.0);
    CHECK(std::isnan(nan.sum));
    LogSum<double> later;
    later.add(kNan);
    later.add(first);
    CHECK(std::isnan(later.sum));
  }
}

TEST(states_merge_to_the_state_of_the_whole) {
  Lcg random;
  std::vector<double> w(300);
  for (double& x : w) x = 200 * (random.unit() - 0.5);
  const WeightState whole = state_of(w);
  for (size_t a = 0; a <= 300; a += 50) {
    for (size_t b = a; b <= 300; b += 75) {
      WeightState left = state_of({w.begin(), w.begin() + a}), middle = state_of({w.begin() + a, w.begin() + b}),
                  right = state_of({w.begin() + b, w.end()});
      WeightState forward = left;
      forward.merge(middle), forward.merge(right);
      middle.merge(right), left.merge(middle);  // the same states, grouped the other way
      for (const WeightState& s : {forward, left}) {
        CHECK(s.top == whole.top && s.count == 300 && near(s.sum, whole.sum) && near(s.sum_squares, whole.sum_squares));
        CHECK(near(s.sum_logs, whole.sum_logs));
      }
    }
  }
}

TEST(states_of_special_values) {
  const WeightState none = state_of({-kInf, -kInf});
  CHECK(none.top == -kInf && none.sum == 0 && none.sum_squares == 0 && none.sum_logs == -kInf && none.count == 2);
  const WeightState one = state_of({-kInf, -3.0, -kInf});
  CHECK(one.top == -3.0 && one.sum == 1 && one.sum_squares == 1 && one.count == 3);
  const WeightState infinite = state_of({1.0, kInf, 2.0});
  CHECK(infinite.top == kInf && infinite.sum == 1 && infinite.count == 3 && infinite.sum_logs == kInf);
  CHECK(std::isnan(state_of({1.0, kNan, 2.0}).sum) && std::isnan(state_of({kNan, -kInf}).sum_squares));
  WeightState empty;
  empty.merge(WeightState{});
  CHECK(empty.top == -kInf && empty.sum == 0 && empty.count == 0 && empty.sum_logs == 0);
}

TEST(states_in_memory) {
  const WeightState s = state_of({1.0, 2.0, 2.5});
  std::vector<double> memory(kStateSize);
  write_state(memory.data(), s);
  const WeightState back = read_state(memory.data());
  CHECK(back.top == s.top && back.sum == s.sum && back.sum_squares == s.sum_squares && back.sum_logs == s.sum_logs);
  CHECK(back.count == s.count && memory[0] == 2.5 && memory[4] == 3);
}
