import json

from m3ddm_jax.benchmarks.report import surroundings, table


def test_surroundings_are_plain_json():
    about = json.loads(json.dumps(surroundings()))
    assert {"jax", "numpy"} <= about["versions"].keys() and about["processor"] and about["cores"] > 0


def test_table_has_a_line_a_number():
    assert table({"seconds": 1.23456, "parameters": 7000}) == "seconds     1.235\nparameters  7,000"


def test_rows_are_a_markdown_table():
    rows = {"one": {"seconds": 1.23456, "note": "fast"}, "two": {"seconds": "not run", "parameters": 7000}}
    assert table(rows).splitlines() == [
        "|  | seconds | note | parameters |",
        "| --- | --- | --- | --- |",
        "| one | 1.235 | fast |  |",
        "| two | not run |  | 7,000 |",
    ]
