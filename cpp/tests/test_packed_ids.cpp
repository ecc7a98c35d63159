// Packed ids: what goes in comes out, within the bytes promised; damaged words are refused.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/packed_ids.hpp"

using namespace delfsearch;

namespace {

using Sequence = std::vector<std::uint32_t>;
constexpr std::uint64_t kAll = std::uint64_t{1} << 32;

struct Packing {
  std::vector<std::uint64_t> firsts{0};
  Sequence values;
  PackedIds packed;
  std::uint64_t universe;

  PackedIdsView view() const { return {packed.words, packed.starts, universe}; }
};

Packing pack(const std::vector<Sequence>& sequences, std::uint64_t universe, int n_threads = 1) {
  Packing made;
  made.universe = universe;
  for (const Sequence& sequence : sequences) {
    made.values.insert(made.values.end(), sequence.begin(), sequence.end());
    made.firsts.push_back(made.values.size());
  }
  made.packed = pack_ids(made.values, made.firsts, universe, n_threads);
  return made;
}

void round_trip(const std::vector<Sequence>& sequences, std::uint64_t universe) {
  const Packing made = pack(sequences, universe);
  const PackedIdsView view = made.view();
  view.check(made.firsts);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const Sequence& expected = sequences[s];
    Sequence all(expected.size(), 0xdeadbeef);
    view.get_all(s, expected.size(), all.data());
    CHECK(all == expected);
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(view.get(s, expected.size(), i) == expected[i]);
    // As the header says, with a sample for each 256 and up to a word for each of the three parts.
    const double n = static_cast<double>(expected.size()), below = static_cast<double>(universe);
    const double each = below < n ? 1.0 + below / n : 2.0 + std::log2(below / std::max(n, 1.0));
    const double words = static_cast<double>(view.starts[s + 1] - view.starts[s]);
    CHECK(words * 64.0 <= (n > 0 ? n * (each + 32.0 / 256.0) + 3 * 64.0 : 0.0));
  }
}

Sequence random_rising(std::size_t n, std::uint64_t universe, unsigned seed) {
  std::mt19937_64 generator(seed);
  Sequence values(n);
  for (auto& value : values) value = static_cast<std::uint32_t>(generator() % universe);
  std::sort(values.begin(), values.end());
  return values;
}

void what_goes_in_comes_out() {
  round_trip({}, 1);
  round_trip({{}}, 1);
  round_trip({{}, {}, {}}, kAll);
  round_trip({{0}}, 1);
  round_trip({{0}, {}, {4294967295u}, {}}, kAll);
  round_trip({{0, 0, 0}, {0}}, 1);
  round_trip({{0, 4294967295u}, {4294967295u, 4294967295u}}, kAll);
  for (const std::uint64_t universe :
       {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{63}, std::uint64_t{64},
        std::uint64_t{1000}, std::uint64_t{1} << 20, (std::uint64_t{1} << 31) + 1, kAll})
    for (const std::size_t n : {1, 2, 63, 64, 65, 255, 256, 257, 511, 512, 513, 5000}) {
      const Sequence spread = random_rising(n, universe, static_cast<unsigned>(n));
      const Sequence low(n, 0), high(n, static_cast<std::uint32_t>(universe - 1));
      // All at one end, where words of upper bits stay empty between samples.
      Sequence ends(n, 0);
      for (std::size_t i = n / 2; i < n; ++i) ends[i] = static_cast<std::uint32_t>(universe - 1);
      round_trip({spread, low, {}, high, ends}, universe);
    }
  // Every number there is, each once, and from a middle on.
  Sequence dense(4000), late(4000);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    dense[i] = static_cast<std::uint32_t>(i);
    late[i] = static_cast<std::uint32_t>(100000 + i);
  }
  round_trip({dense}, 4000);
  round_trip({late, dense}, 104000);
}

void threads_change_no_bit() {
  std::vector<Sequence> sequences;
  for (unsigned s = 0; s < 500; ++s) sequences.push_back(random_rising(s % 37 * 9, 1 << 22, s));
  const Packing one = pack(sequences, 1 << 22, 1), many = pack(sequences, 1 << 22, 5);
  CHECK(one.packed.words == many.packed.words);
  CHECK(one.packed.starts == many.packed.starts);
}

void near_to_what_information_theory_asks() {
  // log2 of the number of rising sequences, n log2(e universe / n) for n much below universe.
  const std::size_t n = 100000;
  const double universe = 1 << 26;
  const Packing made = pack({random_rising(n, 1 << 26, 1)}, 1 << 26);
  const double bits = 64.0 * static_cast<double>(made.packed.words.size()) / static_cast<double>(n);
  const double least = std::log2(std::exp(1.0) * universe / static_cast<double>(n));
  CHECK(bits > least && bits < least + 0.8);
}

void what_cannot_be_packed_is_refused() {
  CHECK_THROWS(pack({{1, 0}}, 10), std::invalid_argument);
  CHECK_THROWS(pack({{0}, {3, 10}}, 10), std::invalid_argument);
  CHECK_THROWS(pack({{0}}, 0), std::invalid_argument);
  CHECK_THROWS(pack({{0}}, kAll + 1), std::invalid_argument);
  const Sequence values{1, 2, 3};
  for (const std::vector<std::uint64_t>& firsts :
       std::vector<std::vector<std::uint64_t>>{{}, {0}, {0, 2}, {1, 3}, {0, 4}, {0, 3, 2, 3}})
    CHECK_THROWS(pack_ids(values, firsts, 10, 1), std::invalid_argument);
}

void damage_is_noticed_or_harmless() {
  // Any bit of any word turned: refused, or still a rising sequence below the universe.
  const std::uint64_t universe = 100000;
  const Packing made =
      pack({random_rising(700, universe, 2), {}, random_rising(3, universe, 3)}, universe);
  for (std::size_t bit = 0; bit < made.packed.words.size() * 64; ++bit) {
    std::vector<std::uint64_t> words = made.packed.words;
    words[bit / 64] ^= std::uint64_t{1} << bit % 64;
    const PackedIdsView view{words, made.packed.starts, universe};
    try {
      view.check(made.firsts);
    } catch (const std::invalid_argument&) {
      continue;
    }
    Sequence all(700);
    view.get_all(0, 700, all.data());
    CHECK(std::is_sorted(all.begin(), all.end()) && all.back() < universe);
    for (std::size_t i = 0; i < 700; ++i) CHECK(view.get(0, 700, i) == all[i]);
  }
  // A bit behind the last one that may be set: a number beyond 32 bits, not a small one.
  std::vector<std::uint64_t> behind = pack({{7}}, kAll).packed.words;
  behind[0] = std::uint64_t{1} << 63;
  const std::vector<std::uint64_t> behind_starts{0, behind.size()}, behind_firsts{0, 1};
  const PackedIdsView beyond{behind, behind_starts, kAll};
  CHECK_THROWS(beyond.check(behind_firsts), std::invalid_argument);
  // Sizes and starts that do not fit.
  auto fails = [&](std::vector<std::uint64_t> starts, std::vector<std::uint64_t> firsts) {
    const PackedIdsView view{made.packed.words, starts, universe};
    CHECK_THROWS(view.check(firsts), std::invalid_argument);
  };
  const auto& starts = made.packed.starts;
  const auto& firsts = made.firsts;
  fails({}, firsts);
  fails(starts, {});
  fails({starts[0], starts[1], starts[2]}, firsts);
  fails({1, starts[1], starts[2], starts[3]}, firsts);
  fails({starts[0], starts[1] - 1, starts[2], starts[3]}, firsts);
  fails({starts[0], starts[3], starts[2], starts[3]}, firsts);
  fails({starts[0], starts[1], starts[2], starts[3] + 1}, firsts);
  fails(starts, {firsts[0], firsts[1] + 1, firsts[2] + 1, firsts[3]});
  fails(starts, {firsts[0], firsts[2] + 1, firsts[1], firsts[3]});
  fails(starts, {firsts[0], std::uint64_t{1} << 60, firsts[2], firsts[3]});
}

// A bit for each place, set where the number there is wanted; also of words that no packing wrote.
void wanted_numbers_are_selected() {
  std::mt19937_64 generator(9);
  for (int round = 0; round < 60; ++round) {
    const std::uint64_t universe = round == 0 ? 1 : 1 + generator() % 5000;
    std::vector<Sequence> sequences(5);
    for (std::size_t s = 0; s < 4; ++s) {  // the last is empty
      sequences[s].resize(1 + generator() % 300);
      for (auto& value : sequences[s]) value = static_cast<std::uint32_t>(generator() % universe);
      std::sort(sequences[s].begin(), sequences[s].end());
    }
    Packing made = pack(sequences, universe);
    if (round % 3 == 2)
      for (auto& word : made.packed.words) word = generator() & generator();
    const PackedIdsView view = made.view();
    std::vector<std::uint64_t> wanted((universe + 63) / 64), places(5);
    for (auto& word : wanted) word = generator();
    for (std::size_t s = 0; s + 1 < 5; ++s)
      places[s + 1] = places[s] + (sequences[s].size() + 63) / 64 * 64;
    const std::size_t n_words = places[4] / 64;
    const auto bits = view.select(made.firsts, wanted, places, n_words, 1 + round % 3);
    std::vector<std::uint64_t> expected(n_words);
    for (std::size_t s = 0; s < 4; ++s) {
      std::vector<std::uint32_t> ids(sequences[s].size());
      view.get_all(s, ids.size(), ids.data());
      for (std::size_t i = 0; i < ids.size(); ++i) {
        CHECK(ids[i] < universe && (round % 3 == 2 || ids[i] == sequences[s][i]));
        expected[(places[s] + i) / 64] |= (wanted[ids[i] / 64] >> ids[i] % 64 & 1) << i % 64;
      }
    }
    CHECK(bits == expected);
    for (const std::uint64_t bad : {std::uint64_t{1}, places[4], ~std::uint64_t{0} - 63}) {
      auto others = places;
      others[0] = bad;
      CHECK_THROWS(view.select(made.firsts, wanted, others, n_words, 1), std::invalid_argument);
    }
    wanted.push_back(0);
    CHECK_THROWS(view.select(made.firsts, wanted, places, n_words, 1), std::invalid_argument);
  }
}

}  // namespace

int main() {
  what_goes_in_comes_out();
  threads_change_no_bit();
  near_to_what_information_theory_asks();
  what_cannot_be_packed_is_refused();
  damage_is_noticed_or_harmless();
  wanted_numbers_are_selected();
  return delfsearch_test::report("test_packed_ids");
}
