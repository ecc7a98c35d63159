#include "delfsearch/packed_ids.hpp"

#include <algorithm>
#include <stdexcept>

#include "bits.hpp"
#include "delfsearch/parallel.hpp"
#include "simd/ids_kernels.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {
namespace {

using ids::kSample;

struct Layout {
  int low_bits;
  std::size_t n_sample_words, n_high_words, n_low_words;
  std::size_t words() const { return n_sample_words + n_high_words + n_low_words; }
};

Layout layout_of(std::size_t n, std::uint64_t universe) {
  if (n == 0) return {0, 0, 0, 0};
  const std::uint64_t each = universe / n;
  const int low = each == 0 ? 0 : highest_bit(each);
  const std::size_t samples = (n - 1) / kSample;  // that of number 0 is not kept
  const std::size_t high = n + static_cast<std::size_t>((universe - 1) >> low) + 1;
  return {low, (samples + 1) / 2, (high + 63) / 64, (n * static_cast<std::size_t>(low) + 63) / 64};
}

std::uint64_t read_bits(const std::uint64_t* words, std::size_t at, int n) {
  if (n == 0) return 0;
  const std::size_t word = at / 64;
  const int shift = static_cast<int>(at % 64);
  std::uint64_t value = words[word] >> shift;
  if (shift + n > 64) value |= words[word + 1] << (64 - shift);
  return value & ((std::uint64_t{1} << n) - 1);
}

void write_bits(std::uint64_t* words, std::size_t at, int n, std::uint64_t value) {
  if (n == 0) return;
  const std::size_t word = at / 64;
  const int shift = static_cast<int>(at % 64);
  words[word] |= value << shift;
  if (shift + n > 64) words[word + 1] |= value >> (64 - shift);
}

// A number put together; in a damaged file it may be too large.
std::uint32_t below(std::uint64_t universe, std::uint64_t upper, const std::uint64_t* low,
                    std::size_t i, int low_bits) {
  const std::uint64_t value =
      upper << low_bits | read_bits(low, i * static_cast<std::size_t>(low_bits), low_bits);
  return static_cast<std::uint32_t>(std::min(value, universe - 1));
}

ids::Sequence sequence_of(const PackedIdsView& view, std::size_t sequence, std::size_t n) {
  const Layout layout = layout_of(n, view.universe);
  const std::uint64_t* samples = view.words.data() + view.starts[sequence];
  const std::uint64_t* high = samples + layout.n_sample_words;
  return {samples,
          high,
          high + layout.n_high_words,
          layout.n_high_words,
          layout.n_low_words,
          layout.low_bits,
          view.universe - 1};
}

}  // namespace

PackedIds pack_ids(Span<const std::uint32_t> values, Span<const std::uint64_t> firsts,
                   std::uint64_t universe, int n_threads) {
  if (firsts.empty() || firsts[0] != 0 || firsts[firsts.size() - 1] != values.size())
    throw std::invalid_argument("firsts must rise from 0 to the number of values");
  if (universe < 1 || universe > std::uint64_t{1} << 32)
    throw std::invalid_argument("universe must be 1 to 2^32");
  const std::size_t n_sequences = firsts.size() - 1;
  PackedIds packed;
  packed.starts.assign(n_sequences + 1, 0);
  for (std::size_t s = 0; s < n_sequences; ++s) {
    if (firsts[s + 1] < firsts[s]) throw std::invalid_argument("firsts must rise");
    packed.starts[s + 1] =
        packed.starts[s] +
        layout_of(static_cast<std::size_t>(firsts[s + 1] - firsts[s]), universe).words();
  }
  packed.words.assign(packed.starts[n_sequences], 0);
  constexpr std::size_t kTask = 64;
  parallel_for((n_sequences + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    for (std::size_t s = task * kTask; s < std::min(n_sequences, (task + 1) * kTask); ++s) {
      const std::size_t n = static_cast<std::size_t>(firsts[s + 1] - firsts[s]);
      const Layout layout = layout_of(n, universe);
      std::uint64_t* samples = packed.words.data() + packed.starts[s];
      std::uint64_t* high = samples + layout.n_sample_words;
      std::uint64_t* low = high + layout.n_high_words;
      std::uint64_t before = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t value = values[static_cast<std::size_t>(firsts[s]) + i];
        if (value < before || value >= universe)
          throw std::invalid_argument("values must rise in a sequence and be below universe");
        before = value;
        const std::size_t bit = (value >> layout.low_bits) + i;
        high[bit / 64] |= std::uint64_t{1} << bit % 64;
        if (i > 0 && i % kSample == 0)
          write_bits(samples, (i / kSample - 1) * 32, 32, static_cast<std::uint32_t>(bit));
        write_bits(low, i * static_cast<std::size_t>(layout.low_bits), layout.low_bits,
                   value & ((std::uint64_t{1} << layout.low_bits) - 1));
      }
    }
  });
  return packed;
}

std::uint32_t PackedIdsView::get(std::size_t sequence, std::size_t n, std::size_t i) const {
  const Layout layout = layout_of(n, universe);
  const std::uint64_t* samples = words.data() + starts[sequence];
  const std::uint64_t* high = samples + layout.n_sample_words;
  const std::uint64_t* low = high + layout.n_high_words;
  // The bit of number i: from the last sample at or before it.
  std::size_t left = i % kSample;
  std::size_t bit = i < kSample ? 0 : read_bits(samples, (i / kSample - 1) * 32, 32);
  std::size_t word = bit / 64;
  if (word >= layout.n_high_words) return 0;  // a damaged file
  std::uint64_t here = high[word] & (~std::uint64_t{0} << bit % 64);
  for (;;) {
    const auto ones = static_cast<std::size_t>(count_bits(here));
    if (left < ones) break;
    left -= ones;
    if (++word >= layout.n_high_words) return 0;  // a damaged file
    here = high[word];
  }
  for (; left > 0; --left) here &= here - 1;
  bit = word * 64 + static_cast<std::size_t>(lowest_bit(here));
  return below(universe, bit - i, low, i, layout.low_bits);
}

void PackedIdsView::get_some(std::size_t sequence, std::size_t n, const std::uint32_t* at,
                             std::size_t count, std::uint32_t* out) const {
  if (count > 0) ids::kernels().get_some(sequence_of(*this, sequence, n), at, count, out);
}

// Numbers that are spread evenly have their upper bits about where this asks for them.
void PackedIdsView::ask_for(std::size_t sequence, std::size_t n, const std::uint32_t* at,
                            std::size_t count) const {
  const ids::Sequence of = sequence_of(*this, sequence, n);
  for (std::size_t c = 0; c < count; ++c) {
    if (at[c] >= kSample) scan::ask_for(of.samples + (at[c] / kSample - 1) / 2, 1);
    scan::ask_for(of.high + at[c] * of.n_high_words / n, 1);
    scan::ask_for(of.low + at[c] * static_cast<std::size_t>(of.low_bits) / 64, 1);
  }
}

bool PackedIdsView::open_short(std::size_t sequence, std::size_t n,
                               ids::ShortSequence& made) const {
  made.sequence = sequence_of(*this, sequence, n);
  if (made.sequence.low_bits == 0 || made.sequence.n_high_words > ids::kShortWords) return false;
  ids::kernels().open(made);
  return true;
}

void PackedIdsView::get_all(std::size_t sequence, std::size_t n, std::uint32_t* out) const {
  if (n > 0) ids::kernels().get_all(sequence_of(*this, sequence, n), n, out);
}

std::vector<std::uint64_t> PackedIdsView::select(Span<const std::uint64_t> firsts,
                                                 Span<const std::uint64_t> wanted,
                                                 Span<const std::uint64_t> places,
                                                 std::size_t n_words, int n_threads) const {
  const std::size_t n_sequences = firsts.empty() ? 0 : firsts.size() - 1;
  const auto size = [&](std::size_t s) {
    return static_cast<std::size_t>(firsts[s + 1] - firsts[s]);
  };
  if (wanted.size() != (universe + 63) / 64 || places.size() != n_sequences)
    throw std::invalid_argument("wanted or places have another size than the ids say");
  for (std::size_t s = 0; s < n_sequences; ++s)
    if (size(s) > 0 && (places[s] % 64 != 0 || places[s] / 64 > n_words ||
                        (size(s) + 63) / 64 > n_words - places[s] / 64))
      throw std::invalid_argument("a sequence has no place");
  std::vector<std::uint64_t> bits(n_words);
  constexpr std::size_t kTask = 16;
  parallel_for((n_sequences + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    std::vector<std::uint32_t> ids;
    for (std::size_t s = task * kTask; s < std::min(n_sequences, (task + 1) * kTask); ++s) {
      const std::size_t n = size(s);
      ids.resize(std::max(ids.size(), n));
      get_all(s, n, ids.data());
      std::uint64_t* of_list = bits.data() + places[s] / 64;
      for (std::size_t first = 0; first < n; first += 64) {
        std::uint64_t word = 0;
        for (std::size_t i = first; i < std::min(n, first + 64); ++i)
          word |= (wanted[ids[i] / 64] >> ids[i] % 64 & 1) << (i - first);
        of_list[first / 64] = word;
      }
    }
  });
  return bits;
}

void PackedIdsView::check_sizes(Span<const std::uint64_t> firsts) const {
  if (universe < 1 || universe > std::uint64_t{1} << 32)
    throw std::invalid_argument("universe must be 1 to 2^32");
  if (firsts.empty() || starts.size() != firsts.size() || starts[0] != 0 ||
      starts[starts.size() - 1] != words.size())
    throw std::invalid_argument("packed ids have another number of sequences or words");
  for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
    const Layout layout = layout_of(static_cast<std::size_t>(firsts[s + 1] - firsts[s]), universe);
    if (starts[s + 1] < starts[s] || starts[s + 1] - starts[s] != layout.words())
      throw std::invalid_argument("a packed sequence has another length than its size says");
  }
}

void PackedIdsView::check(Span<const std::uint64_t> firsts) const {
  check_sizes(firsts);
  for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
    const auto n = static_cast<std::size_t>(firsts[s + 1] - firsts[s]);
    const Layout layout = layout_of(n, universe);
    const std::uint64_t* samples = words.data() + starts[s];
    const std::uint64_t* high = samples + layout.n_sample_words;
    std::size_t i = 0;
    std::uint32_t before = 0;
    for (std::size_t word = 0; word < layout.n_high_words; ++word)
      for (std::uint64_t here = high[word]; here != 0; here &= here - 1, ++i) {
        const std::size_t bit = word * 64 + static_cast<std::size_t>(lowest_bit(here));
        if (i >= n) throw std::invalid_argument("a packed sequence holds too many numbers");
        if (i > 0 && i % kSample == 0 && read_bits(samples, (i / kSample - 1) * 32, 32) != bit)
          throw std::invalid_argument("a packed sequence has a wrong sample");
        const std::uint64_t value =
            (bit - i) << layout.low_bits |
            read_bits(high + layout.n_high_words, i * static_cast<std::size_t>(layout.low_bits),
                      layout.low_bits);
        if (bit - i > (universe - 1) >> layout.low_bits || value >= universe)
          throw std::invalid_argument("a packed sequence holds a number that is too large");
        if (value < before) throw std::invalid_argument("a packed sequence does not rise");
        before = static_cast<std::uint32_t>(value);
      }
    if (i != n) throw std::invalid_argument("a packed sequence holds too few numbers");
  }
}

}  // namespace delfsearch
