"""Which published configuration files open, and why the others do not: experiments/results/published.md.

    PYTHONPATH=. python experiments/published.py FOLDER

FOLDER holds folders of models with their configuration files as they were published, without weights. Each function
makes one section of the page from it.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jdiff.interop import read_config
from jdiff.interop.schedulers import read_schedule
from jdiff.json_files import read_object
from jdiff.pipelines.fit import check_classes, check_parts
from jdiff.pipelines.folder import Index, config_class, present_parts, read_index
from jdiff.pipelines.kinds import CLASS_TO_IMAGE, TEXT_TO_IMAGE

PAGE = Path(__file__).parent / "results" / "published.md"
INTRODUCTION = """# Published configuration files

Some 1,070 configuration files of some 150 published models and of their older versions, as they were on the hub, read
by `PYTHONPATH=. python experiments/published.py FOLDER`. A file is accepted, or refused for a reason that is given.
"""
SCHEDULERS = ("scheduler_config.json", "scheduler.json")


def networks(folder: Path) -> str:
    """The section on configs of networks, by class."""
    outcomes = Counter()
    for path in sorted(folder.rglob("*.json")):
        name = network_class(path)
        if name:
            outcomes[name, outcome(lambda path=path: read_config(path), folder)] += 1
    known = {name for (name, told), _ in outcomes.items() if "there are AutoencoderKL" not in told}
    rows = [(*key, count) for key, count in sorted(outcomes.items()) if key[0] in known]
    others = Counter({name: count for (name, _), count in outcomes.items() if name not in known})
    listed = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
    return f"## Networks\n\n{table(('class', 'outcome', 'files'), rows)}\n\nOf classes that are not read: {listed}.\n"


def network_class(path: Path) -> str:
    """The class of a network that a file is the config of; empty for other files."""
    if path.name in ("model_index.json", "tokenizer_config.json", "preprocessor_config.json", *SCHEDULERS):
        return ""
    try:
        fields = read_object(path)
    except ValueError:
        return "(not JSON)" if path.name == "config.json" else ""
    name = fields.get("_class_name") or (fields.get("architectures") or [None])[0]
    if not isinstance(name, str) or name.endswith(("Scheduler", "Pipeline", "Processor", "Guider")):
        return ""
    return name


def pipelines(folder: Path) -> str:
    """The section on pipelines, by folder: their parts' configs fit together, and their scheduler is read."""
    kinds = CLASS_TO_IMAGE | TEXT_TO_IMAGE
    rows, others = [], Counter()
    for path in sorted(folder.rglob("model_index.json")):
        name = path.parent.relative_to(folder).as_posix()
        try:
            index = read_index(path.parent)
        except ValueError as error:
            rows.append((name, "", shortened(str(error), folder)))
            continue
        if index.kind in kinds:
            rows.append((name, index.kind, outcome(lambda index=index, path=path: opens(path.parent, index), folder)))
        else:
            others[index.kind] += 1
    listed = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
    return f"## Pipelines\n\n{table(('folder', 'class', 'outcome'), rows)}\n\nOf classes that are not read: {listed}.\n"


def opens(folder: Path, index: Index) -> None:
    """Raises ValueError where a pipeline would be refused before its weights and tokenizers are read, by those files of
    its parts that there are."""
    kind = (CLASS_TO_IMAGE | TEXT_TO_IMAGE)[index.kind]
    configs: dict[str, Any] = {}
    for name in sorted(present_parts(folder, index, kind)):
        path = folder / name / "config.json"
        if name.startswith(("tokenizer", "scheduler")):
            continue
        cls = config_class(index, name, folder)
        if path.exists():
            configs[name] = read_config(path, cls)
    wanted = {name for name in kind.parts if not name.startswith(("tokenizer", "scheduler")) and name[-1] != "?"}
    if wanted <= configs.keys():
        (check_classes if index.kind in CLASS_TO_IMAGE else check_parts)(str(folder), kind.base, configs)
    path = folder / "scheduler" / "scheduler_config.json"
    if path.exists():
        read_schedule(path, kind=kind.scheduler or index.parts["scheduler"], pipeline=index.kind)
    missing = sorted(wanted - configs.keys()) + ["scheduler"] * (not path.exists())
    if missing:
        raise ValueError(f"(not among the files: {', '.join(missing)}; the rest is accepted)")


def outcome(read: Callable[[], Any], folder: Path) -> str:
    """Whether something is read, or why not."""
    try:
        read()
    except (ValueError, OSError) as error:
        return shortened(str(error), folder)
    return "accepted"


def shortened(message: str, folder: Path) -> str:
    """A message without its folder, on one line of a table."""
    words = [word for word in message.split() if str(folder) not in word]
    return json.dumps(" ".join(words))[1:-1].replace("|", "\\|")[:200]


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def schedulers(folder: Path) -> str:
    """The section on schedulers, by class: how far accepted ones end from diffusers', on one network, state and noise.

    It needs the extra `oracles`, and runs the trajectories of tests/interop/."""
    from pytest import MonkeyPatch

    from tests.interop.test_published_schedulers import differences

    ends, labels, refused = defaultdict(list), defaultdict(list), []
    with MonkeyPatch.context() as patch:
        for path in sorted(folder.rglob("*.json")):
            if not path.name.startswith("scheduler"):
                continue
            if (told := outcome(lambda path=path: read_schedule(path), folder)) != "accepted":
                refused.append((path.relative_to(folder).as_posix(), told))
                continue
            config = read_object(path)
            end, label = differences(config, patch, steps=(10, 20))
            ends[config["_class_name"]].append(end)
            labels[config["_class_name"]].append(label)
    rows = [(name, len(ends[name]), f"{max(ends[name]):.0e}", f"{max(labels[name]):.0e}") for name in sorted(ends)]
    head = ("class", "accepted", "greatest difference of the end", "of a timestep")
    return f"""## Schedulers

Over 10 and 20 steps, a picture of four values: the difference of ours and theirs over the greatest of theirs.

{table(head, rows)}

Refused:

{table(("file", "reason"), refused)}
"""


SECTIONS: tuple[Callable[[Path], str], ...] = (schedulers, networks, pipelines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    PAGE.write_text("\n".join([INTRODUCTION, *(section(folder) for section in SECTIONS)]))


if __name__ == "__main__":
    main()
