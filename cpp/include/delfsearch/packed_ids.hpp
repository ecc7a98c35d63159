// Rising sequences of numbers below a common bound, packed near to what information theory asks
// (Elias 1974, Fano 1971).
//
// A sequence of n numbers below `universe` keeps the lower l = floor(log2(universe / n)) bits of
// each as they are, and the rest in unary: number i sets bit (value >> l) + i. That is
// 2 + log2(universe / n) bits a number at most, 0.6 above what information theory asks, plus a
// 32-bit sample of where every 256th number's bit lies. Equal numbers may follow each other.
// Reading one number: O(1), some hundred bits looked at.
//
// In memory a sequence is 64-bit words: samples (two a word), upper bits, lower bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch {
namespace ids {
struct ShortSequence;
}

struct PackedIds {
  std::vector<std::uint64_t> words;
  std::vector<std::uint64_t> starts;  // (n_sequences + 1), words
};

// Borrowed arrays.
struct PackedIdsView {
  Span<const std::uint64_t> words;
  Span<const std::uint64_t> starts;
  std::uint64_t universe = 1;

  // Number i of a sequence of n; sizes are kept elsewhere. Words that pack_ids would not have
  // written give some number below universe.
  std::uint32_t get(std::size_t sequence, std::size_t n, std::size_t i) const;
  // Numbers at[0] ... at[count - 1] of it, at rising: one pass over what lies between.
  void get_some(std::size_t sequence, std::size_t n, const std::uint32_t* at, std::size_t count,
                std::uint32_t* out) const;
  // That most of what get_some reads be in the cache.
  void ask_for(std::size_t sequence, std::size_t n, const std::uint32_t* at,
               std::size_t count) const;
  // Whether any numbers of it can be read as ids::Kernels::get_each does; if so, made ready for it.
  bool open_short(std::size_t sequence, std::size_t n, ids::ShortSequence& made) const;
  // All n of them.
  void get_all(std::size_t sequence, std::size_t n, std::uint32_t* out) const;
  // A bit for each of 64 n_words places, set where a place's number is wanted: sequence s, of
  // firsts[s] ... firsts[s + 1], has the places from places[s] on, a multiple of 64. wanted: a bit
  // for each number below universe.
  std::vector<std::uint64_t> select(Span<const std::uint64_t> firsts,
                                    Span<const std::uint64_t> wanted,
                                    Span<const std::uint64_t> places, std::size_t n_words,
                                    int n_threads) const;
  // Throws std::invalid_argument where a sequence has another number of words than its size says,
  // without which nothing may be read. O(n_sequences).
  void check_sizes(Span<const std::uint64_t> firsts) const;
  // Throws std::invalid_argument also where words hold too many or too few numbers, or a number
  // that is too large or smaller than the one before: what a damaged file could hold. O(all).
  void check(Span<const std::uint64_t> firsts) const;
};

// values: all sequences one after the other, each rising; sequence s is firsts[s] ... firsts[s +
// 1]. Every value is below universe, 1 <= universe <= 2^32.
PackedIds pack_ids(Span<const std::uint32_t> values, Span<const std::uint64_t> firsts,
                   std::uint64_t universe, int n_threads);

}  // namespace delfsearch
