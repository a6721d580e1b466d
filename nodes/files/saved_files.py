"""What Save nodes of the pack wrote, as Load nodes offer it: "folder/name.suffix [output]", as folder_paths resolves it."""

from pathlib import Path

import folder_paths


def saved_files(suffix: str) -> list[str]:
    """Files of the output and input folders."""
    files = []
    for kind, directory in (
        ("output", folder_paths.get_output_directory()),
        ("input", folder_paths.get_input_directory()),
    ):
        root = Path(directory).resolve()
        found = (path for path in root.rglob(f"*{suffix}") if path.resolve().is_relative_to(root) and path.is_file())
        files += sorted(f"{path.relative_to(root).as_posix()} [{kind}]" for path in found)
    return files


def invalid_choice(socket: str, name: str, suffix: str) -> str | None:
    """What is wrong with a name given to `socket`, if anything is: only listed files are read."""
    if name in saved_files(suffix):
        return None
    return f"{socket}: {name!r} is not in the output or input folder. Pick one of the list."


def resolve(socket: str, name: str, suffix: str) -> Path:
    if error := invalid_choice(socket, name, suffix):
        raise ValueError(error)
    file, directory = folder_paths.annotated_filepath(name)
    return Path(directory) / file.strip()


def fingerprint(path: Path) -> str:
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def next_file(filename_prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A file of the output folder that is not there yet, and how ComfyUI names it to the browser."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory()
    )
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}
