// k-means, product quantizers and posting lists.
#include "bindings.hpp"
#include "delfsearch/centroids.hpp"
#include "delfsearch/coarse.hpp"
#include "delfsearch/inverted_file.hpp"
#include "delfsearch/kmeans.hpp"
#include "delfsearch/lopq.hpp"

namespace delfsearch::bindings {
namespace {

using Signed = std::int32_t;

// Rotations or codebooks: float32, or int8 with steps.
MatricesView matrices(const py::object& values, const py::object& steps) {
  MatricesView made;
  if (py::isinstance<Array<std::int8_t>>(values))
    made.whole = view(values.cast<Array<std::int8_t>>());
  else if (py::isinstance<Array<float>>(values))
    made.values = view(values.cast<Array<float>>());
  else
    throw py::type_error("rotations and codebooks must be contiguous float32 or int8");
  if (!steps.is_none()) {
    if (!py::isinstance<Array<float>>(steps)) throw py::type_error("steps must be float32");
    made.steps = view(steps.cast<Array<float>>());
  }
  return made;
}

// The arrays of what was learned, by the names that LopqView takes them under.
py::dict to_dict(LopqArrays&& made) {
  const auto d = static_cast<py::ssize_t>(made.d);
  const auto k = static_cast<py::ssize_t>(made.code.n_centroids());
  const auto parts = static_cast<py::ssize_t>(made.code.n_parts);
  py::dict arrays;
  const auto put = [&](const std::string& name, Matrices&& matrices,
                       std::vector<py::ssize_t> shape) {
    py::ssize_t size = 1;
    for (std::size_t axis = 1; axis < shape.size(); ++axis) size *= shape[axis];
    if (matrices.whole.empty()) {
      shape[0] = static_cast<py::ssize_t>(matrices.values.size()) / size;
      arrays[py::str(name + "s")] = to_numpy(std::move(matrices.values), shape);
    } else {
      shape[0] = static_cast<py::ssize_t>(matrices.whole.size()) / size;
      arrays[py::str(name + "s")] = to_numpy(std::move(matrices.whole), shape);
      arrays[py::str(name + "_steps")] = to_numpy(std::move(matrices.steps));
    }
  };
  const auto width = static_cast<py::ssize_t>(padded_outputs(made.d));
  const bool whole = !made.rotations.whole.empty();
  put("rotation", std::move(made.rotations), {0, d, whole ? d : width});
  put("codebook", std::move(made.codebooks), {0, parts, d / parts, k});
  arrays["rotation_of"] = to_numpy(std::move(made.rotation_of));
  arrays["codebook_of"] = to_numpy(std::move(made.codebook_of));
  return arrays;
}

py::ssize_t count(std::size_t n) { return static_cast<py::ssize_t>(n); }

}  // namespace

void bind_codes(py::module_& m) {
  m.def(
      "kmeans",
      [](const Array<float>& X, std::size_t k, std::size_t max_iterations, double tolerance,
         std::size_t batch_size, std::uint64_t seed, int n_threads) {
        const auto d = static_cast<std::size_t>(X.shape(1));
        KMeans found;
        {
          py::gil_scoped_release release;
          found =
              kmeans(view(X), d, {k, max_iterations, tolerance, batch_size, seed, n_threads, {}});
        }
        return py::make_tuple(to_numpy(std::move(found.centroids), {count(k), count(d)}),
                              found.inertia, found.n_iterations);
      },
      py::arg("X").noconvert(), py::arg("k"), py::arg("max_iterations"), py::arg("tolerance"),
      py::arg("batch_size"), py::arg("seed"), py::arg("n_threads"));
  m.def(
      "assign_nearest",
      [](const Array<float>& centroids, const Array<float>& X, int n_threads) {
        const auto n = static_cast<std::size_t>(X.shape(0));
        std::vector<std::uint32_t> numbers(n);
        std::vector<float> distances(n);
        {
          py::gil_scoped_release release;
          assign_nearest(CentroidSet(view(centroids), static_cast<std::size_t>(X.shape(1))),
                         view(X), numbers, distances, n_threads);
        }
        return py::make_tuple(to_numpy(std::move(numbers)), to_numpy(std::move(distances)));
      },
      py::arg("centroids").noconvert(), py::arg("X").noconvert(), py::arg("n_threads"));
  py::class_<CoarseSearch>(m, "CoarseSearch", "The nearest of many centroids; copies them.")
      .def(py::init([](const Array<float>& centroids) {
             return std::make_unique<CoarseSearch>(view(centroids),
                                                   static_cast<std::size_t>(centroids.shape(1)));
           }),
           py::arg("centroids").noconvert())
      .def_property_readonly("n_bytes", &CoarseSearch::n_bytes)
      .def(
          "nearest",
          [](const CoarseSearch& coarse, const Array<float>& X, std::size_t n_nearest,
             int n_threads) {
            std::vector<std::uint32_t> numbers;
            {
              py::gil_scoped_release release;
              numbers = coarse.nearest(view(X), n_nearest, n_threads);
            }
            return to_numpy(std::move(numbers), {X.shape(0), count(n_nearest)});
          },
          py::arg("X").noconvert(), py::arg("n_nearest"), py::arg("n_threads"));
  m.def(
      "pack_numbers",
      [](std::size_t n_parts, int bits, const Array<std::uint8_t>& numbers) {
        const ProductCode code{n_parts, bits};
        std::vector<std::uint8_t> blocks;
        {
          py::gil_scoped_release release;
          blocks = pack_numbers(code, view(numbers));
        }
        const std::size_t n_blocks = blocks.size() / code.block_bytes();
        return to_numpy(std::move(blocks), {count(n_blocks), count(code.block_bytes())});
      },
      py::arg("n_parts"), py::arg("bits"), py::arg("numbers").noconvert());
  m.def(
      "unpack_numbers",
      [](std::size_t n_parts, int bits, const Array<std::uint8_t>& blocks, std::size_t n) {
        std::vector<std::uint8_t> numbers;
        {
          py::gil_scoped_release release;
          numbers = unpack_numbers({n_parts, bits}, view(blocks), n);
        }
        return to_numpy(std::move(numbers), {count(n), count(n_parts)});
      },
      py::arg("n_parts"), py::arg("bits"), py::arg("blocks").noconvert(), py::arg("n"));
  m.def(
      "train_lopq",
      [](const Array<float>& X, const Array<std::uint32_t>& lists, const Array<float>& coarse,
         std::size_t n_parts, int bits, int rotation, std::size_t min_rotation_rows,
         std::size_t min_codebook_rows, std::size_t max_iterations, std::size_t batch_size,
         bool rounded, int rounds, std::uint64_t seed, int n_threads) {
        LopqOptions options;
        options.code = {n_parts, bits};
        options.rotation = static_cast<LopqOptions::Rotation>(rotation);
        options.min_rotation_rows = min_rotation_rows;
        options.min_codebook_rows = min_codebook_rows;
        options.max_iterations = max_iterations;
        options.batch_size = batch_size;
        options.rounded = rounded;
        options.rounds = rounds;
        options.seed = seed;
        options.n_threads = n_threads;
        const auto d = static_cast<std::size_t>(X.shape(1));
        LopqArrays made;
        {
          py::gil_scoped_release release;
          made = train_lopq(view(X), view(lists), view(coarse), d, options);
        }
        const std::size_t n_iterations = made.n_iterations;
        return py::make_tuple(to_dict(std::move(made)), n_iterations);
      },
      py::arg("X").noconvert(), py::arg("lists").noconvert(), py::arg("coarse").noconvert(),
      py::arg("n_parts"), py::arg("bits"), py::arg("rotation"), py::arg("min_rotation_rows"),
      py::arg("min_codebook_rows"), py::arg("max_iterations"), py::arg("batch_size"),
      py::arg("rounded"), py::arg("rounds"), py::arg("seed"), py::arg("n_threads"));

  py::class_<LopqView>(m, "LopqView", "Borrows its arrays and keeps them alive.")
      .def(py::init([](std::size_t n_parts, int bits, const Array<float>& coarse,
                       const py::object& rotations, const Array<Signed>& rotation_of,
                       const py::object& codebooks, const Array<Signed>& codebook_of,
                       const py::object& rotation_steps, const py::object& codebook_steps) {
             LopqView quantizer;
             quantizer.code = {n_parts, bits};
             quantizer.d = static_cast<std::size_t>(coarse.shape(1));
             quantizer.coarse = view(coarse);
             quantizer.rotations = matrices(rotations, rotation_steps);
             quantizer.rotation_of = view(rotation_of);
             quantizer.codebooks = matrices(codebooks, codebook_steps);
             quantizer.codebook_of = view(codebook_of);
             quantizer.check();
             return quantizer;
           }),
           py::arg("n_parts"), py::arg("bits"), py::arg("coarse").noconvert(), py::arg("rotations"),
           py::arg("rotation_of").noconvert(), py::arg("codebooks"),
           py::arg("codebook_of").noconvert(), py::arg("rotation_steps") = py::none(),
           py::arg("codebook_steps") = py::none(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>(), py::keep_alive<1, 8>(),
           py::keep_alive<1, 9>(), py::keep_alive<1, 10>())
      .def(
          "encode",
          [](const LopqView& quantizer, const Array<float>& X, const Array<std::uint32_t>& lists,
             int n_threads) {
            std::vector<std::uint8_t> numbers;
            {
              py::gil_scoped_release release;
              numbers = encode(quantizer, view(X), view(lists), n_threads);
            }
            return to_numpy(std::move(numbers), {X.shape(0), count(quantizer.code.n_parts)});
          },
          py::arg("X").noconvert(), py::arg("lists").noconvert(), py::arg("n_threads"))
      .def(
          "decode",
          [](const LopqView& quantizer, const Array<std::uint8_t>& numbers,
             const Array<std::uint32_t>& lists) {
            std::vector<float> X;
            {
              py::gil_scoped_release release;
              X = decode(quantizer, view(numbers), view(lists));
            }
            return to_numpy(std::move(X), {numbers.shape(0), count(quantizer.d)});
          },
          py::arg("numbers").noconvert(), py::arg("lists").noconvert())
      .def(
          "distances",
          [](const LopqView& quantizer, const Array<float>& queries,
             const Array<std::uint8_t>& numbers, const Array<std::uint32_t>& lists, int n_threads) {
            std::vector<float> squared;
            {
              py::gil_scoped_release release;
              squared =
                  code_distances(quantizer, view(queries), view(numbers), view(lists), n_threads);
            }
            return to_numpy(std::move(squared), {queries.shape(0), numbers.shape(0)});
          },
          py::arg("queries").noconvert(), py::arg("numbers").noconvert(),
          py::arg("lists").noconvert(), py::arg("n_threads"))
      .def(
          "fill_lists",
          [](const LopqView& quantizer, const Array<std::uint8_t>& numbers,
             const Array<std::uint32_t>& lists, const Array<std::uint32_t>& rows,
             std::size_t leaf_blocks, int n_threads) {
            InvertedFileArrays made;
            {
              py::gil_scoped_release release;
              made = fill_lists(quantizer, view(numbers), view(lists), view(rows), leaf_blocks,
                                n_threads);
            }
            return py::make_tuple(
                to_numpy(std::move(made.first_block)), to_numpy(std::move(made.sizes)),
                to_numpy(std::move(made.blocks)), to_numpy(std::move(made.first_leaf)),
                to_numpy(std::move(made.present)), to_numpy(std::move(made.rows)));
          },
          py::arg("numbers").noconvert(), py::arg("lists").noconvert(), py::arg("rows").noconvert(),
          py::arg("leaf_blocks"), py::arg("n_threads"));

  py::class_<InvertedFileView>(m, "InvertedFileView", "Borrows its arrays and keeps them alive.")
      .def(py::init([](const LopqView& quantizer, const Array<std::uint64_t>& first_block,
                       const Array<std::uint32_t>& sizes, const Array<std::uint8_t>& blocks,
                       std::size_t leaf_blocks, const Array<std::uint64_t>& first_leaf,
                       const Array<std::uint32_t>& present) {
             InvertedFileView file;
             file.quantizer = quantizer;
             file.first_block = view(first_block);
             file.sizes = view(sizes);
             file.blocks = view(blocks);
             file.leaf_blocks = leaf_blocks;
             file.first_leaf = view(first_leaf);
             file.present = view(present);
             file.check();
             return file;
           }),
           py::arg("quantizer"), py::arg("first_block").noconvert(), py::arg("sizes").noconvert(),
           py::arg("blocks").noconvert(), py::arg("leaf_blocks"), py::arg("first_leaf").noconvert(),
           py::arg("present").noconvert(), py::keep_alive<1, 2>(), py::keep_alive<1, 3>(),
           py::keep_alive<1, 4>(), py::keep_alive<1, 5>(), py::keep_alive<1, 7>(),
           py::keep_alive<1, 8>())
      .def(
          "take",
          [](const InvertedFileView& file, std::size_t begin, std::size_t end, int n_threads) {
            TakenCodes taken;
            {
              py::gil_scoped_release release;
              taken = take_lists(file, begin, end, n_threads);
            }
            const py::ssize_t n = count(taken.lists.size());
            return py::make_tuple(
                to_numpy(std::move(taken.numbers), {n, count(file.quantizer.code.n_parts)}),
                to_numpy(std::move(taken.lists)));
          },
          py::arg("begin"), py::arg("end"), py::arg("n_threads"))
      .def(
          "search",
          [](const InvertedFileView& file, const Array<float>& queries,
             const Array<std::uint32_t>& probes, std::size_t k, std::size_t max_leaves, double eps,
             const Array<std::uint64_t>& allowed, int n_threads) {
            ScanOptions options;
            options.k = k;
            options.max_leaves = max_leaves;
            options.eps = eps;
            options.allowed = view(allowed);
            options.n_threads = n_threads;
            CodeNeighbours found;
            {
              py::gil_scoped_release release;
              found = scan_lists(file, view(queries), view(probes), options);
            }
            return py::make_tuple(
                to_numpy(std::move(found.squared_distances), {queries.shape(0), count(k)}),
                to_numpy(std::move(found.places), {queries.shape(0), count(k)}));
          },
          py::arg("queries").noconvert(), py::arg("probes").noconvert(), py::arg("k"),
          py::arg("max_leaves"), py::arg("eps"), py::arg("allowed").noconvert(),
          py::arg("n_threads"));
}

}  // namespace delfsearch::bindings
