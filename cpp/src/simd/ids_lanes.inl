// The loop itself, in terms of how_many (bits of a word), nth (of them) and low_part (a number's
// lower bits).

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

DELFSEARCH_TARGET void open_short(ShortSequence& of) {
  std::size_t before = 0;
  for (std::size_t word = 0; word < kShortWords; ++word) {
    of.before[word] = word < of.sequence.n_high_words ? static_cast<std::uint16_t>(before) : 0xffff;
    if (word < of.sequence.n_high_words) before += how_many(of.sequence.high[word]);
  }
}

DELFSEARCH_TARGET void get_each_of(const ShortSequence* sequences, const Wanted* wanted,
                                   std::size_t count, std::uint32_t* out) {
  for (std::size_t c = 0; c < count; ++c) {
    const ShortSequence& of = sequences[wanted[c].sequence];
    const std::size_t i = wanted[c].number;
    // The last word with at most i numbers before it; steps without a branch.
    std::size_t word = 0;
    for (std::size_t step = kShortWords / 2; step > 0; step /= 2)
      word += of.before[word + step] <= i ? step : 0;
    const std::uint64_t upper = word * 64 + nth(of.sequence.high[word], i - of.before[word]) - i;
    const std::uint64_t value = upper << of.sequence.low_bits | low_part(of.sequence, i);
    out[c] =
        static_cast<std::uint32_t>(value < of.sequence.greatest ? value : of.sequence.greatest);
  }
}
