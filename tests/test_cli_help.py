"""What the help of long commands says before they are begun."""

from __future__ import annotations

from delfsearch.cli import main


def test_the_recipe_says_what_it_takes(capsys):
    code = main(["train", "recipe", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert code == 0
    for words in ("about an hour", "GB in DIR", "fetched through npm once (about 100 MB)"):
        assert words in told
