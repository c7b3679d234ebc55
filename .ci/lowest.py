"""Print the lowest versions that pyproject.toml allows of the packages that the library needs, for pip."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, _, version = requirement.partition(">=")
    print(f"{name}=={version.partition(',')[0]}")
