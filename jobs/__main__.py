"""`python -m jobs`: what there is."""

import ast
from pathlib import Path


def main() -> None:
    """Lists the jobs, each with the first line of its docstring; imports none of them."""
    print("Jobs; `python -m jobs.NAME --help` tells a job's flags:\n")
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if path.stem == "command":
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        print(f"  jobs.{path.stem:<10} {text.splitlines()[0]}")


if __name__ == "__main__":
    main()
