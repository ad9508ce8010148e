from __future__ import annotations

from pathlib import Path

import pytest

from sqlr1_jax.data import comments

TABLE = """CREATE TABLE "t" ( -- the table
  "a b" INTEGER /* first, of (all) */,
  price DECIMAL(8, 2) DEFAULT '--no', -- in euro
  -- of the whole next part
  [kind] TEXT CHECK (kind IN ('x', ',')) /* x or
     comma */,
  `last` TEXT, /* behind it */ -- twice
  plain INT,
  PRIMARY KEY ("a b") -- of the table
)"""


def test_each_comment_belongs_to_its_column() -> None:
    assert comments.from_sql(TABLE) == {
        "a b": "first, of (all)",
        "price": "in euro",
        "kind": "x or comma",
        "last": "behind it twice",
        "primary": "of the table",
    }


def test_strings_are_no_comments_and_an_open_comment_ends_with_the_text() -> None:
    assert comments.from_sql("CREATE TABLE t (a INTEGER, b TEXT DEFAULT '/* no */')") == {}
    assert comments.from_sql("CREATE TABLE t (a INTEGER /* never closed") == {"a": "never closed"}


def test_every_real_column_comment_is_read(shared_data: Path) -> None:
    """SynSQL writes one column on a line, so splitting by lines reads the comments independently."""
    lines = columns = 0
    for path in sorted((shared_data / "synsql_sample" / "schemas").glob("*.sql"))[:200]:
        for statement in path.read_text().split(";\n"):
            found = comments.from_sql(statement)
            for line in statement.splitlines():
                if line.startswith('  "') and "/*" in line:
                    name, comment = line.split('"')[1], line.split("/*", 1)[1].rsplit("*/", 1)[0]
                    lines += 1
                    columns += found.get(name.lower()) == " ".join(comment.split())
    assert lines > 5000
    assert columns == lines


def test_descriptions_are_read_next_to_a_database(tmp_path: Path) -> None:
    folder = tmp_path / "database_description"
    folder.mkdir()
    header = "original_column_name,column_name,column_description,data_format,value_description\n"
    text = "﻿" + header + 'ID,id,"the  unique\nid",integer,\nYear ,the year,,integer,\n,,nothing,,\n'
    (folder / "Races.csv").write_text(text, encoding="utf-8")
    (folder / "old.csv").write_bytes((header + "n,,caf\xe9,,\n").encode("latin-1"))
    found = comments.from_descriptions(tmp_path / "db.sqlite")
    assert found == {("races", "id"): "the unique id", ("races", "year"): "the year", ("old", "n"): "caf�"}


def test_a_database_without_descriptions_has_none(tmp_path: Path) -> None:
    assert comments.from_descriptions(tmp_path / "db.sqlite") == {}


def test_a_description_file_is_used_up_to_its_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "database_description"
    (folder / "shop.csv").mkdir(parents=True)  # a folder
    header = "original_column_name,column_name,column_description\n"
    (folder / "dogs.csv").write_text(f"{header}age,,in years\ncolor,,{'x' * 200_000}\nkeeper,,owner\n")
    (folder / "owners.csv").write_bytes(f"{header}tag,,number\n".encode() + b"city,,\xff\0\n")
    assert comments.from_descriptions(tmp_path / "pets.sqlite") == {
        ("dogs", "age"): "in years",
        ("owners", "tag"): "number",
        ("owners", "city"): "\ufffd\0",
    }
    dogs, shop = caplog.messages
    assert dogs.startswith(
        f"{folder / 'dogs.csv'}: columns that it describes lack their descriptions: after line 2, field larger"
    )
    assert "Is a directory" in shop
