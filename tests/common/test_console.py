"""What is printed into a file or a pipe keeps its lines."""

from rich.padding import Padding
from rich.table import Table

from sweep.common.console import open_console


def test_a_line_is_not_cut_where_there_is_no_terminal(capsys):
    line = " ".join(f"{number / 7:.4f}" for number in range(60))
    open_console().print(line)
    open_console(stderr=True).print(line)
    assert capsys.readouterr() == (f"{line}\n", f"{line}\n")


def test_a_table_is_as_wide_as_what_is_in_it(capsys):
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("a" * 50, "b" * 50)
    open_console().print(Padding(table, (1, 0), expand=False))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["", f"{'a' * 50}  {'b' * 50}", ""]
