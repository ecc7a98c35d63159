// Ids of places, and reranking, against slow searches that share no code with them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "bits.hpp"
#include "check.hpp"
#include "delfsearch/cpu.hpp"
#include "delfsearch/found_rows.hpp"
#include "delfsearch/packed_ids.hpp"
#include "delfsearch/rerank.hpp"
#include "simd/ids_kernels.hpp"
#include "simd/rerank_kernels.hpp"

using namespace delfsearch;

namespace {

void bits_are_found() {
  std::mt19937_64 generator(1);
  for (int round = 0; round < 300; ++round) {
    std::uint64_t word = generator();
    if (round % 3 == 0) word &= generator() & generator();
    if (round == 0) word = ~std::uint64_t{0};
    std::uint64_t n = 0;
    for (int bit = 0; bit < 64; ++bit) {
      if (!(word >> bit & 1)) continue;
      CHECK(nth_bit(word, n) == bit);
      ++n;
    }
    CHECK(count_bits(word) == static_cast<int>(n));
    for (; n < 64; ++n) CHECK(nth_bit(word, n) >= 64);
    if (word != 0) CHECK(word >> highest_bit(word) == 1);
  }
}

constexpr std::int64_t kStart = 640;

// One list of n codes that begins at kStart, its sequence to be filled in.
std::unique_ptr<ids::ShortLists> one_list(std::size_t n) {
  auto lists = std::make_unique<ids::ShortLists>();
  std::fill(lists->starts, lists->starts + ids::kShortLists, 0xffffffffu);
  lists->starts[0] = static_cast<std::uint32_t>(kStart);
  lists->sizes[0] = static_cast<std::uint32_t>(n);
  return lists;
}

void some_of_a_sequence() {
  std::mt19937 generator(2);
  for (const std::size_t n : {1, 2, 63, 256, 257, 900, 5000})
    for (const std::uint64_t universe :
         {std::uint64_t{1}, std::uint64_t{100}, std::uint64_t{397279}, std::uint64_t{1} << 32}) {
      std::vector<std::uint32_t> values(n);
      for (auto& value : values)
        value =
            static_cast<std::uint32_t>(generator() % std::min<std::uint64_t>(universe, 1u << 31));
      std::sort(values.begin(), values.end());
      const std::vector<std::uint64_t> firsts{0, n};
      const PackedIds packed = pack_ids(values, firsts, universe, 1);
      const PackedIdsView view{packed.words, packed.starts, universe};
      for (const std::size_t step : {1, 3, 50, 700}) {
        std::vector<std::uint32_t> at;
        for (std::size_t i = step % 3; i < n; i += 1 + generator() % step)
          at.push_back(static_cast<std::uint32_t>(i));
        std::vector<std::uint32_t> out(at.size());
        view.get_some(0, n, at.data(), at.size(), out.data());
        for (std::size_t c = 0; c < at.size(); ++c) CHECK(out[c] == values[at[c]]);
      }
      auto lists = one_list(n);
      const bool is_short = view.open_short(0, n, lists->sequences[0]);
      CHECK(is_short || n >= 900 || universe < 2 * n);
      if (!is_short) continue;
      std::vector<std::int64_t> places(300), out(300);
      for (auto& place : places) place = kStart + static_cast<std::int64_t>(generator() % n);
      for (const auto* kernels : {&ids::kernels_scalar(), &ids::kernels()}) {
        kernels->open(lists->sequences[0]);
        CHECK(kernels->get_each(*lists, places.data(), places.size(), out.data()));
        for (std::size_t c = 0; c < out.size(); ++c)
          CHECK(out[c] == values[static_cast<std::size_t>(places[c] - kStart)]);
        for (const std::int64_t place :
             {std::int64_t{0}, kStart - 1, kStart + static_cast<std::int64_t>(n)})
          CHECK(!kernels->get_each(*lists, &place, 1, out.data()));
      }
    }
}

// What no packing wrote gives some number, on every instruction set the same.
void damaged_sequences_stay_within() {
  std::mt19937_64 generator(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::uint64_t> words(40);
    for (auto& word : words)
      word = round % 2 ? generator() : generator() & generator() & generator();
    const ids::Sequence sequence{words.data(), words.data() + 4, words.data() + 20, 16, 20, 7,
                                 99999};
    std::vector<std::uint32_t> at, scalar, best;
    for (std::uint32_t i = 0; i < 180; i += 1 + round % 7) at.push_back(i);
    scalar.resize(at.size());
    best.resize(at.size());
    ids::kernels_scalar().get_some(sequence, at.data(), at.size(), scalar.data());
    ids::kernels().get_some(sequence, at.data(), at.size(), best.data());
    auto lists = one_list(180);
    lists->sequences[0].sequence = sequence;
    std::vector<std::int64_t> places;
    for (std::int64_t i = 0; i < 200; i += 7) places.push_back(kStart + i * 61 % 180);
    std::vector<std::int64_t> each(places.size()), other(places.size());
    for (const auto* kernels : {&ids::kernels_scalar(), &ids::kernels()}) {
      kernels->open(lists->sequences[0]);
      CHECK(kernels->get_each(*lists, places.data(), places.size(), each.data()));
      for (const std::int64_t value : each) CHECK(value >= 0 && value <= 99999);
      CHECK(other == each || kernels == &ids::kernels_scalar());
      other = each;
    }
    for (const std::uint32_t value : scalar) CHECK(value <= 99999);
    for (const std::uint32_t value : best) CHECK(value <= 99999);
  }
}

// An empty list at the end has no sequence of its own, whether it is probed first or last.
void empty_lists_have_no_rows() {
  const std::vector<std::uint32_t> sizes{3, 0}, values{4, 7, 9};
  const std::vector<std::uint64_t> first_block{0, 1, 1}, first_leaf{0, 1, 1}, firsts{0, 3};
  InvertedFileView file;
  file.sizes = sizes;
  file.first_block = first_block;
  file.first_leaf = first_leaf;
  file.leaf_blocks = 1;
  const PackedIds packed = pack_ids(values, firsts, 1000, 1);
  const ListIdsView ids{{packed.words, packed.starts, 1000}, firsts};
  const std::vector<std::uint32_t> probes{0, 1, 1, 0, 1, 1};
  const std::vector<float> distances{1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f};
  const std::vector<std::int64_t> places{2, 0, 1, -1, -1, -1};
  const auto rows = rows_of_places(file, ids, probes, 3, distances, places, 1);
  CHECK((rows == std::vector<std::int64_t>{9, 4, 7, -1, -1, -1}));
  const std::vector<std::int64_t> beyond{2, 0, (std::int64_t{1} << 32) + 1, -1, -1, -1};
  CHECK_THROWS(rows_of_places(file, ids, probes, 3, distances, beyond, 1), std::invalid_argument);
  const std::vector<std::int64_t> elsewhere{2, 3, 1, -1, -1, -1};
  CHECK_THROWS(rows_of_places(file, ids, probes, 3, distances, elsewhere, 1),
               std::invalid_argument);
}

void reranked_is_by_exact_distance() {
  std::mt19937 generator(4);
  for (const std::size_t d : {1, 7, 8, 40, 43}) {
    const std::size_t n = 200, m = 19, r = 60;
    std::vector<std::uint8_t> exact(n * d);
    for (auto& value : exact) value = static_cast<std::uint8_t>(generator());
    std::vector<float> lower(d), step(d), queries(m * d);
    for (auto& value : lower) value = static_cast<float>(generator() % 100) * -0.01f;
    for (auto& value : step) value = static_cast<float>(generator() % 100) * 1e-4f;
    for (auto& value : queries) value = static_cast<float>(generator() % 2000) * 1e-3f - 1.0f;
    for (std::size_t i = 0; i < d; ++i) exact[d + i] = exact[i];  // rows 0 and 1 tie
    std::vector<std::int64_t> candidates(m * r);
    for (std::size_t q = 0; q < m; ++q)
      for (std::size_t i = 0; i < r; ++i)
        candidates[q * r + i] = i % 9 == 8 ? -1 : static_cast<std::int64_t>((q + 2 * i) % n);
    const auto distance = [&](std::size_t q, std::size_t row) {
      double sum = 0.0;
      for (std::size_t i = 0; i < d; ++i) {
        const float value = lower[i] + step[i] * static_cast<float>(exact[row * d + i]);
        const double difference =
            static_cast<double>(value) - static_cast<double>(queries[q * d + i]);
        sum += difference * difference;
      }
      return sum;
    };
    for (const std::size_t k : {1, 10, 100}) {
      const Reranked found = rerank(exact, lower, step, queries, candidates, k, 1);
      const Reranked threaded = rerank(exact, lower, step, queries, candidates, k, 3);
      CHECK(found.rows == threaded.rows && found.squared_distances == threaded.squared_distances);
      for (std::size_t q = 0; q < m; ++q) {
        std::vector<std::pair<float, std::int64_t>> truth;
        for (std::size_t i = 0; i < r; ++i)
          if (candidates[q * r + i] >= 0)
            truth.push_back(
                {static_cast<float>(distance(q, static_cast<std::size_t>(candidates[q * r + i]))),
                 candidates[q * r + i]});
        std::sort(truth.begin(), truth.end());
        for (std::size_t j = 0; j < k; ++j) {
          const float got = found.squared_distances[q * k + j];
          const std::int64_t row = found.rows[q * k + j];
          if (j >= truth.size()) {
            CHECK(row == -1 && std::isinf(got));
            continue;
          }
          CHECK(std::abs(got - truth[j].first) <= 1e-6f * (1 + truth[j].first));
          CHECK(std::abs(static_cast<double>(got) - distance(q, static_cast<std::size_t>(row))) <=
                1e-6 * (1 + static_cast<double>(got)));
          if (j > 0 && got == found.squared_distances[q * k + j - 1])
            CHECK(row > found.rows[q * k + j - 1]);
        }
      }
    }
    candidates[3] = static_cast<std::int64_t>(n);
    CHECK_THROWS(rerank(exact, lower, step, queries, candidates, 5, 1), std::invalid_argument);
  }
}

void every_instruction_set_reranks_alike() {
  std::mt19937 generator(5);
  std::vector<rerank_kernels::Distances> all{rerank_kernels::distances()};
#ifdef DELFSEARCH_X86
  if (simd() == Simd::kAvx512) all.push_back(rerank_kernels::distances_avx2);
#endif
  for (const std::size_t d : {1, 8, 31, 40, 128}) {
    const std::size_t n = 30, padded = (d + 7) / 8 * 8;
    std::vector<std::uint8_t> exact(n * d);
    for (auto& value : exact) value = static_cast<std::uint8_t>(generator());
    std::vector<float> lower(padded), step(padded);
    std::vector<double> values(padded);
    for (std::size_t i = 0; i < d; ++i) {
      lower[i] = static_cast<float>(generator() % 1000) * -1e-3f;
      step[i] = static_cast<float>(generator() % 1000) * 1e-5f;
      values[i] = static_cast<double>(static_cast<float>(generator() % 1000) * 1e-3f);
    }
    std::vector<const std::uint8_t*> rows(n);
    for (std::size_t i = 0; i < n; ++i) rows[i] = exact.data() + i * d;
    const rerank_kernels::Query query{lower.data(), step.data(), values.data(), d, padded};
    std::vector<float> expected(n), got(n);
    rerank_kernels::distances_scalar(query, rows.data(), n, expected.data());
    for (const auto distances : all) {
      distances(query, rows.data(), n, got.data());
      CHECK(got == expected);
    }
  }
}

}  // namespace

int main() {
  bits_are_found();
  some_of_a_sequence();
  damaged_sequences_stay_within();
  empty_lists_have_no_rows();
  reranked_is_by_exact_distance();
  every_instruction_set_reranks_alike();
  return delfsearch_test::report("test_found_rows");
}
