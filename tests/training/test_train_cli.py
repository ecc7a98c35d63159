from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from training.small import same

from delfsearch import cli, training
from delfsearch.cli import matching_commands
from delfsearch.cli.app import build_parser
from delfsearch.cli.train_command import _trainer
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    AttentionTrainer,
    DescriptorTrainer,
    JointTrainer,
    MatchedPhotos,
    read_curves,
)

SMALL = "--resize 54 --crop 48 --epochs 2 --batch-size 4 --threads 1 --device cpu".split()


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = cli.main(["train", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_descriptor_then_attention_then_reduction(run, weights_path, miniature, tmp_path):
    photos = miniature["training"] / "landmarks_clean"
    options = ["--weights", weights_path, "--precision", "fp32", "--trainable", "layer3", "--half"]
    plot = tmp_path / "curves.png"
    code, out, err = run(
        "descriptor", photos, "--out", tmp_path / "d", *options, *SMALL, "--plot", plot
    )
    assert code == 0, err
    assert "12 photos of 3 classes" in err
    assert "6 steps, loss" in out and "d/weights.safetensors" in out
    assert Image.open(plot).size[0] > 100
    trained = tmp_path / "d" / "weights.safetensors"
    assert trained.stat().st_size < 20e6  # in half precision
    code, out, err = run(
        "attention",
        photos,
        *("--out", tmp_path / "a", "--weights", trained, "--precision", "fp32", "--official"),
        *("--gammas", "0.5,1", "--cached-crops", 2, "--tensorboard", "--progress", 0.001),
        *SMALL,
    )
    assert code == 0, err
    assert "features" in err and "6/6 steps" in err
    recipe = load_weights(tmp_path / "a" / "weights.safetensors").recipe
    assert recipe["pooling"] == "mean" and recipe["normalize"] and recipe["head_batch_norm"]
    assert recipe["gammas"] == [0.5, 1.0] and recipe["before"]["mode"] == "descriptor"
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    final = tmp_path / "final.safetensors"
    code, out, err = run(
        "reduction",
        photos,
        *("--out", final, "--weights", tmp_path / "a" / "weights.safetensors"),
        *(
            "--components",
            4,
            "--sample",
            3,
            "--scales",
            "0.25-1",
            "--threads",
            1,
            "--device",
            "cpu",
        ),
    )
    assert code == 0, err
    assert "4 components" in out and "of 3 photos" in out
    weights = load_weights(final)
    assert weights.pca["pca.components"].shape == (4, 1024) and weights.attention


def test_the_same_command_goes_on(run, weights_path, miniature, tmp_path):
    command = [
        "joint",
        miniature["library"],
        *("--out", tmp_path, "--weights", weights_path, "--precision", "fp32"),
        *("--small-classes", "drop", "--trainable", "layer3", "--distractors", "no_queries"),
        *SMALL,
    ]
    code, _, err = run(*command)
    assert code == 0 and "14 photos of 6 classes" in err  # 4 scenes of 3 photos, 2 distractors
    before = read_curves(tmp_path)
    code, out, _ = run(*command)
    assert code == 0 and "6 steps" in out
    assert all(
        np.array_equal(before[name], column) for name, column in read_curves(tmp_path).items()
    )
    code, _, err = run(*command, "--learning-rate", "0.5")
    assert code == 2
    assert "optimization.learning_rate=0.01; got 0.5" in err and "output folder" in err


def test_lists_of_scenes_come_from_files(run, weights_path, miniature, tmp_path):
    (tmp_path / "fold.txt").write_text("scene 1\nscene none\n\n")
    code, _, err = run(
        *("descriptor", miniature["library"], "--out", tmp_path, "--weights", weights_path),
        *("--without-scenes", tmp_path / "fold.txt", "--trainable", "layer3", *SMALL),
    )
    assert code == 0 and "9 photos of 3 classes" in err
    (tmp_path / "fold.txt").write_text("scene 17\n")
    code, _, err = run(
        *("descriptor", miniature["library"], "--out", tmp_path, "--weights", weights_path),
        *("--without-scenes", tmp_path / "fold.txt", *SMALL),
    )
    assert code == 2 and "'scene 17' is not" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("descriptor {library} --out {out}", "1 of 5 classes have fewer than min_photos=2"),
        ("descriptor {folder} --out {out} --scenes {folder}", "needs photos in the library's own"),
        ("descriptor {none} --out {out}", "does not exist"),
        ("attention {folder} --out {out} --gammas often", "--gammas must be"),
        ("attention {folder} --out {out} --cached-crops 1", "cached_crops must be at least 2"),
        ("descriptor {folder} --out {out} --crop 300", "resize_side"),
        ("descriptor {folder} --out {out} --plot {none}/x.png", "does not exist"),
        ("reduction {folder} --out x.pth", "must end in .safetensors"),
    ],
)
def test_mistakes_are_one_line(run, weights_path, miniature, tmp_path, arguments, message):
    names = {
        "library": miniature["library"],
        "folder": miniature["training"] / "landmarks_clean",
        "out": tmp_path / "out",
        "none": tmp_path / "none",
    }
    if "--scenes" in arguments:
        (tmp_path / "list.txt").write_text("scene 1\n")
        arguments = arguments.replace("--scenes {folder}", f"--scenes {tmp_path / 'list.txt'}")
    code, _, err = run(*arguments.format(**names).split(), "--weights", weights_path)
    assert code == 2
    assert message in err and err.strip().count("\n") <= 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("descriptor {folder} --optimizer adamw --momentum 0.5", "with --optimizer adamw: leave"),
        ("contrastive {folder} --momentum 0.5", "--momentum has no effect with --optimizer adamw"),
        ("descriptor {folder} --drop-every 3", "--drop-every has no effect with --schedule linear"),
        ("joint {folder} --drop-factor 0.1 --schedule cosine", "with --schedule cosine: leave it"),
        ("contrastive {folder} --matched-share 0.2", "no effect without --matched FILE.npz"),
        ("attention {folder} --official --pooling sum", "--official means --pooling mean; got"),
        ("descriptor {folder} --clean --format csv", "--clean is for Google Landmarks"),
        ("descriptor {library} --clean", "--clean is for Google Landmarks"),
        ("contrastive {folder} --min-photos 3", "unrecognized arguments: --min-photos"),
        ("contrastive {folder} --label-smoothing 0.1", "unrecognized arguments: --label-smoothing"),
        ("recipe {library} --classifier-factor 2", "unrecognized arguments: --classifier-factor"),
        (
            "inlier-attention {folder} --matched x --keep-photos ram",
            "unrecognized arguments: --keep",
        ),
        ("match {folder} --small-classes drop", "unrecognized arguments: --small-classes"),
        ("reduction {folder} --min-photos 2", "unrecognized arguments: --min-photos"),
    ],
)
def test_options_without_effect_are_refused(run, miniature, tmp_path, arguments, message):
    names = {
        "library": miniature["library"],
        "folder": miniature["training"] / "landmarks_clean",
    }
    code, _, err = run(*arguments.format(**names).split(), "--out", tmp_path / "out")
    assert code == 2 and message in err
    assert not (tmp_path / "out").exists()


def test_matching_is_prepared_before_it_begins(run, miniature, tmp_path, monkeypatch):
    folder = miniature["training"] / "landmarks_clean"
    done = []

    def match(photos, *, matchers, **options):
        done.append({matcher.system: dict(matcher.options).get("device") for matcher in matchers})
        return MatchedPhotos(
            photos.paths,
            np.array([[0, 1]]),
            np.ones((1, 4), np.float32),
            np.ones(1, np.float32),
            np.array([0, 1]),
            np.zeros((1, 4), np.float32),
        )

    monkeypatch.setattr(matching_commands, "ensure_weights", done.append)
    monkeypatch.setattr(training, "match_photos", match)
    out = tmp_path / "not" / "there" / "pairs.npz"
    code, _, err = run("match", folder, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert done == ["resnet50-imagenet", {"congas": None, "delf": "cpu"}]
    assert MatchedPhotos.load(out).pairs.tolist() == [[0, 1]]
    done.clear()
    (tmp_path / "folder.npz").mkdir()
    for wrong, message in (
        (tmp_path / "folder.npz", "it is a folder"),
        (out / "pairs.npz", "cannot write"),
    ):
        code, _, err = run("match", folder, "--out", wrong)
        assert code == 2 and message in err and not done
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run("match", folder, "--out", out)
    assert code == 2 and "train match works in one process; 2 were started" in err and not done


def test_options_reach_the_trainers():
    def parsed(text):
        arguments = build_parser().parse_args(["train", *text.split()])
        return _trainer(arguments, arguments.weights)

    trainer = parsed(
        "descriptor P --out D --trainable layer2+ --batch-norm trained --flip --colour 0.5 "
        "--strong-views --epochs 7 --batch-size 9 --learning-rate 0.5 --classifier-factor 3 "
        "--momentum 0.5 --weight-decay 0.25 --warmup-epochs 2 --clip-norm 0 --label-smoothing 0.1 "
        "--optimizer sgd --schedule step --drop-every 3 --drop-factor 0.5 --sampling classes "
        "--seed 5 --keep-photos disk --checkpoint-every 11 --checkpoint-seconds 12 --threads 3"
    )
    assert type(trainer) is DescriptorTrainer
    assert (trainer.trainable, trainer.batch_norm, trainer.random_state) == (
        "layer2+",
        "trained",
        5,
    )
    views, optimization, run = trainer.views, trainer.optimization, trainer.run
    assert (views.resize_side, views.crop_side, views.flip) == (250, 224, True)
    assert (views.colour, views.strong) == (0.5, True)
    assert (optimization.epochs, optimization.batch_size, optimization.sampling) == (
        7,
        9,
        "classes",
    )
    assert (optimization.optimizer, optimization.schedule) == ("sgd", "step")
    assert (optimization.learning_rate, optimization.classifier_factor) == (0.5, 3)
    assert (optimization.momentum, optimization.weight_decay) == (0.5, 0.25)
    assert (optimization.warmup_epochs, optimization.clip_norm) == (2, None)
    assert (optimization.drop_every, optimization.drop_factor) == (3, 0.5)
    assert optimization.label_smoothing == 0.1
    assert (run.keep_photos, run.checkpoint_every, run.checkpoint_seconds) == ("disk", 11, 12)
    assert run.n_jobs == 3
    trainer = parsed("attention P --out D --gammas uniform --normalize --cached-crops 4")
    assert type(trainer) is AttentionTrainer
    assert (trainer.gammas, trainer.cached_crops) == ("uniform", 4)
    assert (trainer.pooling, trainer.normalize, trainer.head_batch_norm) == ("sum", True, False)
    assert trainer.views == AttentionTrainer.default_views()
    assert trainer.optimization == AttentionTrainer.default_optimization()
    trainer = parsed("descriptor P --out D --optimizer adamw")
    assert trainer.optimization.optimizer == "adamw"
    trainer = parsed("joint P --out D --official --attention-factor 2")
    assert type(trainer) is JointTrainer and trainer.attention_factor == 2
    assert (trainer.pooling, trainer.normalize, trainer.head_batch_norm) == ("mean", True, True)
    assert trainer.optimization == JointTrainer.default_optimization()
    assert trainer.views == JointTrainer.default_views()


def test_match_then_contrastive(run, weights_path, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        coarse = rng.integers(0, 256, (20, 26, 3), np.uint8)
        whole = Image.fromarray(coarse).resize((312, 240), Image.Resampling.BICUBIC)
        (tmp_path / "photos" / name).mkdir(parents=True)
        whole.crop((0, 0, 290, 240)).save(tmp_path / "photos" / name / "1.png")
        whole.crop((22, 0, 312, 240)).save(tmp_path / "photos" / name / "2.png")
    pairs = tmp_path / "pairs.npz"
    machine = ["--threads", 1, "--device", "cpu"]
    # DELF's matches come from the ImageNet weights, which a test does not fetch.
    options = ["--out", pairs, *machine]
    code, out, err = run("match", tmp_path / "photos", *options, "--features", "congas")
    assert code == 0, err
    assert "2 pairs of photos" in out and MatchedPhotos.load(pairs).pairs.shape == (2, 2)
    code, out, err = run(
        "contrastive",
        tmp_path / "photos",
        *("--out", tmp_path / "c", "--weights", weights_path, "--matched", pairs),
        *("--components", 6, "--negatives", 100, "--side", 64, "--max-side", 128),
        *("--epochs", 2, "--batch-size", 2, "--precision", "fp32"),
        *machine,
    )
    assert code == 0, err
    assert "4 steps, loss" in out
    weights = load_weights(tmp_path / "c" / "weights.safetensors")
    assert weights.recipe["mode"] == "contrastive" and weights.recipe["views"]["side"] == 64
    assert not weights.attention and weights.pca["pca.components"].shape == (6, 1024)
    code, out, err = run(
        "inlier-attention",
        tmp_path / "photos",
        *("--out", tmp_path / "i", "--weights", tmp_path / "c" / "weights.safetensors"),
        *("--matched", pairs, "--cells", 200, "--min-inliers", 20, "--scales", "0.25-1"),
        *("--epochs", 3, "--batch-size", 2, "--precision", "fp32"),
        *machine,
    )
    assert code == 0, err
    assert "6 steps, loss" in out
    learned = load_weights(tmp_path / "i" / "weights.safetensors")
    assert same(learned.tensors, weights.tensors) and learned.attention
    assert (learned.recipe["n_cells"], learned.recipe["min_inliers"]) == (200, 20)
    assert learned.recipe["before"]["mode"] == "contrastive"
    wrong = run("match", tmp_path / "photos", "--out", tmp_path / "pairs.json")
    assert wrong[0] == 2 and "--out must end in .npz" in wrong[2]
