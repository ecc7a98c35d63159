// The loops themselves, in terms of how_many (bits of a word), nth and first (of them), low_part (a
// number's lower bits), begun (how many of the starts of lists are at most a place) and word_of
// (the last word with at most i numbers before it).

DELFSEARCH_TARGET void get_some_of(const Sequence& sequence, const std::uint32_t* at,
                                   std::size_t count, std::uint32_t* out) {
  // `before` numbers have their bits before this word, which holds the next `here`.
  const std::size_t last_word = sequence.n_high_words - 1;
  std::size_t word = 0, before = 0, here = how_many(sequence.high[0]);
  for (std::size_t c = 0; c < count; ++c) {
    const std::size_t i = at[c];
    if (i - before > 2 * kSample) {
      const std::size_t sample = i / kSample - 1;
      const std::size_t bit = sequence.samples[sample / 2] >> 32 * (sample % 2) & 0xffffffffu;
      word = bit / 64 < last_word ? bit / 64 : last_word;  // beyond it in a damaged file
      const std::uint64_t earlier = (std::uint64_t{1} << bit % 64) - 1;
      before = i / kSample * kSample - how_many(sequence.high[word] & earlier);
      here = how_many(sequence.high[word]);
    }
    while (before + here <= i && word < last_word) {
      before += here;
      here = how_many(sequence.high[++word]);
    }
    const std::uint64_t upper = word * 64 + nth(sequence.high[word], i - before) - i;
    const std::uint64_t value = upper << sequence.low_bits | low_part(sequence, i);
    out[c] = static_cast<std::uint32_t>(value < sequence.greatest ? value : sequence.greatest);
  }
}

DELFSEARCH_TARGET void get_all_of(const Sequence& sequence, std::size_t n, std::uint32_t* out) {
  std::size_t i = 0;
  for (std::size_t word = 0; i < n && word < sequence.n_high_words; ++word)
    for (std::uint64_t here = sequence.high[word]; here != 0 && i < n; here &= here - 1, ++i) {
      const std::uint64_t upper = word * 64 + first(here) - i;
      const std::uint64_t value = upper << sequence.low_bits | low_part(sequence, i);
      out[i] = static_cast<std::uint32_t>(value < sequence.greatest ? value : sequence.greatest);
    }
  for (; i < n; ++i) out[i] = 0;  // a damaged file
}

DELFSEARCH_TARGET void open_short(ShortSequence& of) {
  const std::size_t n = of.sequence.n_high_words;
  std::size_t before = 0;
  for (std::size_t word = 0; word < n; ++word) {
    of.before[word] = static_cast<std::uint16_t>(before);
    before += how_many(of.sequence.high[word]);
  }
  for (std::size_t word = n; word < kShortWords; ++word) of.before[word] = 0xffff;
}

DELFSEARCH_TARGET bool get_each_of(const ShortLists& lists, const std::int64_t* places,
                                   std::size_t count, std::int64_t* numbers) {
  for (std::size_t c = 0; c < count; ++c) {
    const auto place = static_cast<std::uint32_t>(places[c]);
    const std::size_t begun_lists = begun(lists.starts, place);
    if (begun_lists == 0) return false;
    const std::size_t list = begun_lists - 1, i = place - lists.starts[list];
    if (i >= lists.sizes[list]) return false;
    const ShortSequence& of = lists.sequences[list];
    const std::size_t word = word_of(of.before, i);
    const std::uint64_t upper = word * 64 + nth(of.sequence.high[word], i - of.before[word]) - i;
    const std::uint64_t value = upper << of.sequence.low_bits | low_part(of.sequence, i);
    numbers[c] =
        static_cast<std::int64_t>(value < of.sequence.greatest ? value : of.sequence.greatest);
  }
  return true;
}
